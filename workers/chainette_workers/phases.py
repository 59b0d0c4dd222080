"""Phases of a run in a fleet: which engines' units wait, where workers would swap engines more than that is worth.

All rows go through one engine's nodes, then through the next one's (SEMANTICS, Sizes). A phase is an epoch: at its end
what later phases need is in the shards, and is admitted from there. Nothing depends on the choice but time, so it may be
made anew at any moment, by what the workers say of themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from chainette.core.plan import Plan

__all__ = ["Phases"]

#: The most of its time that a worker may spend on swaps before runs go in phases.
_MOST_SWAPPING = 0.05


@dataclass
class Phases:
    """One run's."""

    plan: Plan
    #: How many were gone through, over all sessions.
    number: int = 0
    #: Whether the run goes in phases; once it does, it does so to its end, or until every engine has workers of its own.
    begun: bool = False

    @property
    def words(self) -> str:
        """That the run goes in phases, and why."""
        order = " and ".join(dict.fromkeys(self.plan.phases))
        return f"{order} share workers, which swap them too often: the run goes in phases, one engine after the other"

    def barred(self, workers: Iterable[Mapping[str, str]]) -> frozenset[str]:
        """Engines whose units wait for a later phase. `workers` is what those that live say."""
        order = self.plan.phases
        if len(order) < 2:
            return frozenset()
        contended, shared, own = frozenset(order), set[str](), set[str]()
        for words in workers:
            served = contended & {*words.get("engines", "").split(",")}
            if len(served) > 1:
                shared |= served
                self.begun = self.begun or float(words.get("swapping", 0)) > _MOST_SWAPPING
            else:
                own |= served
        return frozenset(shared - own - {self.engine}) if self.begun else frozenset()

    @property
    def engine(self) -> str:
        """Whose phase it is."""
        return self.plan.phases[self.number % len(self.plan.phases)]

    def go_on(self) -> None:
        """The next phase, with every row that waits for one."""
        self.number += 1
