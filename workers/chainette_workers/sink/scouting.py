"""One root goes ahead of the others: a server that may refuse the chain's steps is asked by one worker before all of them ask.

So a setting it refuses costs a fleet few requests. A slow server holds the other roots up for at most two seconds, counted from
the arrival of the first worker.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from chainette.core.plan import Plan
from chainette.engine.backends import backend_class
from chainette.fleet.protocol.member_fields import Member

__all__ = ["Scouting"]

#: Seconds the other roots wait for results of the first one.
_AHEAD = 2.0


@dataclass
class Scouting:
    """The admission of one session's first root."""

    plan: Plan
    clock: Callable[[], float] = time.monotonic
    #: Whether nothing of the session has become durable yet.
    _is_first: bool = field(init=False)
    _went_ahead: bool = field(default=False, init=False)
    #: When the first worker was seen.
    _served_since: float | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self._is_first = any(backend_class(config.backend).may_refuse for config in self.plan.engines.values())

    def see(self, members: Iterable[Member]) -> None:
        """These processes live."""
        if self._served_since is None and any(member.is_worker for member in members):
            self._served_since = self.clock()

    @property
    def is_out(self) -> bool:
        """Whether the others wait for the first root."""
        return self._is_first and self._went_ahead

    def answered(self) -> None:
        """Something became durable."""
        self._is_first = False

    def admit(self, step: Callable[[], bool]) -> bool | None:
        """Admits the root that goes ahead, by `step`, and no other; returns None if all roots may be admitted."""
        if self._served_since is not None and self.clock() > self._served_since + _AHEAD:
            self._is_first = False
        if not self._is_first:
            return None
        if self._went_ahead:
            return False
        self._went_ahead = step()
        return self._went_ahead
