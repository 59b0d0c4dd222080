"""The table of counts in docs/guarantees.md, which the commands that count write themselves."""

from __future__ import annotations

import subprocess
from datetime import UTC, datetime
from pathlib import Path

__all__ = ["record"]

_ROOT = Path(__file__).parents[2]
_PAGE = _ROOT / "docs" / "guarantees.md"
_HEAD = "|---|---|---|---|\n"


def record(command: str, result: str, page: Path = _PAGE) -> None:
    """Puts a command's result into the table, in place of its last one."""
    asked = subprocess.run(["git", "-C", _ROOT, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
    line = f"| `{command}` | {result} | {datetime.now(UTC):%Y-%m-%d} | `{asked.stdout.strip()}` |\n"
    before, _, rest = page.read_text().partition(_HEAD)
    table, gap, after = rest.partition("\n## ")
    kept = [row for row in table.splitlines(keepends=True) if row.strip() and not row.startswith(f"| `{command}` |")]
    page.write_text(f"{before}{_HEAD}{''.join(sorted([*kept, line]))}{gap}{after}")
