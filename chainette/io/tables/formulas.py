"""Escapes text in CSV files that a spreadsheet would run as a formula (`=HYPERLINK(...)`), and restores it."""

from __future__ import annotations

import re

__all__ = ["CSV_SAFE", "harmless", "restored"]

#: Marks the schema of a CSV file whose text is escaped.
CSV_SAFE = "chainette.csv_safe"

_FORMULA = re.compile(r"[\s']*[=+\-@\uff1d\uff0b\uff0d\uff20]|'*[\t\r\n]")


def harmless(text: str) -> str:
    """The text, with a `'` before it if it begins like a formula. `restored` is its inverse for any text."""
    return f"'{text}" if _FORMULA.match(text) else text


def restored(text: str) -> str:
    """The text that was passed to `harmless`."""
    return text[1:] if text[:1] == "'" and _FORMULA.match(text, 1) else text
