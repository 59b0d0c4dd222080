"""One look at a fleet for many callers, at most once a second."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from chainette.fleet.redis.fleet_view import Fleet, look

if TYPE_CHECKING:
    import redis

__all__ = ["CachedView"]

#: Seconds a look is good for.
_FRESH = 1.0


class CachedView:
    """Looks at a fleet at most once a second, for any number of callers. Thread-safe."""

    def __init__(self, connection: redis.Redis, clock: Callable[[], float] = time.monotonic) -> None:
        self._redis = connection
        self._clock = clock
        self._lock = threading.Lock()
        self._seen: Fleet | None = None
        self._seen_at = -math.inf

    def look(self) -> Fleet | None:
        """The fleet as it is now, or was a second ago; None if Redis does not answer."""
        with self._lock:
            if self._clock() >= self._seen_at + _FRESH:
                self._seen, self._seen_at = self._try(), self._clock()
            return self._seen

    def _try(self) -> Fleet | None:
        import redis

        try:
            return look(self._redis)
        except redis.RedisError:
            return None
