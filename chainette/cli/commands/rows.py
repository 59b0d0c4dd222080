"""`chainette rows`: the rows of a run as a table, as records or as JSON."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from chainette.cli.common import console, guarded, new_table, print_json
from chainette.cli.flags import AsJson, RunDirectory
from chainette.cli.screen.record import cell, field_lines
from chainette.errors import TemplateError
from chainette.io.rundir.open import read_state
from chainette.io.rundir.paths import RunDir
from chainette.io.rundir.reading import read_folder
from chainette.utils.argument_advice import nearest
from chainette.utils.templates import Expression

__all__ = ["rows"]

_Rows = Iterator[dict[str, Any]]

#: Fewer characters than this for a column, and rows are shown as records.
_NARROW = 14


@guarded
def rows(
    directory: RunDirectory,
    step: Annotated[str, typer.Option("--step", metavar="ID", help="The rows of this step.")] = "flattened",
    columns: Annotated[
        str | None, typer.Option("--columns", metavar="A,B,...", help="Show these columns only, in this order.")
    ] = None,
    where: Annotated[
        str | None,
        typer.Option("--where", metavar="EXPR", help="Rows for which this is true, as in a template: 'extract.age > 40'."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", metavar="N", min=1, help="Show N rows [default: 30; --json: all].")
    ] = None,
    records: Annotated[
        bool, typer.Option("--records", help="Show one field per line; the default if a table would be too narrow to read.")
    ] = False,
    surplus: Annotated[
        bool, typer.Option("--surplus", help="Also show rows that a run with --accept computed behind the last accepted one.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show the rows of the run in DIR: finished rows across all steps, or those of one step.

    A table whose columns would be too narrow to read becomes one line per field. In --where,
    `extract.age` is a column of `flattened`; cells of CSV are text there.
    """
    found, written = _written_rows(directory, step, surplus=surplus)
    if where is not None:
        found = _kept(found, where)
    if columns is not None:
        found = _with_columns(found, [name.strip() for name in columns.split(",")])
    if as_json:
        print_json(itertools.islice(found, limit))
        return
    shown = list(itertools.islice(found, limit or 30))
    _print(shown, records=records)
    more = written - len(shown) if where is None else sum(1 for _ in found)
    if more:
        console().print(f"and {more:,} more: --limit N shows more, --json all of them")


def _written_rows(directory: Path, step: str, *, surplus: bool) -> tuple[_Rows, int]:
    """The rows of a step, and their number."""
    run = RunDir(directory)
    state, _ = read_state(run)
    folders = state.graph.row_folders
    if step not in folders:
        raise typer.BadParameter(f"--step {step}: the run has no rows of that name; it has {', '.join(folders)}")
    return read_folder(run, state, step, surplus=surplus), state.rows_of(step, surplus=surplus)


def _with_columns(rows: _Rows, wanted: Sequence[str]) -> _Rows:
    for row in rows:
        for name in wanted:
            if name not in row:
                raise typer.BadParameter(f"--columns {name}: the rows have no such column{nearest(name, row)}")
        yield {name: row[name] for name in wanted}


def _kept(rows: _Rows, where: str) -> _Rows:
    try:
        holds = Expression(f"{{{{ {where} }}}}", f"--where {where!r}")
    except TemplateError as error:
        raise typer.BadParameter(str(error)) from error
    for row in rows:
        try:
            if holds.value(_nested(row)):
                yield row
        except TemplateError as error:
            raise typer.BadParameter(f"row {row.get('row_id')}: {error}") from error


def _nested(row: dict[str, Any]) -> dict[str, Any]:
    """The row with the columns `extract.name` of `flattened` as parts of `extract`."""
    values: dict[str, Any] = {}
    for name, value in row.items():
        group, dot, field = name.partition(".")
        if dot:
            values.setdefault(group, {})[field] = value
        else:
            values[name] = value
    return values


def _print(shown: list[dict[str, Any]], *, records: bool) -> None:
    screen = console()
    if not shown:
        screen.print("no rows")
        return
    columns = [name for name in shown[0] if any(row.get(name) not in (None, "") for row in shown)]
    if records or screen.width // max(1, len(columns)) < _NARROW:
        for row in shown:
            for line in field_lines({name: row[name] for name in columns}):
                screen.print(line, soft_wrap=True)
            screen.print()
        return
    table = new_table([name.replace(".", "\n.") for name in columns])
    for row in shown:
        table.add_row(*(cell(row.get(name)) for name in columns))
    screen.print(table)
