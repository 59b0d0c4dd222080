"""What a worker holds, lane by lane: units that run within a budget, and units that were claimed ahead of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

import anyio

from chainette.fleet.protocol.states import Claim, Turn

__all__ = ["Hands", "Lane"]


@dataclass
class Lane:
    """The units of one engine, of functions, or of joins. First come, first in."""

    #: What may run at once; None where it is not known before the engine is open.
    budget: int | None
    #: Whether a unit weighs one, whatever its rows.
    by_unit: bool = False
    #: Weight of what runs.
    running: int = 0
    #: No unit is claimed before this time: the engine did not answer.
    rests_until: float = 0.0
    failures: int = 0
    _ahead: deque[Claim] = field(default_factory=deque)

    def weight(self, claim: Claim) -> int:
        return 1 if self.by_unit else len(claim.unit.rows)

    def has_room(self, rows: int) -> bool:
        """Whether a unit of so many rows could begin now."""
        return not self._ahead and self._fits(1 if self.by_unit else rows)

    @property
    def takes_ahead(self) -> bool:
        """Whether a unit more may be claimed to wait here: a quarter of the budget waits, and one unit at least."""
        waiting = sum(self.weight(claim) for claim in self._ahead)
        return not self._ahead or 4 * waiting < (self.budget or 0)

    @property
    def idle(self) -> bool:
        return not self.running and not self._ahead

    def _fits(self, weight: int) -> bool:
        # a unit that is larger than the budget runs when nothing else does
        return self.budget is not None and (not self.running or self.running + weight <= self.budget)


@dataclass
class Hands:
    """Every unit that the worker holds, until Redis has answered what became of it."""

    claims: dict[str, Claim] = field(default_factory=dict)
    rows: int = 0
    #: A unit runs alone, or is about to: nothing else is claimed.
    alone: bool = False
    _changed: anyio.Event = field(default_factory=anyio.Event)

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
        lane._ahead.popleft()
        lane.running += lane.weight(claim)
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
        """Wakes whoever waits for a change."""
        self._changed.set()
        self._changed = anyio.Event()

    async def change(self, seconds: float | None = None) -> None:
        """Waits until something begins, ends, or finds its budget; so many seconds at most."""
        with anyio.move_on_after(seconds):
            await self._changed.wait()
