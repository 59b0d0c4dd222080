"""A unit in a worker's hands: its claim, its finished rows, and the commit on its way."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace

import anyio

from chainette.core.plan import Plan
from chainette.fleet.protocol.queue_values import Claim
from chainette.fleet.protocol.run_fields import RunInfo
from chainette.hooks import Hook
from chainette.records import step_of
from chainette.run.in_flight import Lane
from chainette.run.unit_result import UnitResult

__all__ = ["HeldUnit", "Sending"]

#: Seconds a finished row waits for the rest of its unit.
_PART = 1.0


@dataclass
class Sending:
    """A commit of some rows (None: all that are left)."""

    call: Callable[[], bool]
    rows: Collection[str] | None
    tries: int = 0

    def __call__(self) -> bool:
        self.tries += 1
        return self.call()


@dataclass(eq=False)
class HeldUnit:
    """A unit in hand."""

    info: RunInfo
    plan: Plan
    hook: Hook
    lane: Lane
    #: Holds the rows that no part has ended yet.
    claim: Claim
    #: Whether it was claimed before there was room for it.
    ahead: bool = False
    #: The rows that have finished; None for a join, which ends as a whole.
    result: UnitResult | None = None
    #: When the work on it began, by the lane's clock.
    began: float = 0.0
    #: Whether the unit is no longer the worker's; nothing more is done about it.
    lost: bool = False
    #: The work on the unit.
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    #: One part of a unit is on its way at a time.
    sending: asyncio.Lock = field(default_factory=asyncio.Lock)
    #: The commit on its way; it is repeated as it is until the queue answers.
    unanswered: Sending | None = None

    @property
    def node(self) -> str:
        """The node (or fork) that the unit is of."""
        return step_of(self.claim.unit.node)

    @property
    def told_engine(self) -> str:
        """The engine, if it is one of several of the step."""
        return "" if self.result is None else self.result.node.told_engine

    def lose(self) -> None:
        """The unit now belongs to another worker: its requests are cancelled."""
        self.lost = True
        self.scope.cancel()

    def handed_back(self) -> Claim:
        """The claim, with the work already spent on its remaining rows."""
        rest = {} if self.result is None else self.result.hand_back()
        return replace(self.claim, unfinished={**self.claim.unfinished, **rest})

    @property
    def has_waited(self) -> bool:
        """Whether finished rows have waited long enough for the rest of the unit."""
        return self.result is not None and self.result.age() >= _PART

    @property
    def has_part(self) -> bool:
        """Whether finished rows are to be committed now."""
        return self.has_waited and not self.sending.locked()
