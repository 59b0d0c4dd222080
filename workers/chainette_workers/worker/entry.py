"""Starts workers: `python -m chainette_workers.worker.entry [SOCKET]`.

Without an argument the process itself is a worker (`standalone.py`). SOCKET is an inherited descriptor: the process
imports the modules once, reads from it which workers to fork, writes their process ids to it, and ends. The process that
started it waits for the workers (`sink/forked_workers.py`).
"""

from __future__ import annotations

import gc
import os
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import msgspec

from chainette.engine.backends import backend_class
from chainette.fleet.redis.script_calls import sources
from chainette.utils.garbage_collection import collect_rarely, importing
from chainette.utils.process_end import end

__all__ = ["DESCRIPTORS", "ORDERS", "WORKER_NAME", "Forks", "Streams", "fork_for", "import_needed", "main"]

#: The name of a worker's process, as `ps -o comm` and `top` show it: a forked one has the arguments of its command.
WORKER_NAME = "engine-worker"

#: Modules of the event loop.
_LOOP = ("anyio._backends._asyncio", "anyio.abc", "uvloop")


#: Comes with descriptors: first that of the current folder, then the `Streams` of each worker.
DESCRIPTORS = b"+"

#: Comes before `Forks`.
ORDERS = b"="


class Streams(NamedTuple):
    """The standard streams of a worker: descriptors."""

    stdin: int
    stdout: int
    stderr: int


class Forks(msgspec.Struct, frozen=True):
    """Workers to fork."""

    #: The environment of all.
    environment: dict[bytes, bytes]
    #: Variables of each worker, beside those.
    workers: list[dict[str, str]]
    #: Built-in backends of their engines.
    backends: list[str]


def main(arguments: Sequence[str]) -> int:
    """Works until standard input ends, or forks; returns the exit code."""
    collect_rarely()
    if not arguments:
        _take_name()
        return _worker()()
    with socket.socket(fileno=int(arguments[0])) as orders:
        return fork_for(orders)


def _worker() -> Callable[[], int]:
    """A worker, whose modules take longer to import than all else at its start."""
    with importing():
        found: Callable[[], int] = import_module("chainette_workers.worker.standalone").main
    return found


def import_needed() -> None:
    """Imports and reads whatever each worker would import and read as soon as it serves."""
    for name in _LOOP:
        with suppress(ImportError):
            import_module(name)
    sources()


def fork_for(orders: socket.socket) -> int:
    """Forks the workers that are ordered, which return to nobody; the exit code."""
    import_needed()
    work = _worker()
    given: list[int] = []
    while (received := socket.recv_fds(orders, 1, len(Streams._fields)))[0] == DESCRIPTORS:
        given += received[1]
    if not received[0]:  # nobody needs workers after all
        return 0
    with orders.makefile("rb") as rest:
        forks = msgspec.msgpack.decode(rest.read(), type=Forks)
    folder, *streams = given
    os.fchdir(folder)
    os.environ.clear()
    os.environb.update(forks.environment)
    with importing():
        for name in forks.backends:
            backend_class(name)
    gc.freeze()  # so that no collection copies the pages the workers share
    for number, variables in enumerate(forks.workers):
        if not (pid := os.fork()):
            orders.close()
            os.environ.update(variables)
            _become(Streams(*streams[3 * number : 3 * number + 3]), given)
            end(work())
        orders.sendall(b"%d\n" % pid)
    return 0


def _become(mine: Streams, given: Sequence[int]) -> None:
    """Takes on the standard streams of a worker, and its name."""
    for number, descriptor in enumerate(mine):
        os.dup2(descriptor, number)
    for descriptor in given:
        os.close(descriptor)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115 - those of the process that was forked may have been replaced
    sys.stdout = open(1, "w", errors="replace", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", errors="backslashreplace", closefd=False)  # noqa: SIM115
    _take_name()


def _take_name() -> None:
    with suppress(OSError):  # not Linux
        Path("/proc/self/comm").write_text(WORKER_NAME)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
