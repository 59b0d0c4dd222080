"""Phases of a run in a fleet: if workers swap engines too often, the units of some engines wait.

All rows go through one engine's nodes, then through the next one's (SEMANTICS, Sizes). A phase is an epoch: at its end
the shards hold the rows that later phases need, and they are admitted from there. The choice affects only time, so it may be
made again at any moment, from the reports of the workers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from chainette.core.plan import Plan
from chainette.fleet.protocol.member_fields import Member

__all__ = ["Phases"]

#: The most of its time that a worker may spend on swaps before runs go in phases.
_MOST_SWAPPING = 0.05


@dataclass
class Phases:
    """One run's."""

    plan: Plan
    #: The number of completed phases, over all sessions.
    number: int = 0
    #: Whether the run goes in phases; once it does, it does so to the end.
    begun: bool = False
    #: For each worker with several engines: those that no worker serves alone, in the order in which rows need them.
    _turns: list[list[str]] = field(default_factory=list)

    def look(self, members: Iterable[Member]) -> None:
        """Decides again, from the reports of the live processes."""
        serving = [(member, {*member.engines} & {*self.plan.phases}) for member in members]
        own = {name for _, names in serving if len(names) == 1 for name in names}
        shared = [(member, names - own) for member, names in serving if len(names) > 1]
        self.begun = self.begun or any(member.swapping > _MOST_SWAPPING for member, _ in shared)
        self._turns = [[name for name in self.plan.phases if name in names] for _, names in shared if names]

    @property
    def barred(self) -> frozenset[str]:
        """Engines whose units wait for a later phase; never all of a worker's."""
        turns = self._turns if self.begun else []
        every = {name for names in turns for name in names}
        return frozenset(every - {names[self.number % len(names)] for names in turns})

    @property
    def words(self) -> str:
        """The message that the run goes in phases, with the reason."""
        order = " and ".join(dict.fromkeys(self.plan.phases))
        return f"{order} share workers, which swap them too often: the run goes in phases, one engine after the other"

    def go_on(self) -> None:
        """The next phase, with every row that waits for one."""
        self.number += 1
