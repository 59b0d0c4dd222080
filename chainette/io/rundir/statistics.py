"""Statistics of a run over time, folded from its events.

Memory depends on the chain, not on the number of rows or events. Time is working time: the seconds in which a process
worked on the run, without the gaps before a resume.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime

from chainette.io.rundir.event_types import (
    AnyEvent,
    RunResumed,
    UnitCommitted,
    UnitSplit,
    WorkerJoined,
    WorkerLost,
    WorkerRefused,
)
from chainette.io.rundir.progress import seconds_left
from chainette.io.rundir.run_state import RunState, Status
from chainette.records import declared_of

__all__ = ["COMPLETION", "PROMPT", "Figures", "Latency", "Stretch", "Timeline", "figures"]

#: The names of series in a timeline that do not belong to a node.
PROMPT, COMPLETION = "prompt tokens", "answer tokens"

#: The most bins of a timeline; when it is full, pairs of bins are merged.
_BINS = 72
#: The initial seconds of a bin.
_FINEST = 1 / 64
#: The ratio between the latencies of neighbouring classes of a histogram.
_STEP = 1.1
#: The most refusals that are kept; the oldest ones stay.
_REFUSALS = 20


@dataclass(frozen=True)
class Stretch:
    """One epoch, from its first event (a start, resume or phase) to its last."""

    epoch: int
    began: str
    ended: str
    #: The number of rows that reached the end of the chain.
    rows: int
    #: The number of roots that were completed.
    roots: int

    @property
    def seconds(self) -> float:
        return max(0.0, _moment(self.ended) - _moment(self.began))


@dataclass(frozen=True)
class Latency:
    """Seconds of a request inside the engine. For each unit, the mean of its requests is used, weighted by their number."""

    requests: int
    mean: float
    median: float
    p95: float
    slowest: float


@dataclass
class Timeline:
    """Amounts over working time, in bins of equal width."""

    width: float = _FINEST
    bins: list[dict[str, float]] = field(default_factory=list)

    def add(self, at: float, amounts: Mapping[str, float]) -> None:
        """Adds amounts at a time, in seconds from the start."""
        while at >= self.width * _BINS:
            self._halve()
        place = int(at / self.width)
        self.bins.extend({} for _ in range(place + 1 - len(self.bins)))
        _add(self.bins[place], amounts)

    def _halve(self) -> None:
        pairs = range(0, len(self.bins), 2)
        for place in pairs:
            for other in self.bins[place + 1 : place + 2]:
                _add(self.bins[place], other)
        self.bins = [self.bins[place] for place in pairs]
        self.width *= 2

    def rates(self, name: str) -> list[tuple[float, float]]:
        """(seconds from the start to the middle of a bin, amount per second) for each bin."""
        return [((place + 0.5) * self.width, found.get(name, 0) / self.width) for place, found in enumerate(self.bins)]


@dataclass
class _Spread:
    """A histogram of latencies, in which each class is a tenth wider than the previous one."""

    classes: dict[int, int] = field(default_factory=dict)
    requests: int = 0
    seconds: float = 0.0
    slowest: float = 0.0

    def add(self, requests: int, seconds: float) -> None:
        mean = seconds / requests
        number = math.floor(math.log(max(mean, 1e-6), _STEP))
        self.classes[number] = self.classes.get(number, 0) + requests
        self.requests += requests
        self.seconds += seconds
        self.slowest = max(self.slowest, mean)

    def quantile(self, share: float) -> float:
        """The latency at a share of all requests, exact to within a twentieth."""
        left = share * self.requests
        for number, requests in sorted(self.classes.items()):
            left -= requests
            if left <= 0:
                return min(self.slowest, float(_STEP ** (number + 0.5)))
        return self.slowest

    def latency(self) -> Latency:
        mean = self.seconds / self.requests
        return Latency(self.requests, mean, self.quantile(0.5), self.quantile(0.95), self.slowest)


@dataclass(frozen=True)
class Figures:
    """The statistics of a run, up to its last event."""

    state: RunState
    stretches: list[Stretch]
    #: Rows out by node id, and tokens.
    timeline: Timeline
    #: Node id -> latency, without nodes that asked no engine.
    latencies: dict[str, Latency]
    workers_joined: int
    workers_lost: int
    #: The reasons why workers did not serve the run.
    refusals: list[str]
    units_split: int

    @property
    def seconds(self) -> float:
        """The working time in seconds."""
        return sum(stretch.seconds for stretch in self.stretches)

    @property
    def rows_per_second(self) -> float:
        """Records of the input that were completed per second of working time."""
        return self.state.records / self.seconds if self.seconds else 0.0

    @property
    def seconds_left(self) -> float | None:
        """Seconds of working time to the end at the rate so far; None if unknown, or if nothing is left."""
        if self.state.status in (Status.FINISHED, Status.CANCELLED) or not self.seconds:
            return None
        nodes = [node.id for node in self.state.graph.steps]
        return seconds_left(self.state, {node: self.state.node(node).taken / self.seconds for node in nodes})

    def resumes(self) -> list[float]:
        """The seconds of working time at which the run was resumed, or continued in another phase."""
        found, at = [], 0.0
        for stretch in self.stretches[:-1]:
            at += stretch.seconds
            found.append(at)
        return found


def figures(events: Iterable[AnyEvent]) -> Figures:
    """The statistics of a run, from its events in the order of the log."""
    fold = _Fold()
    for event in events:
        fold.take(event)
    return fold.figures()


@dataclass
class _Fold:
    state: RunState = field(default_factory=RunState)
    stretches: list[Stretch] = field(default_factory=list)
    timeline: Timeline = field(default_factory=Timeline)
    spreads: dict[str, _Spread] = field(default_factory=dict)
    joined: set[str] = field(default_factory=set)
    lost: int = 0
    refusals: list[str] = field(default_factory=list)
    splits: int = 0
    #: Working time before the current stretch.
    before: float = 0.0

    def take(self, event: AnyEvent) -> None:
        self.state.apply(event)
        self._clock(event)
        match event:
            case UnitCommitted():
                self._commit(event)
            case UnitSplit():
                self.splits += 1
            case WorkerJoined():
                self.joined.add(event.worker)
            case WorkerLost():
                self.lost += 1
            case WorkerRefused() if len(self.refusals) < _REFUSALS and event.reason not in self.refusals:
                self.refusals.append(event.reason)
            case _:
                pass

    def _clock(self, event: AnyEvent) -> None:
        if not self.stretches or isinstance(event, RunResumed):
            self.before += self.stretches[-1].seconds if self.stretches else 0.0
            self.stretches.append(Stretch(event.epoch, event.at, event.at, rows=0, roots=0))
        elif event.at > self.stretches[-1].ended:
            self.stretches[-1] = replace(self.stretches[-1], ended=event.at)

    def _commit(self, event: UnitCommitted) -> None:
        usage, stretch = event.usage, self.stretches[-1]
        amounts = {declared_of(event.node): event.given, PROMPT: usage.prompt_tokens, COMPLETION: usage.completion_tokens}
        self.timeline.add(self.before + stretch.seconds, {name: amount for name, amount in amounts.items() if amount})
        if usage.requests:
            self.spreads.setdefault(declared_of(event.node), _Spread()).add(usage.requests, usage.seconds)
        if event.root_done:
            done = replace(stretch, rows=stretch.rows + event.root_done.finished, roots=stretch.roots + 1)
            self.stretches[-1] = done

    def figures(self) -> Figures:
        return Figures(
            state=self.state,
            stretches=self.stretches,
            timeline=self.timeline,
            latencies={node: spread.latency() for node, spread in self.spreads.items()},
            workers_joined=len(self.joined),
            workers_lost=self.lost,
            refusals=self.refusals,
            units_split=self.splits,
        )


def _moment(at: str) -> float:
    return datetime.fromisoformat(at).timestamp()


def _add(amounts: dict[str, float], more: Mapping[str, float]) -> None:
    for name, amount in more.items():
        amounts[name] = amounts.get(name, 0) + amount
