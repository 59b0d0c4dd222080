"""The time in which processes worked on a run: from the start to the end of each session."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

__all__ = ["WorkTime"]


@dataclass
class WorkTime:
    """The time of all sessions, according to the log. A session that was killed lasts until its last event."""

    #: The seconds of sessions that have ended.
    seconds: float = 0.0
    #: The time when the current session began; "" if there is none.
    began: str = ""
    #: The time of the last event in the log.
    at: str = ""

    def begin(self, at: str) -> None:
        """Begins a session; `at` is the time of its first event."""
        self.end(self.at)
        self.began = self.at = at

    def end(self, at: str) -> None:
        """Ends the session; `at` is the time of its last event."""
        self.at = at
        self.seconds, self.began = self.total, ""

    def until(self, now: datetime) -> float:
        """The seconds since the current session began; 0 if there is none."""
        return max(0.0, (now - datetime.fromisoformat(self.began)).total_seconds()) if self.began else 0.0

    @property
    def total(self) -> float:
        """The seconds of all sessions, up to the last event."""
        if not (self.began and self.at):
            return self.seconds
        span = datetime.fromisoformat(self.at) - datetime.fromisoformat(self.began)
        return self.seconds + max(0.0, span.total_seconds())
