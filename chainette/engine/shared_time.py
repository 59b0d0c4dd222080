"""The seconds in which an engine works, divided among its requests."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["SharedTime"]


@dataclass
class SharedTime:
    """Divides each second evenly among the requests in flight. The shares add up to the seconds with any request in flight.

    A request that is alone for two seconds has used two; one of four, half a second.
    """

    in_flight: int = 0
    #: Requests that ended, and the seconds they used.
    _ended: int = 0
    _used: float = 0.0
    #: Seconds a request in flight since the start would have used.
    _each: float = 0.0
    _at: float = 0.0

    def begin(self, now: float, requests: int) -> float:
        """So many requests are on the way; returns the mark that `end` needs."""
        self._advance(now)
        self.in_flight += requests
        return self._each

    def end(self, now: float, mark: float) -> float:
        """One request is answered, or given up; returns the seconds it used."""
        self._advance(now)
        self.in_flight -= 1
        used = self._each - mark
        self._ended, self._used = self._ended + 1, self._used + used
        return used

    @property
    def per_request(self) -> float:
        """The mean of the seconds a request has used; 0 as long as none has ended."""
        return self._used / self._ended if self._ended else 0.0

    def _advance(self, now: float) -> None:
        if self.in_flight:
            self._each += (now - self._at) / self.in_flight
        self._at = now
