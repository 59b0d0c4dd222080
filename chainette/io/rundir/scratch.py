"""The writer of a run that has no directory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from chainette.core.durable import Durable
from chainette.core.plan import Plan
from chainette.engine.budget import Amounts, Budget
from chainette.io.rundir.accepted_rows import AcceptedRows
from chainette.io.rundir.live_roots import Admitted, Commit, Committed, InOrder, Item, LiveRoots, Suspended
from chainette.io.rundir.logged_roots import LoggedRoots
from chainette.records import Row

__all__ = ["Scratch"]


class Scratch:
    """Keeps the outcomes of incomplete roots in memory, also while they wait for a later phase, and passes finished rows on."""

    #: Nothing was spent before the run.
    used: Mapping[str, Amounts] = MappingProxyType({})

    def __init__(self, plan: Plan, accept: int | None = None, budget: Budget | None = None) -> None:
        self.budget = budget
        self._roots = LiveRoots(plan)
        self._suspended: dict[int, Durable] = {}
        #: Complete roots, as the log of a directory would have them.
        self._complete = LoggedRoots()
        self.accepted = None if accept is None else AcceptedRows(accept)
        self._in_order = None if self.accepted is None else InOrder(self.accepted, self._roots)

    def is_done(self, root: int) -> bool:
        """Whether a root is complete, so that no later phase admits it again."""
        return self._complete.is_done(root)

    def readmit(self) -> None:
        """See `RunWriter.readmit`."""
        waiting = [] if self._in_order is None else self._in_order.leave()
        self._suspended |= {root: self._roots.suspend(root) for root in waiting}

    def commit(self, group: Sequence[Item]) -> Committed:
        """Applies a group without writing anything."""
        finished: list[list[Row]] = []
        for item in group:
            match item:
                case Admitted():
                    self._roots.open(item)
                case Suspended():
                    self._suspended[item.root] = self._roots.suspend(item.root)
                case Commit():
                    self._roots.add(item)
                    if item.done and self._in_order is not None:
                        self._in_order.wait(item.unit.root)
                    elif item.done:
                        finished.append(self._roots.close(item.unit.root)[0])
                        self._complete.mark(item.unit.root, done=True)
                case _:
                    pass
        if self._in_order is not None:
            for root, rows, done in self._in_order.closed():
                finished.append(rows)
                self._complete.mark(root, done=True)
                self._in_order.accepted.take(done)
        return Committed(finished, [])

    def durable(self, root: int) -> Durable | None:
        """The outcomes of a root from earlier phases."""
        return self._suspended.pop(root, None)
