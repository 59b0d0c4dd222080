"""How many rows may be at work: live in a run (its window), and in flight in one engine."""

from __future__ import annotations

__all__ = ["budget_for", "window_for"]

#: Live rows at least, for each row that engines take at once, and at most, whatever workers say of themselves.
_LEAST, _PER_ROW, _MOST = 4096, 4, 10_000_000


def window_for(rows_in_flight: int, said: int | None = None) -> int:
    """Live rows that keep engines at work which take so many at once; `said` is the user's `--window`, which wins."""
    return said or min(_MOST, max(_LEAST, _PER_ROW * rows_in_flight))


def budget_for(capacity: int, batch_size: int) -> int:
    """Rows an engine is given at once: twice as many as it answers at once, and two units at least."""
    return 2 * max(capacity, batch_size)
