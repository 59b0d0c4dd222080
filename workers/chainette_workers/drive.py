"""Driving a run over Redis: admission and durability in one loop, whoever the workers are."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import anyio.from_thread
import msgspec
import redis

from chainette.core.loading import load_chain
from chainette.errors import RunCancelled, RunStopped
from chainette.fleet.connect import connect, is_passing
from chainette.fleet.messages import BadMessage
from chainette.fleet.queue import FleetQueue, LeasedQueue, Lost
from chainette.io.events import UnitRetried
from chainette.io.roots import Root, Roots
from chainette.io.validate import InputModel
from chainette.launch import Session
from chainette.limits import RejectWatch
from chainette_workers.coordinator import Coordinator
from chainette_workers.sink import Sink

__all__ = ["Drive", "RedisFleet"]

_log = logging.getLogger("chainette")

#: Live rows at most, where nobody says otherwise.
_WINDOW = 16_384

#: Seconds between two looks at what others said of the run.
_LOOK = 0.5

#: Seconds without movement before it is explained, and before that is said again.
_STILL, _AGAIN = 3.0, 30.0

#: New epochs that one session begins because data in Redis cannot be read.
_MOST_DAMAGES = 3

#: Seconds between two looks when nothing moves.
_IDLE = 0.02


@dataclass(frozen=True)
class RedisFleet:
    """Moves a session's units through workers that serve a Redis; the `drive` of RunOptions.

    Raises (when called):
        RunError: Redis does not answer at the start. Later on, it is waited for.
    """

    url: str | None = None
    #: What is in flight survives this process, and the next one goes on with it.
    attaches: ClassVar[bool] = True

    def __call__(self, session: Session) -> None:
        with connect(self.url) as connection:
            Drive(session, FleetQueue(connection), session.options.window or _WINDOW).run()


@dataclass
class Drive:
    """One run's coordinator and sink in one loop of plain verbs.

    Raises (from `run`):
        RunStopped: an engine does not answer for too long, or too many rows are rejected.
        RunCancelled: somebody gave the run up.
    """

    session: Session
    queue: LeasedQueue
    #: Live rows at most.
    window: int
    #: Called when something became durable (True), and when nothing moves (False).
    tend: Callable[[bool], None] = lambda _moved: None
    _looked_at: float = 0.0
    _damages: int = 0
    _still_since: float = field(default_factory=time.monotonic)
    _noted: str = "0-0"
    _failing: dict[str, float] = field(default_factory=dict)

    def run(self) -> None:
        session = self.session
        expected = session.source.count()
        sink = self._sink()
        begin = sink.open
        coordinator: Coordinator | None = None
        while True:
            anyio.from_thread.check_cancelled()
            try:
                if coordinator is None:
                    begin(expected)
                    coordinator = self._coordinator(sink)
                self._look(sink)
                moved = coordinator.step()
                moved |= sink.step()
                self._hear(sink)
                if not moved and coordinator.finished and sink.complete:
                    sink.close()
                    return
            except Lost:
                begin, coordinator = sink.raise_epoch, None
                continue
            except BadMessage as error:
                self._give_up_if_often(error)
                begin, coordinator = sink.raise_epoch, None
                continue
            except redis.RedisError as error:
                if not is_passing(error):
                    raise RunStopped(f"Redis refuses what it is asked: {error}") from error
                moved = False
            if moved:
                self._failing.clear()
                self._still_since = time.monotonic()
            else:
                self._explain(sink)
                time.sleep(_IDLE)
            self.tend(moved)

    def _look(self, sink: Sink) -> None:
        """What others did to the run: gave it up, or found a unit that is no more."""
        now = time.monotonic()
        if now < self._looked_at + _LOOK:
            return
        self._looked_at = now
        progress = self.queue.progress(sink.keys)
        if progress.damaged:
            raise BadMessage(progress.damaged)
        if progress.state == "cancelled":
            sink.close()
            raise RunCancelled(f"run {sink.run} was cancelled; its rows so far are in {self.session.writer.directory}")

    def _give_up_if_often(self, error: BadMessage) -> None:
        """Data in Redis that cannot be read are made anew out of what is durable; not for ever."""
        self._damages += 1
        if self._damages > _MOST_DAMAGES:
            raise RunStopped(f"the run's data in Redis cannot be read, again and again: {error}")
        _log.warning("a new epoch begins, because data in Redis cannot be read: %s", error)

    def _explain(self, sink: Sink) -> None:
        """Says why nothing moves, where it can be known; again after a while."""
        now = time.monotonic()
        if now < self._still_since + _STILL:
            return
        self._still_since = now + _AGAIN
        try:
            state, workers = self.queue.progress(sink.keys).state, self.queue.workers()
            waiting = {queue.partition(".")[0] for queue in self.queue.waiting(sink.queues)}
        except redis.RedisError as error:
            _log.warning("nothing moves: Redis does not answer (%s); waiting for it", error)
            return
        served = {name for words in workers.values() for name in words.get("engines", "").split(",")}
        if state == "paused":
            _log.warning("nothing moves: run %s is paused; go on: chainette unpause %s", sink.run, sink.run)
        for engine in sorted(waiting - served):
            _log.warning("nothing moves: no live worker serves %r; start: chainette worker --engine %s", engine, engine)

    def _sink(self) -> Sink:
        session, options = self.session, self.session.options
        fields: dict[str, str | int] = {
            "window": self.window,
            "seed": options.seed,
            "chain_ref": options.chain_ref,
            "digest": load_chain(options.chain_ref, Path(options.chain_root)).digest,
            "batch_size": session.plan.batch_size,
            "simulate": int(options.simulate),
            "engines": msgspec.json.encode({name: config.digest for name, config in session.plan.engines.items()}).decode(),
        }
        run = session.writer.state.run.run_id
        watch = RejectWatch(options.max_reject_rate)
        return Sink(self.queue, session.writer, session.plan, run, fields, session.hook, watch)

    def _coordinator(self, sink: Sink) -> Coordinator:
        session = self.session
        roots = Roots(session.source, InputModel(session.plan.input_model, session.options.key), session.plan.batch_size)
        writer = session.writer

        def pending(last: int) -> Iterator[Root]:
            # behind the last root that the epoch admitted, what is complete now was complete when the epoch began
            return roots.pending(lambda root: root <= last or writer.state.is_done(root))

        return Coordinator(self.queue, sink.keys, session.plan, pending, writer.durable)

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
