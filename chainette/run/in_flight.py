"""The units a worker holds, lane by lane: those that run within a budget, and those claimed ahead of it."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import inf
from time import monotonic

from chainette.fleet.protocol.queue_values import Claim, Turn
from chainette.utils.backoff import backoff

__all__ = ["InFlight", "Lane"]

#: Seconds an engine rests after a failure: at first, and at most; give or take a quarter.
_FIRST_REST, _LONGEST_REST = 0.5, 30.0


@dataclass
class Lane:
    """The units of one engine, of functions, or of joins. First come, first in."""

    #: The weight that may run at once; None until the engine is open. A heavier unit runs alone.
    budget: int | None
    #: Whether every unit weighs one.
    by_unit: bool = False
    clock: Callable[[], float] = monotonic
    #: Weight of the units that run; the rows among them that wait for the answers of others, and leave room in the engine.
    running: int = 0
    waiting: int = 0
    #: No unit is claimed before this time: the engine did not answer.
    rests_until: float = 0.0
    #: When the engine's silence began; None while it answers.
    failing_since: float | None = None
    #: When requests began to fail without any answer, while it is unknown whether the engine is silent.
    doubted_since: float | None = None
    #: When the engine last answered; -inf if it never did.
    answered_at: float = -inf
    _failures: int = 0
    _ahead: deque[Claim] = field(default_factory=deque)

    def weight(self, claim: Claim) -> int:
        return 1 if self.by_unit else len(claim.unit.rows)

    def has_room(self, rows: int) -> bool:
        """Whether a unit of so many rows could begin now."""
        return not self._ahead and not self.rests and self._fits(1 if self.by_unit else rows)

    @property
    def takes_ahead(self) -> bool:
        """Whether a unit may be claimed to wait here: one, for which the engine opens. Later, a unit that waited would take a
        call to claim it and another to begin it."""
        return self.budget is None and not self._ahead and not self.rests

    @property
    def room(self) -> int:
        """Rows that small units may have together if they are claimed in one call; 0 takes one unit a call."""
        if self.by_unit or self.failing_since is not None:
            return 0
        return (self.budget or 0) - self.running + self.waiting

    @property
    def has_answered(self) -> bool:
        return self.answered_at > -inf

    @property
    def idle(self) -> bool:
        return not self.running and not self._ahead

    @property
    def rests(self) -> bool:
        return self.clock() < self.rests_until

    def succeed(self) -> None:
        """The engine answered, so it need not rest."""
        self.failing_since, self.rests_until, self._failures, self.answered_at = None, 0.0, 0, self.clock()
        self.doubted_since = None

    def doubt(self) -> None:
        """Single requests failed. That alone does not make the engine rest: others may be answered."""
        if self.doubted_since is None:
            self.doubted_since = self.clock()

    def fail(self, silent: float = 0.0) -> float:
        """The engine has not answered for `silent` seconds: it rests, longer each time. Returns seconds until the next try.

        A failure while it rests is one more answer to the same try, and prolongs nothing.
        """
        now = self.clock()
        if self.failing_since is None:
            self.failing_since = min(now - silent, now if self.doubted_since is None else self.doubted_since)
        if not self.rests:
            wait = backoff(self._failures, _FIRST_REST, _LONGEST_REST)
            self.rests_until = now + wait * random.uniform(0.75, 1.25)  # noqa: S311 - so that workers do not try in step
            self._failures += 1
        return self.rests_until - now

    def rest(self, seconds: float) -> float:
        """Nothing is claimed for so many seconds; returns them."""
        self.rests_until = max(self.rests_until, self.clock() + seconds)
        return seconds

    def _fits(self, weight: int) -> bool:
        if self.budget is None or not self.running:
            return self.budget is not None
        # a silent engine is tried with one unit
        return self.failing_since is None and self.running - self.waiting + weight <= self.budget


@dataclass
class InFlight:
    """Every unit the worker holds, until the queue has accepted or refused its outcome."""

    claims: dict[str, Claim] = field(default_factory=dict)
    rows: int = 0
    #: A unit runs alone, or is about to: nothing else is claimed.
    alone: bool = False
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def __iter__(self) -> Iterator[Claim]:
        return iter([*self.claims.values()])

    def take(self, lane: Lane, claim: Claim) -> None:
        """A unit was claimed; it waits in its lane."""
        self.claims[claim.job] = claim
        self.rows += len(claim.unit.rows)
        self.alone = claim.turn is not Turn.JOB
        lane._ahead.append(claim)

    async def begin(self, lane: Lane, claim: Claim) -> None:
        """Waits until the lane has room and nothing that came earlier waits."""
        while lane._ahead[0] is not claim or not lane._fits(lane.weight(claim)):
            await self.change()
        self.start(lane, claim)

    def start(self, lane: Lane, claim: Claim) -> None:
        """The unit begins; it is the first that waits, and there is room for it."""
        lane._ahead.popleft()
        lane.running += lane.weight(claim)
        self.tell()

    def shorten(self, lane: Lane, claim: Claim, rest: Claim) -> None:
        """Some rows of a unit that runs are out of the worker's hands; `rest` has the others."""
        self.claims[claim.job] = rest
        self.rows -= len(claim.unit.rows) - len(rest.unit.rows)
        lane.running -= lane.weight(claim) - lane.weight(rest)
        self.tell()

    def wait(self, lane: Lane, rows: int) -> None:
        """The number of running rows that wait for the answers of others changes by so many."""
        lane.waiting += rows
        self.tell()

    def drop(self, lane: Lane, claim: Claim) -> None:
        """The unit is out of the worker's hands."""
        if claim in lane._ahead:
            lane._ahead.remove(claim)
        else:
            lane.running -= lane.weight(claim)
        if self.claims.get(claim.job) is claim:
            del self.claims[claim.job]
        self.rows -= len(claim.unit.rows)
        self.alone = self.alone and bool(self.claims)
        self.tell()

    def tell(self) -> None:
        """Wakes everyone who waits for a change."""
        self._changed.set()
        self._changed = asyncio.Event()  # anyio looks for its loop first, which takes as long as everything else here

    async def change(self, seconds: float | None = None) -> None:
        """Waits until a unit begins or ends, or a lane gets its budget; at most so many seconds."""
        changed = self._changed
        if seconds is None:
            await changed.wait()
            return
        timer = asyncio.get_running_loop().call_later(seconds, self.tell)  # a scope with a deadline costs ten times as much
        try:
            await changed.wait()
        finally:
            timer.cancel()
