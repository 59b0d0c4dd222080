"""Rows as records: one line per field, readable at any width."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

__all__ = ["cell", "field_lines"]


def field_lines(row: Mapping[str, Any]) -> Iterator[str]:
    """The fields of a row, one below the other; further lines of a text are indented."""
    width = max(map(len, row), default=0)
    for name, value in row.items():
        first, *more = cell(value).splitlines() or [""]
        yield f"  {name:<{width}}  {first}".rstrip()
        yield from (f"  {'':<{width}}  {line}".rstrip() for line in more)


def cell(value: Any) -> str:
    """A value as people read it: text as it is, anything else as JSON; "" for None."""
    if value is None:
        return ""
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()
