"""When a run will be done, at the speed of the last minutes."""

from __future__ import annotations

import math
from collections import deque

__all__ = ["Forecast"]

#: Seconds of the past that count.
_MEMORY = 300.0


class Forecast:
    """Fed with how much is done; says how long the rest takes at the speed of the last five minutes."""

    def __init__(self) -> None:
        self._past: deque[tuple[float, int]] = deque()

    def see(self, now: float, done: int) -> None:
        """Records how much is done at a moment, in seconds of any monotonic clock."""
        if self._past and done < self._past[-1][1]:  # an epoch was begun anew
            self._past.clear()
        self._past.append((now, done))
        while len(self._past) > 2 and self._past[1][0] <= now - _MEMORY:
            self._past.popleft()

    def seconds(self, expected: int | None) -> float:
        """Seconds until `expected` are done; NaN if nothing has moved yet, or if `expected` is unknown."""
        if expected is None or not self._past:
            return math.nan
        (began, before), (now, done) = self._past[0], self._past[-1]
        if done >= expected:
            return 0.0
        speed = (done - before) / (now - began) if now > began else 0.0
        return (expected - done) / speed if speed else math.nan
