"""Workers that one interpreter forks: it imports their modules once, which takes longer than anything else at their start.

The forking process ends at once. Linux then hands its children to this one, which has said that it takes in orphans, so
that it waits for them as for processes it started itself. Other systems start an interpreter for each worker.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import IO

import msgspec

from chainette_workers.worker.entry import Fork

__all__ = ["ENTRY", "ForkedWorker", "fork_workers"]

#: Starts a worker; -P: nothing of the current folder.
ENTRY = (sys.executable, "-P", "-m", "chainette_workers.worker.entry")

_PR_SET_CHILD_SUBREAPER, _PR_GET_CHILD_SUBREAPER = 36, 37

#: Seconds between two looks at a worker that is about to end.
_LOOK = 0.01


class _Orphans:
    """Whether this process adopts orphans among its descendants: as long as somebody needs that, or if it did so before."""

    def __init__(self) -> None:
        self._wanted, self._before, self._lock = 0, 0, threading.Lock()

    def take_in(self) -> bool:
        """Begins to; False if the system cannot."""
        with self._lock:
            if not self._wanted:
                before = ctypes.c_int()
                if not (_prctl(_PR_GET_CHILD_SUBREAPER, ctypes.byref(before)) and _prctl(_PR_SET_CHILD_SUBREAPER, 1)):
                    return False
                self._before = before.value
            self._wanted += 1
            return True

    def leave(self) -> None:
        with self._lock:
            self._wanted -= 1
            if not self._wanted:
                _prctl(_PR_SET_CHILD_SUBREAPER, self._before)


def _prctl(option: int, argument: object) -> bool:
    try:
        return sys.platform == "linux" and bool(ctypes.CDLL(None).prctl(option, argument, 0, 0, 0) == 0)
    except (OSError, AttributeError):
        return False


_orphans = _Orphans()


@dataclass
class _Forking:
    """The process that forks the workers, until it has ended."""

    process: subprocess.Popen[bytes]
    code: int | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def has_ended(self) -> bool:
        with self._lock:
            if self.code is None:
                self.code = self.process.poll()
                if self.code is not None:
                    _orphans.leave()
            return self.code is not None


@dataclass
class ForkedWorker:
    """A worker, with the methods of `subprocess.Popen`."""

    stdin: IO[bytes]
    _forking: _Forking
    #: The descriptor from which its process id comes.
    _told: int
    _pid: int = 0
    _code: int | None = None

    def poll(self) -> int | None:
        """Its exit code, negative if a signal ended it; None while it lives or is not forked yet."""
        if self._code is None:
            over = self._forking.has_ended  # first: afterwards its children are this process's
            if not self._find():
                self._code = 1 if over else None
                return self._code
            try:
                pid, status = os.waitpid(self._pid, os.WNOHANG)
                if pid:
                    self._code = os.waitstatus_to_exitcode(status)
            except ChildProcessError:  # it is not this process's child yet, or somebody else has waited for it
                if over and not _is_there(self._pid):
                    self._code = 0  # as `subprocess` says then
        return self._code

    def wait(self, timeout: float | None = None) -> int:
        """Waits for its end.

        Raises:
            subprocess.TimeoutExpired: it has not ended in time.
        """
        end = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if end is not None and time.monotonic() > end:
                raise subprocess.TimeoutExpired(ENTRY, timeout or 0.0)
            time.sleep(_LOOK)
        return code

    def kill(self) -> None:
        if self.poll() is None and self._pid:
            with suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
        elif self._code is None:
            self._forking.process.kill()

    def _find(self) -> bool:
        """Whether its process id is known."""
        if not self._pid and self._told >= 0:
            with suppress(BlockingIOError):
                line = os.read(self._told, 32)  # written at once, so the pipe does not cut it
                self._pid = int(line or 0)
                os.close(self._told)
                self._told = -1
        return self._pid > 0


def _is_there(pid: int) -> bool:
    """Whether there is a process this one may send signals to."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def fork_workers(logs: Sequence[int | None], environments: Sequence[dict[str, str]]) -> list[ForkedWorker] | None:
    """Starts a worker for each log, a descriptor; None if the system cannot hand it the children of others."""
    if not _orphans.take_in():
        return None
    inputs, tells = [os.pipe() for _ in logs], [os.pipe() for _ in logs]
    forks = [
        Fork(stdin, log, tell, environment)
        for (stdin, _), log, (_, tell), environment in zip(inputs, logs, tells, environments, strict=True)
    ]
    inherited = [number for fork in forks for number in (fork.stdin, fork.tell, fork.log) if number is not None]
    try:
        command = [*ENTRY, msgspec.json.encode(forks).decode()]
        log = next((log for log in logs if log is not None), None)  # Ctrl-C ends its imports with a traceback
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=inherited)  # noqa: S603
    except BaseException:
        _orphans.leave()
        raise
    finally:
        for fork in forks:
            os.close(fork.stdin)
            os.close(fork.tell)
    forking = _Forking(process)
    for told, _ in tells:
        os.set_blocking(told, False)
    return [ForkedWorker(os.fdopen(writes, "wb"), forking, told) for (_, writes), (told, _) in zip(inputs, tells, strict=True)]
