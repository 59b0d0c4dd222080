"""Exponential back-off for everything that retries."""

from __future__ import annotations

__all__ = ["backoff"]


def backoff(failures: int, first: float, cap: float) -> float:
    """Seconds to wait after `failures` consecutive failures: `first`, doubled for each of them, but at most `cap`.

    Any number of failures is safe: the exponent is bounded, because 2.0**1024 raises OverflowError.

    >>> [backoff(failures, 0.5, 30.0) for failures in (0, 1, 5, 6, 5000)]
    [0.5, 1.0, 16.0, 30.0, 30.0]
    """
    return min(cap, first * 2.0 ** min(failures, 64))
