"""Time for the HTTP engines: its sources, and the lengths of waits.

Everything that waits takes a `Timing`, so that tests replace the clock instead of sleeping.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from chainette.utils.backoff import backoff

__all__ = ["Policy", "Timing", "full_jitter"]


@dataclass(frozen=True)
class Timing:
    """The sources of time and randomness."""

    #: Monotonic seconds.
    clock: Callable[[], float] = time.monotonic
    #: Seconds since 1970, for dates a server sends.
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
