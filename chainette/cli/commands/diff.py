"""`chainette diff`: the rows that differ between two runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from chainette.cli.command_errors import guarded
from chainette.cli.flags import AsJson
from chainette.cli.printing import print_json
from chainette.cli.screen.record import cell, indented
from chainette.cli.screen.tables import console, new_table
from chainette.io.rundir.result import open_run
from chainette.io.rundir.row_comparison import ChangedRow, Comparison, compare
from chainette.utils.plurals import counted

__all__ = ["diff"]

#: The most names of rows that only one run has.
_NAMES = 8


@guarded
def diff(
    first: Annotated[Path, typer.Argument(metavar="A", help="A run directory.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="Another one, of this chain or a changed one.")],
    step: Annotated[str, typer.Argument(metavar="[STEP]", help="The step whose rows are compared.")] = "flattened",
    limit: Annotated[int, typer.Option("--limit", metavar="N", min=0, help="Show N changed rows.")] = 10,
    as_json: AsJson = False,
) -> None:
    """Show which rows changed between the runs A and B, by field.

    Rows are matched by `--key` if both runs were made with it, else by row_id; the formats of the runs may differ. Columns
    that begin with `_` (attempts, reasoning, cost) are not compared. --json prints one changed row per line.
    """
    found = compare(open_run(first), open_run(second), step)
    if as_json:
        print_json(found.changed)
        return
    screen = console()
    for line in _summary(found, step):
        screen.print(line, soft_wrap=True)
    if found.by_field:
        table = new_table(("field", "rows changed"), numbers=("rows changed",))
        for name, count in found.by_field.items():
            table.add_row(name, f"{count:,}")
        screen.print(table)
    for row in found.changed[:limit]:
        screen.print()
        for line in _lines(row, found.by, screen):
            screen.print(line, soft_wrap=True)
    if len(found.changed) > limit:
        screen.print(f"\nand {len(found.changed) - limit:,} more: --limit N shows more, --json all of them")


def _summary(found: Comparison, step: str) -> Iterator[str]:
    yield f"{step}: {counted(found.equal, 'row')} equal, {len(found.changed):,} changed (matched by {found.by})"
    for side, names in (("A", found.only_first), ("B", found.only_second)):
        if names:
            yield f"only in {side}: {counted(len(names), 'row')}: {_listed(names)}"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(islice(names, _NAMES)) + (", ..." if len(names) > _NAMES else "")


def _lines(row: ChangedRow, by: str, screen: Console) -> Iterator[str]:
    yield f"{by.removeprefix('_').removesuffix('_id')} {row.name}"
    for name, (before, after) in row.fields.items():
        yield f"  {name}"
        yield from indented("    - ", _one_line(before), screen)
        yield from indented("    + ", _one_line(after), screen)


def _one_line(value: object) -> str:
    return " ".join(cell(value).split())
