"""Starts workers: `python -m chainette_workers.worker.entry [FORKS]`.

Without an argument the process itself is a worker (`standalone.py`). FORKS is a list of `Fork`s in JSON: the process
imports the modules once, forks a worker for each, and ends. The process that started it waits for the workers
(`sink/forked_workers.py`).
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence
from importlib import import_module

import msgspec

from chainette.utils.garbage_collection import collect_rarely

__all__ = ["Fork", "main"]


class Fork(msgspec.Struct, frozen=True):
    """A worker to fork. The descriptors are inherited ones."""

    #: Its standard input.
    stdin: int
    #: Takes its output; None: the standard streams do.
    log: int | None
    #: Takes its process id, as a line.
    tell: int
    #: Variables of its environment, which hold no secrets: other users see arguments.
    environment: dict[str, str] = {}


def main(arguments: Sequence[str]) -> int:
    """Works until standard input ends, or forks; returns the exit code."""
    collect_rarely()
    work = import_module("chainette_workers.worker.standalone").main  # which takes fewer looks for cycles from here on
    if not arguments:
        return int(work())
    forks = msgspec.json.decode(arguments[0], type=list[Fork])
    gc.freeze()  # so that no collection copies the pages the workers share
    for fork in forks:
        if not (pid := os.fork()):
            _become(fork, forks)
            return int(work())
        os.write(fork.tell, b"%d\n" % pid)
    return 0


def _become(mine: Fork, forks: Sequence[Fork]) -> None:
    """Takes on the standard streams and the environment of a worker."""
    os.dup2(mine.stdin, 0)
    if mine.log is not None:
        os.dup2(mine.log, 1)
        os.dup2(mine.log, 2)
    os.environ.update(mine.environment)
    for descriptor in {number for fork in forks for number in (fork.stdin, fork.log, fork.tell) if number is not None}:
        os.close(descriptor)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
