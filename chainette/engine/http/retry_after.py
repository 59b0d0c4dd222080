"""The time for which a server asks for no requests, in every form of `Retry-After`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

__all__ = ["retry_after"]

_DAY = 86_400.0
_NUMBER = re.compile(r"[+-]?\d{1,30}(\.\d{0,30})?s?", re.ASCII)


def retry_after(headers: Mapping[str, str], wall: float) -> float | None:
    """Seconds for which a server asks for no requests, at most a day; None if it does not ask in a known form.

    `Retry-After` holds seconds or a date (RFC 9110, 10.2.3), which is UTC if it names no zone. OpenAI and Azure send
    milliseconds under names of their own.
    """
    for name, unit in (("retry-after-ms", 0.001), ("x-ms-retry-after-ms", 0.001), ("retry-after", 1.0)):
        said = headers.get(name, "").strip()
        seconds = float(said.rstrip("s")) * unit if _NUMBER.fullmatch(said) else _seconds_until(said, wall)
        if seconds is not None:
            return min(max(0.0, seconds), _DAY)
    return None


def _seconds_until(date: str, wall: float) -> float | None:
    for read in (parsedate_to_datetime, datetime.fromisoformat):
        try:
            moment = read(date)
            return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() - wall
        except (ValueError, OverflowError, TypeError, IndexError):
            continue
    return None
