"""Rows as records: one field below the other, readable at any width."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
from rich.console import Console
from rich.text import Text

from chainette.utils.terminal_text import visible

__all__ = ["cell", "field_lines", "indented"]

#: With fewer columns than this, texts are not indented.
_LEAST = 20


def field_lines(row: Mapping[str, Any], screen: Console) -> Iterator[str]:
    """The fields of a row, one below the other; further lines of a text are indented."""
    width = max(map(len, row), default=0)
    for name, value in row.items():
        yield from indented(f"  {name:<{width}}  ", cell(value), screen)


def indented(head: str, text: str, screen: Console) -> Iterator[str]:
    """A text after `head`, all its lines at one indentation. Lines a terminal is too narrow for are broken between
    words; elsewhere they stay whole, for grep."""
    room = screen.width - len(head) if screen.is_terminal else 0
    lines = [part for line in text.splitlines() or [""] for part in (_broken(line, screen, room) if room >= _LEAST else [line])]
    for line in lines:
        yield f"{head}{line}".rstrip()
        head = " " * len(head)


def _broken(line: str, screen: Console, room: int) -> Iterator[str]:
    yield from (part.plain for part in Text(visible(line)).wrap(screen, room, overflow="fold"))


def cell(value: Any) -> str:
    """A value as people read it: text as it is, anything else as JSON; "" for None."""
    if value is None:
        return ""
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()
