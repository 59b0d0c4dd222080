"""Time for the HTTP engines: its sources, how long to wait, and a server's `Retry-After`.

Everything that waits takes a `Timing`, so that tests replace the clock instead of sleeping.
"""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from chainette.utils.backoff import backoff

__all__ = ["Policy", "Timing", "full_jitter", "retry_after"]

_DAY = 86_400.0
_NUMBER = re.compile(r"[+-]?\d{1,30}(\.\d{0,30})?s?", re.ASCII)


@dataclass(frozen=True)
class Timing:
    """The sources of time and randomness."""

    #: Monotonic seconds.
    clock: Callable[[], float] = time.monotonic
    #: Seconds since 1970, for dates that a server sends.
    wall: Callable[[], float] = time.time
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    #: 0 <= x < 1.
    random: Callable[[], float] = random.random


@dataclass(frozen=True)
class Policy:
    """How patient the transport is. Seconds, counts and shares."""

    #: The first pause before a retry is drawn from 0 to this, then doubles.
    backoff: float = 0.5
    backoff_cap: float = 30.0
    #: How long an ejected endpoint rests before a probe, then doubles.
    cooldown: float = 1.0
    cooldown_cap: float = 30.0
    #: How long a request waits while no endpoint answers any request.
    patience: float = 120.0
    #: Recent requests of an endpoint that count, and the fewest that count at all.
    window: int = 20
    least_seen: int = 8
    #: The share of them that may fail.
    error_share: float = 0.5
    #: Seconds for a TCP connection, and for one readiness check.
    connect_timeout: float = 10.0


def full_jitter(chance: float, attempt: int, base: float, cap: float) -> float:
    """Seconds before try `attempt + 1`: uniform from 0 to `base * 2**(attempt - 1)`, at most `cap`.

    "Full jitter" of Marc Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
    """
    return chance * backoff(attempt - 1, base, cap)


def retry_after(headers: Mapping[str, str], wall: float) -> float | None:
    """Seconds for which a server asks for no requests, at most a day; None if it does not ask, or in no known form.

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
