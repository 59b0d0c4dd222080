"""The time in which a process worked on a run: between the starts and the ends of its sessions."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

__all__ = ["WorkTime"]


@dataclass
class WorkTime:
    """Sessions in the times of the log. One that was killed lasts until its last event."""

    #: Of sessions that ended.
    seconds: float = 0.0
    #: When the present session began; "" if there is none.
    began: str = ""
    #: When the log's last event was written.
    at: str = ""

    def begin(self, at: str) -> None:
        """A session begins, `at` being the time of its first event."""
        self.end(self.at)
        self.began = self.at = at

    def end(self, at: str) -> None:
        """The session ends, `at` being the time of its last event."""
        self.at = at
        self.seconds, self.began = self.total, ""

    def until(self, now: datetime) -> float:
        """The seconds since the present session began; 0 if there is none."""
        return max(0.0, (now - datetime.fromisoformat(self.began)).total_seconds()) if self.began else 0.0

    @property
    def total(self) -> float:
        """The seconds of all sessions, up to the last event."""
        if not (self.began and self.at):
            return self.seconds
        span = datetime.fromisoformat(self.at) - datetime.fromisoformat(self.began)
        return self.seconds + max(0.0, span.total_seconds())
