"""The progress of a run for people: by node, by engine and in total.

`Progress` folds the same events as recovery (`RunState`), so counts are of durable rows; speeds count answers as they
arrive. The totals of nodes after an expanding or dropping node are estimated from the rows so far, and exact at the end.
Nothing here prints or waits; the time comes from `clock`.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from chainette.core.plan_node import NodeKind
from chainette.engine.config import share_device
from chainette.engine.price import Cost
from chainette.io.rundir.arrivals import Arrivals
from chainette.io.rundir.event_log import read_log
from chainette.io.rundir.event_types import (
    AnyEvent,
    EngineLoaded,
    EngineReleased,
    Event,
    RunResumed,
    RunStarted,
    UnitCommitted,
    UnitRetried,
    WorkerJoined,
)
from chainette.io.rundir.paths import RunDir
from chainette.io.rundir.run_state import RunState, Status
from chainette.records import CHAIN_INPUT, declared_of

__all__ = ["EngineView", "NodeView", "Progress", "TotalView", "earlier_events", "seconds_left"]

#: The seconds over which rates are measured, and the seconds between two samples.
_WINDOW = 30.0
_SAMPLE = 0.25
#: Seconds before the time left is shown to a new watcher, because rows become durable in groups.
_SETTLED = 5.0


def earlier_events(directory: os.PathLike[str], event: Event) -> Iterator[AnyEvent]:
    """The events in the log of a directory before `event`."""
    log = RunDir(directory).log
    for _, earlier in read_log(log) if event.seq > 0 and log.exists() else ():
        if earlier.seq >= event.seq:
            return
        yield earlier


def _expected_rows(state: RunState, node: str) -> int | None:
    """The rows that a node will have received at the end of the run; None if unknown."""
    taken = state.node(node).taken
    if state.status is Status.FINISHED:
        return taken
    arriving = _arriving(state, node)
    return None if arriving is None else max(taken, round(arriving))


def _arriving(state: RunState, node: str) -> float | None:
    source = state.graph.source(node)
    if source is None:
        total = state.records_to_come
        return None if total is None else (total - state.node(CHAIN_INPUT).rejected) * state.graph.copies(node)
    arriving = _arriving(state, source)
    if arriving is None:
        return None
    counts, way = state.node(source), state.graph.way_to(node)
    given = counts.given if way is None else counts.ways.get(way, 0)
    share = given / counts.taken if counts.taken else 1.0
    return (given + max(0.0, arriving - counts.taken) * share) * state.graph.copies(node)


def _left(state: RunState, node: str, rate: float) -> float | None:
    total = _expected_rows(state, node)
    return (total - state.node(node).taken) / rate if total is not None and rate > 0 else None


def seconds_left(state: RunState, rates: Mapping[str, float]) -> float | None:
    """Seconds to the end of the run if every node continues at its rate (rows per second); None if unknown."""
    rates = {node: rate for node, rate in rates.items() if _expected_rows(state, node) != state.node(node).taken}
    lefts = [_left(state, node, rate) for node, rate in rates.items()]
    known = [left for left in lefts if left is not None]
    return max(known, default=0.0) if state.graph.nodes and len(known) == len(lefts) else None


@dataclass(frozen=True)
class NodeView:
    """The progress of one node."""

    id: str
    #: The number of enclosing branches.
    depth: int
    #: Rows that went in so far, and that will go in altogether; None if unknown.
    done: int
    total: int | None
    rejected: int
    #: Rows and answer tokens per second.
    rate: float
    tokens: float
    #: Seconds to the end; None if unknown.
    left: float | None


@dataclass(frozen=True)
class EngineView:
    """The state of one engine, as text."""

    name: str
    text: str
    #: Whether it needs attention.
    trouble: bool = False


@dataclass(frozen=True)
class TotalView:
    """The progress of the whole run."""

    #: Completed records, and all records.
    done: int
    total: int | None
    rejected: int
    #: Seconds since this session began; None if unknown.
    elapsed: float | None
    rate: float
    tokens: float
    left: float | None
    #: The number of answers that have arrived and are not durable yet.
    arrived: int = 0
    cost: Cost = field(default_factory=Cost)


@dataclass
class _Meter:
    """Speeds over the last seconds; the wait before the first row does not count."""

    samples: deque[tuple[float, int, int]] = field(default_factory=deque)

    def read(self, now: float, rows: int, tokens: int) -> tuple[float, float]:
        """(rows/s, tokens/s), after adding the current counts."""
        samples = self.samples
        if not samples or now - samples[-1][0] >= _SAMPLE:
            samples.append((now, rows, tokens))
        while len(samples) > 2 and samples[1][0] < now - _WINDOW:
            samples.popleft()
        while len(samples) > 2 and samples[0][1:] == samples[1][1:] == samples[2][1:]:
            samples.popleft()
        since, first_rows, first_tokens = samples[0]
        seconds = now - since
        return ((rows - first_rows) / seconds, (tokens - first_tokens) / seconds) if seconds > 0 else (0.0, 0.0)


class Progress:
    """Follows one session of a run directory."""

    def __init__(self, directory: os.PathLike[str], clock: Callable[[], float] = time.monotonic) -> None:
        self.state = RunState()
        self._directory = directory
        self._clock = clock
        self._began: float | None = clock()
        #: The time when the speeds of a run that was already running have settled.
        self._settled = clock()
        self._engines: dict[str, EngineView] = {}
        #: Whether workers process the units in this session.
        self._workers = False
        #: Engines that are loaded now.
        self._loaded: set[str] = set()
        #: Engine -> the time when rows began to wait for it to load.
        self._waiting: dict[str, float] = {}
        self._meters: dict[str, _Meter] = {}
        self.arrivals = Arrivals()

    def apply(self, event: Event) -> None:
        """Applies an event; before the first one, all earlier events of the log."""
        if self.state.seq < 0:
            for earlier in earlier_events(self._directory, event):
                self.state.apply(earlier)
        self.state.apply(event)
        self.arrivals.follow(event)
        self._follow_engine(event)
        if isinstance(event, RunStarted | RunResumed | EngineLoaded):
            self.total()  # starts the measurement of speeds

    def begin(self) -> None:
        """Starts measuring speeds now, because the session has already lasted for a while."""
        self._meters.clear()
        self._settled = self._clock() + _SETTLED
        self._began = self._clock() - self.state.work_time.until(datetime.now(UTC))
        self.total()

    def look(self, state: RunState, engines: Mapping[str, EngineView]) -> None:
        """Uses a state that the caller has read, in which the start of the session is unknown."""
        if self._began is not None:
            self._began, self._settled = None, self._clock() + _SETTLED
        self.state = state
        self._engines |= engines

    @property
    def _asked(self) -> dict[str, str]:
        """Node -> engine, for nodes that ask an engine."""
        return {node.id: node.engine for node in self.state.graph.steps if node.kind == NodeKind.STEP}

    def _follow_engine(self, event: Event) -> None:
        engine_of = self._asked
        match event:
            case EngineLoaded():
                self._loaded.add(event.engine)
                self._engines[event.engine] = EngineView(event.engine, f"ready in {event.seconds:.1f} s ({event.backend})")
            case WorkerJoined():
                self._workers = True
            case EngineReleased():
                self._loaded.discard(event.engine)
                self._engines[event.engine] = EngineView(event.engine, "released")
            case UnitRetried() if declared_of(event.node) in engine_of:
                name = event.engine or engine_of[declared_of(event.node)]
                text = f"not answering, retry in {event.delay:.1f} s: {event.message}"
                self._engines[name] = EngineView(name, text, trouble=True)
            case UnitCommitted() if declared_of(event.node) in engine_of:
                name = event.engine or engine_of[declared_of(event.node)]
                if name not in self._engines or self._engines[name].trouble:
                    self._engines[name] = EngineView(name, "ready")
            case _:
                pass

    # -- views

    def nodes(self) -> list[NodeView]:
        """The nodes in the order of the plan."""
        return [self._node(node.id, len(node.path)) for node in self.state.graph.steps]

    def _node(self, name: str, depth: int) -> NodeView:
        counts = self.state.node(name)
        total = _expected_rows(self.state, name)
        answers, in_them = self.arrivals.waiting(name)
        rate, tokens = self._speed(name, counts.taken + answers, counts.usage.completion_tokens + in_them)
        left = _left(self.state, name, rate) if self._clock() >= self._settled else None
        return NodeView(name, depth, counts.taken, total, counts.rejected, rate, tokens, left)

    def _speed(self, name: str, rows: int, tokens: int) -> tuple[float, float]:
        return self._meters.setdefault(name, _Meter()).read(self._clock(), rows, tokens)

    def engines(self) -> list[EngineView]:
        """The engines that the graph names."""
        return [self._engine(name) for name in self.state.graph.engines]

    def _engine(self, name: str) -> EngineView:
        known = self._engines.get(name)
        if known is not None:
            return known
        if not any(self._has_rows(node) for node, engine in self._asked.items() if engine == name):
            return EngineView(name, "not needed yet")
        if self._waits_for_its_turn(name):
            return EngineView(name, "waits for its turn")
        since = self._waiting.setdefault(name, self._clock())
        return EngineView(name, f"loading, {self._clock() - since:.0f} s")

    def _waits_for_its_turn(self, name: str) -> bool:
        """Whether this process has loaded another engine on the same device; workers have separate devices."""
        engines = self.state.graph.engines
        others = [engines[other] for other in self._loaded if other in engines]
        return not self._workers and any(share_device(engines[name], other) for other in others)

    def _has_rows(self, node: str) -> bool:
        source = self.state.graph.source(node)
        return source is None or self.state.node(source).given > 0

    def total(self) -> TotalView:
        """The run as a whole."""
        state, nodes = self.state, self.nodes()
        rate, _ = self._speed("", state.records, 0)
        return TotalView(
            done=state.records,
            total=state.records_to_come,
            rejected=sum(counts.rejected for counts in state.nodes.values()),
            elapsed=None if self._began is None else self._clock() - self._began,
            rate=rate,
            tokens=sum(node.tokens for node in nodes),
            left=seconds_left(state, {node.id: node.rate for node in nodes}) if self._clock() >= self._settled else None,
            arrived=sum(self.arrivals.waiting(node.id)[0] for node in nodes),
            cost=state.bill.cost(),
        )
