"""One run of a fleet of real processes: a Valkey behind a proxy, workers, and the process with coordinator and sink."""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.chaos.projects import Project, environment
from tests.support.proxy import FaultProxy
from tests.support.valkey import Server

__all__ = ["Broken", "Site"]

#: Exit codes of a run that is finished: without and with rejected rows.
FINISHED = (0, 3)

#: Sessions that may fail one after the other while nothing is done to them.
_MOST_FAILURES = 5


class Broken(AssertionError):
    """A fault of Chainette's, not of ours."""


@dataclass
class Site:
    """Starts every process that is not running; the faults end it."""

    folder: Path
    project: Project
    rng: random.Random
    workers: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    driver: subprocess.Popen[bytes] | None = None
    #: Sessions in a row that ended by themselves without finishing the run.
    failures: int = 0
    #: Whether a fault is in force, so that a session may fail.
    troubled: bool = True
    #: Seconds by which the clock of the next worker is wrong.
    skew: float = 0.0
    _stack: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> Self:
        self.server = Server(self.folder / "valkey")
        self._stack.callback(self.server.close)
        self.proxy = self._stack.enter_context(FaultProxy(self.server.url))
        self.disk = self._stack.enter_context(Disk(self.folder / "disk"))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for process in self.processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self._stack.close()

    @property
    def out(self) -> Path:
        return self.disk.path / "out"

    @property
    def processes(self) -> list[subprocess.Popen[bytes]]:
        return [*self.workers.values(), *([self.driver] if self.driver is not None else [])]

    def tend(self) -> bool:
        """Starts every process that has ended; True once the run is finished.

        Raises:
            Broken: a session fails again and again for no reason, or a process died of an error of its own.
        """
        for name in ("worker-1", "worker-2"):
            process = self.workers.get(name)
            if process is None or process.poll() is not None:
                self.workers[name] = self._start(name, *self.project.worker)
        if self.driver is not None and (code := self.driver.poll()) is not None:
            self.driver = None
            if code in FINISHED:
                return True
            self.failures += not self.troubled and code > 0
            if self.failures > _MOST_FAILURES:
                raise Broken(f"a session ends with code {code} again and again: {self.last_words('driver')}")
        if self.driver is None:
            self.driver = self._start("driver", *self._words())
        return False

    def _words(self) -> list[str]:
        log = self.out / "events.jsonl"
        if log.exists() and b"run_created" in log.read_bytes()[:4096]:
            return ["resume", str(self.out)]
        return ["enqueue", "chain.py", "in.jsonl", "-o", str(self.out), "--window", "64", *self.project.flags]

    def _start(self, name: str, *words: str) -> subprocess.Popen[bytes]:
        skewed = ["tests.chaos.skewed", str(self.skew)] if self.skew else ["chainette.cli.main"]
        self.skew = 0.0
        command = [sys.executable, "-m", *skewed, *words, "--redis", self.proxy.url]
        with (self.folder / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                command,
                cwd=self.folder,
                env=environment(),
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    def last_words(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")[-1500:]

    def require_no_traceback(self) -> None:
        for log in self.folder.glob("*.log"):
            words = log.read_text(errors="replace")
            if "Traceback (most recent call last)" in words:
                raise Broken(f"{log.name} has a traceback: {words[words.index('Traceback') :][:3000]}")

    def kill(self, process: subprocess.Popen[bytes], how: signal.Signals = signal.SIGKILL) -> None:
        """The process itself; its children find out by themselves."""
        process.send_signal(how)
        if how is signal.SIGKILL:
            process.wait()

    def wait_until_finished(self, seconds: float) -> None:
        """Everything is healed; now the run must end.

        Raises:
            Broken: it does not.
        """
        self.troubled, end = False, time.monotonic() + seconds
        while not self.tend():
            if time.monotonic() > end:
                raise Broken(f"the run does not end, although all is well: {self.last_words('driver')}")
            time.sleep(0.2)


class Disk:
    """The file system of the run directory: a small tmpfs if this user may mount one, else a plain folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True)
        mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(path)]
        self.is_own = subprocess.run(mount, capture_output=True).returncode == 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.is_own:
            subprocess.run(["umount", "-l", str(self.path)], check=True)

    def fill(self, writer: subprocess.Popen[bytes]) -> None:
        """No byte more can be written; on a plain folder, not by this process."""
        if not self.is_own:
            _, most = resource.prlimit(writer.pid, resource.RLIMIT_FSIZE)
            resource.prlimit(writer.pid, resource.RLIMIT_FSIZE, (0, most))
            return
        with suppress(OSError), (self.path / "ballast").open("wb", buffering=0) as file:
            while True:
                file.write(b"x" * 65536)

    def empty(self) -> None:
        (self.path / "ballast").unlink(missing_ok=True)
