"""The table of counts in docs/guarantees.md, which the commands that count write themselves."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

__all__ = ["put", "record", "rows"]

_ROOT = Path(__file__).parents[2]
#: Looked up at once: a simulation hides it from the product.
_GIT = shutil.which("git")
_PAGE = _ROOT / "docs" / "guarantees.md"


def record(command: str, result: str, page: Path = _PAGE) -> None:
    """Puts a command's result into the table, in place of its last one."""
    assert _GIT is not None, "git names the commit"
    asked = subprocess.run([_GIT, "-C", _ROOT, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
    line = f"| `{command}` | {result} | {datetime.now(UTC):%Y-%m-%d} | `{asked.stdout.strip()}` |\n"
    kept = [row for row in _table(page, "command")[1] if not row.startswith(f"| `{command}` |")]
    put("command", sorted([*kept, line]), page)


def put(head: str, new: Iterable[str], page: Path = _PAGE) -> None:
    """Gives the table with this first heading these rows."""
    before, _, after = _table(page, head)
    page.write_text(f"{before}{''.join(new)}{after}")


def rows(head: str, page: Path = _PAGE) -> list[str]:
    """The rows of the table with this first heading."""
    return _table(page, head)[1]


def _table(page: Path, head: str) -> tuple[str, list[str], str]:
    """The page up to a table's first row, its rows, and the page behind it."""
    lines = page.read_text().splitlines(keepends=True)
    start = next(number for number, line in enumerate(lines) if line.startswith(f"| {head} |")) + 2
    end = next((number for number in range(start, len(lines)) if not lines[number].startswith("|")), len(lines))
    return "".join(lines[:start]), lines[start:end], "".join(lines[end:])
