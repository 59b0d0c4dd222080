"""The patience of a run in a fleet with engines that do not answer, or that refuse it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from chainette.core.plan import Plan
from chainette.errors import RunStopped
from chainette.fleet.protocol.member_fields import Member
from chainette.fleet.protocol.run_fields import WITHDREW, RunInfo
from chainette.io.rundir.event_types import UnitRetried

__all__ = ["Patience"]


@dataclass
class Patience:
    """One run's, with the engines of its plan."""

    plan: Plan
    #: Seconds.
    limit: float
    #: Node -> when its engine stopped answering, while nothing becomes durable.
    _failing: dict[str, float] = field(default_factory=dict)
    #: Engine -> when the last of its workers withdrew.
    _unserved: dict[str, float] = field(default_factory=dict)

    def renew(self) -> None:
        """Rows became durable: every engine gets its full time again."""
        self._failing.clear()

    def require_servers(self, info: RunInfo, members: Mapping[str, Member]) -> None:
        """Stops a run if an engine's live workers have all refused it for too long.

        Raises:
            RunStopped: they have.
        """
        withdrawn = {name: words for name, words in info.refusals.items() if WITHDREW in words}
        for engine in self.plan.engines:
            servers = [name for name, member in members.items() if member.is_worker and engine in member.engines]
            if not servers or not all(name in withdrawn for name in servers):
                self._unserved.pop(engine, None)
                continue
            waited = time.monotonic() - self._unserved.setdefault(engine, time.monotonic())
            if waited > self.limit:
                raise RunStopped(f"no live worker serves {engine!r} for {waited:.0f} s: {withdrawn[servers[0]]}")

    def spend(self, event: UnitRetried) -> None:
        """Counts the time in which an engine gave a unit back.

        Raises:
            RunStopped: the engine refuses the step, or it has not answered for too long.
        """
        if event.refused:
            raise RunStopped(f"step {event.node!r}: {event.message}")
        if event.alone:
            return
        waited = time.monotonic() - self._failing.setdefault(event.node, time.monotonic())
        if waited > self.limit:
            raise RunStopped(f"the engine of {event.node!r} has not answered for {waited:.0f} s: {event.message}")
