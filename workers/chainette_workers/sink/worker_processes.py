"""Worker processes, supervised by the process that started them: they end with it, in whatever way it ends."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from chainette.errors import RunError
from chainette.utils.backoff import backoff
from chainette.utils.private_files import open_file
from chainette_workers.runtime import UNUSABLE
from chainette_workers.sink.forked_workers import ENTRY, ForkedWorker, Forker, fork_workers
from chainette_workers.worker.configuration import WorkerConfig

__all__ = ["Child", "prepared", "running", "supervise"]

#: Seconds until a child that died is started again: at first, and at most.
_FIRST_WAIT, _LONGEST_WAIT = 0.2, 30.0

#: Seconds a child must live for its earlier deaths to be forgotten.
_HEALTHY = 60.0

#: Seconds a child has to hand back its units.
_GRACE = 15.0

#: Seconds between two looks.
_LOOK = 0.1


@dataclass
class Child:
    """One worker process; started again if it dies, a little later each time."""

    config: WorkerConfig
    #: Takes its output; None: this process's standard streams do.
    log: Path | None = None
    #: Variables of its environment, besides those of this process.
    environment: Mapping[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | ForkedWorker | None = None
    deaths: int = 0
    _restart_at: float = 0.0
    _started_at: float = 0.0

    def prepare(self) -> None:
        """Starts the process, unless it lives: it imports its modules, and waits for the engines to serve."""
        if self.process is not None and self.code is None:
            return
        with _appended(self.log) as log:
            environment = os.environ | self.environment
            self.process = subprocess.Popen(ENTRY, stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment)  # noqa: S603
        self._started_at = time.monotonic()

    def start(self) -> None:
        """Has the process serve."""
        self.prepare()
        assert self.process is not None and self.process.stdin is not None
        with suppress(BrokenPipeError):  # it died, which its supervisor will see
            self.process.stdin.write(msgspec.json.encode(self.config) + b"\n")
            self.process.stdin.flush()

    @property
    def code(self) -> int | None:
        """How it ended; None while it lives."""
        return self.process.poll() if self.process is not None else None

    def revive(self) -> None:
        """Starts it again once its time has come."""
        now = time.monotonic()
        if not self._restart_at:
            self.deaths = 0 if now - self._started_at > _HEALTHY else self.deaths
            self._restart_at = now + backoff(self.deaths, _FIRST_WAIT, _LONGEST_WAIT)
        elif now > self._restart_at:
            self.deaths, self._restart_at = self.deaths + 1, 0.0
            self.start()

    def release(self) -> None:
        """Tells it that nobody needs it any more."""
        if self.process is not None and self.process.stdin is not None:
            with suppress(BrokenPipeError):
                self.process.stdin.close()

    def await_end(self) -> None:
        if self.process is not None:
            try:
                self.process.wait(_GRACE)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    @property
    def last_words(self) -> str:
        if self.log is None or not self.log.exists():
            return "(it said nothing)"
        lines = self.log.read_text(errors="replace").strip().splitlines()[-5:]
        free = shutil.disk_usage(self.log.parent).free >> 20
        return "\n".join(lines) or f"(it said nothing; the disk of {self.log.parent} has {free:,} MiB free)"


@contextmanager
def _appended(log: Path | None) -> Iterator[int | None]:
    """A descriptor that appends to the log; None if there is none."""
    if log is None:
        yield None
        return
    descriptor = open_file(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _prepare_together(children: Sequence[Child], forker: Forker | None, backends: Collection[str]) -> None:
    """Starts several at once from one process, if the system can; restarted ones get an interpreter each."""
    forker = None if forker is not None and forker.is_used else forker
    if len(children) < (2 if forker is None else 1):
        return
    with ExitStack() as stack:
        logs = [stack.enter_context(_appended(child.log)) for child in children]
        forked = fork_workers(logs, [{**child.environment} for child in children], forker, backends)
    for child, process in zip(children, forked or (), strict=False):
        child.process, child._started_at = process, time.monotonic()


@contextmanager
def running(children: Sequence[Child]) -> Iterator[None]:
    """The children serve inside the block; at its end all are gone."""
    with prepared(children):
        for child in children:
            child.start()
        yield


@contextmanager
def prepared(children: Sequence[Child], forker: Forker | None = None, backends: Collection[str] = ()) -> Iterator[None]:
    """The children live inside the block, forked by `forker` if it has not been used, with the modules of `backends`; at its
    end all are gone."""
    try:
        _prepare_together([child for child in children if child.process is None], forker, backends)
        for child in children:
            child.prepare()
        yield
    finally:
        for child in children:
            child.release()
        for child in children:
            child.await_end()


def supervise(children: Sequence[Child], stopping: threading.Event) -> None:
    """Keeps children alive until `stopping` is set, or until all of them have ended properly.

    Raises:
        RunError: a child can never serve its engines.
    """
    with running(children):
        while not stopping.wait(_LOOK):
            codes = [child.code for child in children]
            if UNUSABLE in codes:
                raise RunError("a worker cannot serve its engines; its own message is above")
            if all(code == 0 for code in codes):
                return
            for child, code in zip(children, codes, strict=True):
                if code:
                    child.revive()
