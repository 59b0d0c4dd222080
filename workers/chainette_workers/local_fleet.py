"""`run --workers N`: the whole fleet on this machine, with a Valkey of its own, gone when the run ends."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import anyio.from_thread
import msgspec
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from chainette.core.loading import load_chain
from chainette.core.plan import PYTHON, Plan
from chainette.errors import InputError, RunStopped
from chainette.fleet.embedded import EmbeddedServer
from chainette.fleet.queue import FleetQueue, Lost
from chainette.io.events import UnitRetried
from chainette.io.roots import Roots
from chainette.io.validate import InputModel
from chainette.launch import Session
from chainette.limits import RejectWatch
from chainette_workers.coordinator import Coordinator
from chainette_workers.sink import Sink
from chainette_workers.worker import UNUSABLE, WorkerConfig

__all__ = ["LocalFleet"]

#: Seconds between two looks when nothing moves.
_IDLE = 0.02

#: Workers that may die one after the other without anything becoming durable in between.
_MOST_DEATHS = 6


@dataclass(frozen=True)
class LocalFleet:
    """Moves a session's units with worker processes; the `drive` of RunOptions.

    Raises (when called):
        RunStopped: a worker can never serve, workers keep dying, an engine does not answer, too many rejects.
        InputError: the chain has no such engine.
    """

    #: Processes per engine: one number for all, or by engine.
    workers: int | Mapping[str, int]

    def __call__(self, session: Session) -> None:
        with tempfile.TemporaryDirectory(prefix="chainette-") as folder, EmbeddedServer.start(Path(folder) / "data") as server:
            connection = redis.Redis.from_url(server.url, retry=Retry(NoBackoff(), 0), socket_timeout=30.0)
            with connection, _children(self._configs(session, server.url), Path(folder)) as children:
                _Drive(session, FleetQueue(connection), children).run()

    def _configs(self, session: Session, url: str) -> list[WorkerConfig]:
        """One entry per process."""
        engines = list(session.plan.engines) or [PYTHON]
        if isinstance(self.workers, Mapping):
            unknown = [name for name in self.workers if name not in engines]
            if unknown:
                raise InputError(f"--workers: the chain has no engine {unknown[0]!r}; it has {', '.join(engines)}")
        wanted = self.workers if isinstance(self.workers, Mapping) else dict.fromkeys(engines, self.workers)
        return [
            WorkerConfig(url, [name], session.options.chain_root, _rows_in_flight(session.plan, name))
            for name in engines
            for _ in range(wanted.get(name, 1))
        ]


def _rows_in_flight(plan: Plan, engine: str) -> int:
    """Twice what the engine answers at once, and never less than two units."""
    config = plan.engines.get(engine)
    return 2 * max((config.capacity if config is not None else None) or 64, plan.batch_size)


@dataclass
class _Child:
    config: WorkerConfig
    log: Path
    process: subprocess.Popen[bytes] | None = None
    restart_at: float = 0.0
    deaths: int = 0

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "chainette_workers.worker"], stdin=subprocess.PIPE, stdout=log, stderr=log
            )
        assert self.process.stdin is not None
        self.process.stdin.write(msgspec.json.encode(self.config) + b"\n")
        self.process.stdin.flush()

    def stop(self) -> None:
        if self.process is not None and self.process.stdin is not None:
            self.process.stdin.close()

    @property
    def last_words(self) -> str:
        lines = self.log.read_text(errors="replace").strip().splitlines()[-5:] if self.log.exists() else []
        return "\n".join(lines) or "(it said nothing)"


@contextmanager
def _children(configs: list[WorkerConfig], folder: Path) -> Iterator[list[_Child]]:
    """The workers; on the way out all are gone."""
    children = [_Child(config, folder / f"worker-{number}.log") for number, config in enumerate(configs)]
    try:
        for child in children:
            child.start()
        yield children
    finally:
        for child in children:
            child.stop()
        for child in children:
            if child.process is not None:
                try:
                    child.process.wait(15)
                except subprocess.TimeoutExpired:
                    child.process.kill()
                    child.process.wait()


@dataclass
class _Drive:
    """Coordinator and sink in one loop of plain verbs, and an eye on the workers."""

    session: Session
    queue: FleetQueue
    children: list[_Child]
    _noted: str = "0-0"
    _failing: dict[str, float] = field(default_factory=dict)

    def run(self) -> None:
        session = self.session
        expected = session.source.count()
        sink = self._sink(expected)
        coordinator = self._coordinator(sink)
        while True:
            anyio.from_thread.check_cancelled()
            try:
                moved = coordinator.step()
                moved |= sink.step()
                self._hear(sink)
                if not moved and coordinator.finished and sink.complete:
                    sink.close()
                    return
            except Lost:
                sink.raise_epoch(expected)
                coordinator = self._coordinator(sink)
                continue
            if moved:
                self._forget_deaths()
            else:
                self._tend()
                time.sleep(_IDLE)

    def _sink(self, expected: int | None) -> Sink:
        session, options = self.session, self.session.options
        fields: dict[str, str | int] = {
            "window": options.window or max(4096, 4 * sum(child.config.rows_in_flight for child in self.children)),
            "seed": options.seed,
            "chain_ref": options.chain_ref,
            "digest": load_chain(options.chain_ref, Path(options.chain_root)).digest,
            "batch_size": session.plan.batch_size,
            "simulate": int(options.simulate),
            "engines_file": options.engines_file or "",
        }
        run = session.writer.state.run.run_id
        watch = RejectWatch(options.max_reject_rate)
        sink = Sink(self.queue, session.writer, session.plan, run, fields, session.hook, watch)
        sink.open(expected)
        return sink

    def _coordinator(self, sink: Sink) -> Coordinator:
        session = self.session
        roots = Roots(session.source, InputModel(session.plan.input_model, session.options.key), session.plan.batch_size)
        writer = session.writer
        return Coordinator(self.queue, sink.keys, session.plan, lambda: roots.pending(writer.state.is_done), writer.durable)

    def _hear(self, sink: Sink) -> None:
        """What workers noted goes to the log and to the hooks."""
        self._noted, events = self.queue.notes(sink.run, self._noted)
        for event in self.session.writer.record(events):
            self.session.hook.on_event(event)
            if isinstance(event, UnitRetried):
                self._watch_patience(event)

    def _watch_patience(self, event: UnitRetried) -> None:
        began = self._failing.setdefault(event.node, time.monotonic())
        waited = time.monotonic() - began
        if waited > self.session.options.engine_patience:
            raise RunStopped(f"the engine of {event.node!r} has not answered for {waited:.0f} s: {event.message}")

    def _forget_deaths(self) -> None:
        self._failing.clear()
        for child in self.children:
            child.deaths = 0

    def _tend(self) -> None:
        """Restarts workers that died, a little later each time."""
        for child in self.children:
            code = child.process.poll() if child.process is not None else None
            if code is None:
                continue
            if code == UNUSABLE or child.deaths >= _MOST_DEATHS:
                raise RunStopped(f"a worker for {', '.join(child.config.engines)} ended with code {code}:\n{child.last_words}")
            if not child.restart_at:
                child.restart_at = time.monotonic() + 0.2 * 2**child.deaths
            elif time.monotonic() > child.restart_at:
                child.deaths, child.restart_at = child.deaths + 1, 0.0
                child.start()
