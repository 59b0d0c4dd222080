"""Counts with their nouns, for messages."""

from __future__ import annotations

__all__ = ["counted", "counted_of"]


def counted(number: float, noun: str) -> str:
    """The number, rounded and with thousands separators, and the noun, which gets an `s` unless the number shown is 1.

    >>> counted(1, "row"), counted(0, "row"), counted(3000, "row"), counted(0.8, "request")
    ('1 row', '0 rows', '3,000 rows', '1 request')
    """
    shown = f"{number:,.0f}"
    return f"{shown} {noun}{'s' * (shown != '1')}"


def counted_of(part: int, whole: int | None, noun: str) -> str:
    """A part and its whole, `3 of 40 rows`, or the part alone if the whole is unknown."""
    return counted(part, noun) if whole is None else f"{part:,} of {counted(whole, noun)}"
