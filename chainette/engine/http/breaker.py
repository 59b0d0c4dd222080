"""Breaker: takes an endpoint out of use while it fails, and lets one request at a time probe it.

It holds no task and no timer. Guarantee: while it is open, only one probe passes.
"""

from __future__ import annotations

from collections import deque
from enum import StrEnum

from chainette.engine.http.timing import Policy, Timing
from chainette.utils.backoff import backoff

__all__ = ["Breaker", "State"]


class State(StrEnum):
    """Whether requests may pass."""

    #: all pass
    CLOSED = "closed"
    #: none passes until the cooldown is over, then one
    OPEN = "open"
    #: one is in flight; its result decides
    PROBING = "probing"


class Breaker:
    """Opens when too many of the recent requests failed, or at once on `trip`."""

    def __init__(self, policy: Policy, timing: Timing) -> None:
        self._policy = policy
        self._timing = timing
        self._recent: deque[bool] = deque(maxlen=policy.window)
        self._trips = 0
        self.state = State.CLOSED
        #: When an open breaker lets a probe pass.
        self.probe_at = 0.0

    def admits(self) -> bool:
        """Whether a request may pass now."""
        return self.state is State.CLOSED or (self.state is State.OPEN and self._timing.clock() >= self.probe_at)

    def enter(self) -> bool:
        """Lets an admitted request pass; true if it is the probe."""
        if self.state is State.CLOSED:
            return False
        self.state = State.PROBING
        return True

    def succeeded(self, probe: bool) -> None:
        """The endpoint answered."""
        if probe:
            self.state, self._trips = State.CLOSED, 0
            self._recent.clear()
        elif self.state is State.CLOSED:
            self._recent.append(True)

    def failed(self, probe: bool) -> None:
        """The endpoint failed. Failures of requests sent before the breaker opened do not count."""
        if probe:
            self.trip()
        elif self.state is State.CLOSED:
            self._recent.append(False)
            if self._too_many():
                self.trip()

    def abandoned(self, probe: bool) -> None:
        """The request ended without a result; the next one may probe."""
        if probe:
            self.state = State.OPEN

    def trip(self) -> None:
        """Opens, for longer each time until a probe succeeds."""
        rest = backoff(self._trips, self._policy.cooldown, self._policy.cooldown_cap)
        self.probe_at = self._timing.clock() + rest * (0.5 + self._timing.random() / 2)
        self.state = State.OPEN
        self._trips += 1
        self._recent.clear()

    def _too_many(self) -> bool:
        failures = self._recent.count(False)
        return len(self._recent) >= self._policy.least_seen and failures >= self._policy.error_share * len(self._recent)
