"""Limiter: the number of requests in flight, learned from the server's behaviour (AIMD).

Guarantees: never more than `ceiling`, never less than one; slots are given in the order of the calls;
every operation costs O(1), amortised. One event loop only.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from statistics import median

__all__ = ["LatencyWatch", "Limiter"]

#: A refusal for load halves the limit, a slow spell takes a quarter.
_REFUSED, _SLOW = 0.5, 0.75
#: Answers per check of the latency.
_SPELL = 16
#: A spell this many times slower than the best one is a slow spell.
_FAR_ABOVE = 4.0


class LatencyWatch:
    """Notices when answers become far slower than before.

    Compares the median of each 16 answers with the lowest such median, which drifts towards recent
    medians, so that a step with longer prompts is learned after a few spells and not taken for load.
    """

    def __init__(self) -> None:
        self._spell: list[float] = []
        self._best: float | None = None

    def is_slow_after(self, pace: float) -> bool:
        """Counts one answer; true if it ends a slow spell."""
        self._spell.append(pace)
        if len(self._spell) < _SPELL:
            return False
        now = median(self._spell)
        self._spell.clear()
        best, self._best = self._best, self._learned(now)
        return best is not None and now > _FAR_ABOVE * best

    def _learned(self, now: float) -> float:
        if self._best is None or now < self._best:
            return now
        return self._best + (now - self._best) / 8


class Limiter:
    """Slots for requests: one more per round of successes, half as many after a refusal.

    A signal counts only if its request was sent after the last cut, so that one burst of refusals
    cuts once.
    """

    def __init__(self, ceiling: int, clock: Callable[[], float]) -> None:
        self._ceiling = ceiling
        self._clock = clock
        self._limit = float(ceiling)
        self._in_flight = 0
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._pace = LatencyWatch()
        self._cut_at = float("-inf")

    @property
    def limit(self) -> int:
        return int(self._limit)

    @property
    def in_flight(self) -> int:
        return self._in_flight

    async def acquire(self) -> None:
        """Takes a slot, or waits for one after all earlier callers."""
        if not self._waiters and self._in_flight < self.limit:
            self._in_flight += 1
            return
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                self.release()
            raise

    def release(self) -> None:
        """Gives a slot back, and hands out free slots."""
        self._in_flight -= 1
        while self._waiters and self._in_flight < self.limit:
            waiter = self._waiters.popleft()
            if not waiter.done():
                self._in_flight += 1
                waiter.set_result(None)

    def succeeded(self, sent_at: float, pace: float) -> None:
        """An answer arrived; `pace` is its latency in a unit that makes short and long answers comparable."""
        if self._pace.is_slow_after(pace):
            self._cut(sent_at, _SLOW)
        else:
            self._limit = min(self._limit + 1 / self._limit, float(self._ceiling))

    def overloaded(self, sent_at: float) -> None:
        """The server reported overload, or took longer than a request may."""
        self._cut(sent_at, _REFUSED)

    def _cut(self, sent_at: float, factor: float) -> None:
        if sent_at >= self._cut_at:
            self._limit = max(1.0, self._limit * factor)
            self._cut_at = self._clock()
