"""The main module of vLLM's child processes, in place of the user's script.

A child of `multiprocessing` imports its parent's main module again, so a `chain.py` that runs itself would run in the child.
This module replaces it (`spawned_here`), and sets up each child before anything else is imported: the child ends when
its parent is gone, however that ended, and its output goes to the parent's `ChildWords`. vLLM does neither.
"""

from __future__ import annotations

import contextlib
import importlib.util
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
import types
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

__all__ = ["ChildWords", "spawned_here"]

#: Names the pipe to the parent in a child's environment.
PIPE = "CHAINETTE_ENGINE_PIPE"

#: Seconds between two checks for the parent.
TICK = 0.25

#: Number of output lines that are kept.
_TAIL = 200


@contextlib.contextmanager
def spawned_here() -> Iterator[None]:
    """Makes this module the main module of processes spawned inside."""
    main = sys.modules["__main__"]
    stand_in = types.ModuleType("__main__")
    stand_in.__spec__ = importlib.util.find_spec("chainette.engine.vllm.child")
    sys.modules["__main__"] = stand_in
    try:
        yield
    finally:
        sys.modules["__main__"] = main


class ChildWords:
    """The output of one engine's children: keeps the last lines to explain a death; `echo` gets every line."""

    def __init__(self, echo: TextIO | None) -> None:
        #: For the children's files, until `close`.
        self.folder = tempfile.mkdtemp(prefix="chainette-")
        self.path = str(Path(self.folder, "words"))
        os.mkfifo(self.path, 0o600)
        # our own writing end keeps the pipe open until the first child opens it; if none does, closing it ends the pipe
        self._reader, self._writer = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK), os.open(self.path, os.O_WRONLY)
        os.set_blocking(self._reader, True)
        self._lines: deque[str] = deque(maxlen=_TAIL)
        self._thread = threading.Thread(target=self._read, args=(echo,), name="engine-words", daemon=True)
        self._thread.start()

    def _read(self, echo: TextIO | None) -> None:
        with os.fdopen(self._reader, encoding="utf-8", errors="replace") as words:
            for line in words:
                self._lines.append(line.rstrip())
                if echo is not None:
                    with contextlib.suppress(OSError, ValueError):  # a full disk, a closed stream: the children must not wait
                        echo.write(line)

    def connected(self) -> None:
        """Every child has opened the pipe, which now ends with the last of them."""
        writer, self._writer = self._writer, -1
        if writer >= 0:
            os.close(writer)

    def close(self) -> None:
        """Called when no child lives, or none started; leaves nothing on the disk."""
        self.connected()
        shutil.rmtree(self.folder, ignore_errors=True)

    def last_error(self, seconds: float = 2.0) -> str:
        """The last line that names an error, "" if there is none; waits for the children's end."""
        self.connected()
        self._thread.join(seconds)
        plain = [line.rpartition("] ")[2].strip() if " ERROR " in line else line.strip() for line in self._lines]
        # a traceback prints its error without indentation, as `some.module.Error: words`
        return next((line for line in reversed(plain) if _names_an_error(line)), "")


def _names_an_error(line: str) -> bool:
    kind, _, words = line.partition(": ")
    kind = kind.rpartition(" ")[2]
    return bool(words) and kind.rpartition(".")[2].endswith(("Error", "Exception", "Interrupt")) and kind.isascii()


def _attend() -> None:
    """In a child: sends output to the parent, ends with it, and leaves Ctrl-C in a terminal to the parent."""
    with contextlib.suppress(OSError):
        os.setpgid(0, 0)
    with contextlib.suppress(KeyError, OSError):
        pipe = os.open(os.environ[PIPE], os.O_WRONLY)
        os.dup2(pipe, 1)
        os.dup2(pipe, 2)
        os.close(pipe)
    threading.Thread(target=_end_with_parent, name="end-with-parent", daemon=True).start()


def _end_with_parent() -> None:
    # PR_SET_PDEATHSIG would fire at the end of the thread that started us, not of its process
    while (parent := multiprocessing.parent_process()) is None:
        time.sleep(TICK)
    while os.getppid() == parent.pid:
        time.sleep(TICK)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__mp_main__":
    _attend()
