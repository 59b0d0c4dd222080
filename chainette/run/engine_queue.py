"""Queues of a local run: one lane per engine, deepest unit first, bounded by rows in flight."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from chainette.records import Unit
from chainette.utils.backoff import backoff

__all__ = ["Lane"]

_FIRST_DELAY = 0.5
_LONGEST_DELAY = 30.0


@dataclass
class Lane:
    """Units that wait for one engine (or for Python), and how many of their rows are in flight."""

    engine: str
    #: Rows that may be in flight; a unit larger than that runs alone.
    budget: int
    clock: Callable[[], float]
    in_flight: int = 0
    #: Since when the engine has not answered; None while it does.
    failing_since: float | None = None
    #: Whether it ever answered in this run.
    answered: bool = False
    _failures: int = 0
    _not_before: float = 0.0
    _heap: list[tuple[int, int, int, Unit]] = field(default_factory=list)
    _pushed: int = 0

    @property
    def idle(self) -> bool:
        """Whether nothing is queued or in flight."""
        return not self._heap and not self.in_flight

    def push(self, unit: Unit, depth: int) -> None:
        """Queues a unit: deeper first, then older roots."""
        self._pushed += 1
        heapq.heappush(self._heap, (-depth, unit.root, self._pushed, unit))

    def take(self) -> Unit | None:
        """The next unit, if the budget and the engine's health allow it."""
        if not self._heap or self.clock() < self._not_before:
            return None
        rows = len(self._heap[0][3].rows)
        if self.in_flight and self.in_flight + rows > self.budget:
            return None
        if self.failing_since is not None and self.in_flight:
            return None
        self.in_flight += rows
        return heapq.heappop(self._heap)[3]

    def succeed(self, unit: Unit) -> None:
        """The engine answered."""
        self.in_flight -= len(unit.rows)
        self.failing_since, self._failures, self.answered = None, 0, True

    def fail(self, unit: Unit, depth: int, silent: float = 0.0) -> float:
        """The engine has not answered for `silent` seconds: the unit goes back; returns seconds until the next try."""
        self.in_flight -= len(unit.rows)
        self.push(unit, depth)
        if self.failing_since is None:
            self.failing_since = self.clock() - silent
        if self.clock() < self._not_before:
            return self._not_before - self.clock()
        delay = backoff(self._failures, _FIRST_DELAY, _LONGEST_DELAY) * random.uniform(0.75, 1.25)  # noqa: S311
        self._failures += 1
        self._not_before = self.clock() + delay
        return delay
