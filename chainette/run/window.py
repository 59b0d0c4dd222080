"""The number of rows at work: live in a run (its window), and in flight in one engine."""

from __future__ import annotations

__all__ = ["budget_for", "window_for"]

#: The least number of live rows, the number for each row that engines take at once, and the most, whatever workers report.
_LEAST, _PER_ROW, _MOST = 4096, 4, 10_000_000


def window_for(rows_in_flight: int, said: int | None = None) -> int:
    """The live rows that keep engines with this joint capacity at work; the user's `--window` (`said`) wins."""
    return said or min(_MOST, max(_LEAST, _PER_ROW * rows_in_flight))


def budget_for(capacity: int, batch_size: int) -> int:
    """Rows an engine is given at once: twice as many as it answers at once, and two units at least."""
    return 2 * max(capacity, batch_size)
