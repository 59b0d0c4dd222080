"""`chainette rows`: the rows of a run as a table, as records or as JSON."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from chainette.cli.command_errors import guarded
from chainette.cli.flags import AsJson, RunDirectory
from chainette.cli.printing import print_json
from chainette.cli.screen.record import cell, field_lines
from chainette.cli.screen.tables import console, new_table
from chainette.errors import TemplateError
from chainette.io.rundir.folder_rows import read_folder
from chainette.io.rundir.open import read_state
from chainette.io.rundir.paths import RunDir
from chainette.utils.argument_advice import nearest
from chainette.utils.templates import Expression

__all__ = ["rows"]

_Rows = Iterator[dict[str, Any]]

#: Fewer characters than this for a column, or more lines than this for the average row, and rows are shown as records.
_NARROW, _TALL = 14, 4


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
        bool, typer.Option("--records", help="Show one field per line; the default if a table would be hard to read.")
    ] = False,
    surplus: Annotated[
        bool, typer.Option("--surplus", help="Also show rows that a run with --accept computed after the last accepted one.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show the rows of the run in DIR: finished rows across all steps, or those of one step.

    If the columns of a table would be too narrow or its rows too tall to read, there is a line for each field instead. In
    --where, `extract.age` is a column of `flattened`; cells of CSV are text there.
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
        values = _nested(row)
        try:
            if holds.value(values):
                yield row
        except TemplateError as error:
            unknown = next(iter(holds.names - values.keys()), "") if "not in scope" in str(error) else ""
            hint = nearest(unknown, values) if unknown else ""
            raise typer.BadParameter(f"row {row.get('row_id')}: {error}{hint}") from error


class _Fields(dict[str, Any]):
    """An object in a row; `items` or `keys` is the field of that name, if there is one, not the method."""

    def __getattribute__(self, name: str) -> Any:
        return self[name] if not name.startswith("_") and name in self else super().__getattribute__(name)


def _nested(row: dict[str, Any]) -> dict[str, Any]:
    """The row with the columns `extract.name` of `flattened` as parts of `extract`."""
    values: dict[str, Any] = {}
    for name, value in row.items():
        group, dot, field = name.partition(".")
        if dot:
            values.setdefault(group, _Fields())[field] = _as_fields(value)
        else:
            values[name] = _as_fields(value)
    return values


def _as_fields(value: Any) -> Any:
    if isinstance(value, dict):
        return _Fields({name: _as_fields(each) for name, each in value.items()})
    return [_as_fields(each) for each in value] if isinstance(value, list) else value


def _print(shown: list[dict[str, Any]], *, records: bool) -> None:
    screen = console()
    if not shown:
        screen.print("no rows")
        return
    columns = [name for name in shown[0] if any(row.get(name) not in (None, "") for row in shown)]
    if records or _is_hard_to_read(shown, columns, screen.width):
        for row in shown:
            for line in field_lines({name: row[name] for name in columns}, screen):
                screen.print(line, soft_wrap=True)
            screen.print()
        return
    table = new_table([name.replace(".", "\n.") for name in columns])
    for row in shown:
        table.add_row(*(cell(row.get(name)) for name in columns))
    screen.print(table)


def _is_hard_to_read(shown: Sequence[dict[str, Any]], columns: Sequence[str], width: int) -> bool:
    """Whether a table of these rows would have very narrow columns, or rows of many lines."""
    characters = sum(len(cell(row.get(name))) for row in shown for name in columns)
    return width < _NARROW * len(columns) or characters > _TALL * width * len(shown)
