"""Workers that one process forks: it imports their modules once, which takes longer than anything else at their start.

The forking process ends at once. Linux then hands its children to this one, which has said that it takes in orphans, so
that it waits for them as for processes it started itself. Other systems start an interpreter for each worker.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import IO, NoReturn, Protocol

import msgspec

from chainette.engine.backends import BUILT_IN
from chainette.utils.process_end import leave
from chainette_workers.worker.entry import DESCRIPTORS, ORDERS, Forks, Streams, fork_for, import_needed

__all__ = ["ENTRY", "ForkedWorker", "Forker", "fork_workers"]

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


class Process(Protocol):
    """A child of this process, with methods of `subprocess.Popen`."""

    def poll(self) -> int | None:
        """Its exit code; None while it lives."""

    def kill(self) -> None:
        """Ends it at once."""


@dataclass
class _Forked:
    """A child that this process has forked itself."""

    pid: int
    code: int | None = None

    def poll(self) -> int | None:
        if self.code is None:
            try:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                self.code = os.waitstatus_to_exitcode(status) if pid else None
            except ChildProcessError:  # somebody else has waited for it
                self.code = 0
        return self.code

    def kill(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)


@dataclass
class Forker:
    """The process that forks workers, until it has ended."""

    process: Process
    #: Takes its orders, and gives the process ids of the workers.
    _orders: socket.socket
    is_used: bool = False
    code: int | None = None
    _told: bytes = b""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def start(cls, log: int | None = None) -> Forker:
        """An interpreter by itself; the log takes its words."""
        orders, theirs = socket.socketpair()
        with theirs:
            words, number = [*ENTRY, str(theirs.fileno())], theirs.fileno()
            process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=[number])  # noqa: S603
        return cls(process, orders)

    @classmethod
    def ahead(cls) -> Forker | None:
        """A copy of this process, which has imported most modules of a worker. It forks them when that is ordered, and ends
        with this process.

        A copy has this process's memory, so it is made before there are rows or the user's code, and never beside other
        threads, whose locks it would copy. None: there are such threads, or the system gives nobody the children of others.
        """
        if sys.platform != "linux" or threading.active_count() > 1:
            return None
        import_needed()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        orders, theirs = socket.socketpair()
        with theirs:
            before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            try:
                pid = os.fork()
                if not pid:
                    orders.close()
                    _fork_for(theirs)
            except OSError:  # no process more
                orders.close()
                return None
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return cls(_Forked(pid), orders)

    def order(self, streams: Sequence[Streams], environments: Sequence[dict[str, str]], backends: Collection[str]) -> None:
        """Has it fork workers, once, in this process's present folder and environment."""
        self.is_used = True
        folder = os.open(".", os.O_PATH | os.O_DIRECTORY)
        try:
            with suppress(BrokenPipeError, ConnectionResetError):  # it died, which its workers will show
                socket.send_fds(self._orders, [DESCRIPTORS], [folder])
                for mine in streams:
                    socket.send_fds(self._orders, [DESCRIPTORS], mine)
                forks = Forks({**os.environb}, [*environments], [name for name in backends if name in BUILT_IN])
                self._orders.sendall(ORDERS + msgspec.msgpack.encode(forks))
                self._orders.shutdown(socket.SHUT_WR)
        finally:
            os.close(folder)
        self._orders.settimeout(0)

    @property
    def has_ended(self) -> bool:
        with self._lock:
            if self.code is None:
                self.code = self.process.poll()
                if self.code is not None:
                    self._hear()
                    self._orders.close()
                    _orphans.leave()
            return self.code is not None

    def pid(self, number: int) -> int:
        """The process id of a worker, by its place; 0 if it is not known yet, or was never forked."""
        with self._lock:
            if self.code is None:
                self._hear()
        lines = self._told.splitlines(keepends=True)
        return int(lines[number]) if len(lines) > number and lines[number].endswith(b"\n") else 0

    def _hear(self) -> None:
        with suppress(BlockingIOError, ConnectionResetError):
            while words := self._orders.recv(1024):
                self._told += words


def _fork_for(orders: socket.socket) -> NoReturn:
    """The work of a copy of this process: it returns to nobody."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that was copied
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # rows may come through it
    if not sys.flags.safe_path:
        del sys.path[0]  # as -P of ENTRY
    code = 1
    try:
        code = fork_for(orders)
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
    leave(code)


@dataclass
class ForkedWorker:
    """A worker, with the methods of `subprocess.Popen`."""

    stdin: IO[bytes]
    _forker: Forker
    #: Its place among those that were ordered.
    _number: int
    _pid: int = 0
    _code: int | None = None

    def poll(self) -> int | None:
        """Its exit code, negative if a signal ended it; None while it lives or is not forked yet."""
        if self._code is None:
            over = self._forker.has_ended  # first: afterwards its children are this process's
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
            self._forker.process.kill()

    def _find(self) -> bool:
        """Whether its process id is known."""
        self._pid = self._pid or self._forker.pid(self._number)
        return self._pid > 0


def _is_there(pid: int) -> bool:
    """Whether there is a process this one may send signals to."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def fork_workers(
    logs: Sequence[int | None],
    environments: Sequence[dict[str, str]],
    forker: Forker | None = None,
    backends: Collection[str] = (),
) -> list[ForkedWorker] | None:
    """Starts a worker for each log, a descriptor; None if the system cannot hand it the children of others.

    The forker, if there is one, was started ahead, and has nothing else to do. It imports the backends first.
    """
    if not _orphans.take_in():
        return None
    try:  # Ctrl-C ends an interpreter's imports with a traceback, which is for a log
        forker = forker or Forker.start(next((log for log in logs if log is not None), None))
    except BaseException:
        _orphans.leave()
        raise
    pipes = [os.pipe() for _ in logs]
    try:
        out, err = 1, 2
        streams = [
            Streams(reads, *((out, err) if log is None else (log, log))) for (reads, _), log in zip(pipes, logs, strict=True)
        ]
        forker.order(streams, environments, backends)
    finally:
        for reads, _ in pipes:
            os.close(reads)
    return [ForkedWorker(os.fdopen(writes, "wb"), forker, number) for number, (_, writes) in enumerate(pipes)]
