"""`chainette rows`: the rows of a run as a table."""

from __future__ import annotations

import itertools
from typing import Annotated, Any

import msgspec
import typer

from chainette.cli.common import console, guarded, new_table
from chainette.cli.flags import RunDirectory
from chainette.io.rundir.open import read_state
from chainette.io.rundir.paths import RunDir
from chainette.io.rundir.reading import read_folder

__all__ = ["rows"]


@guarded
def rows(
    directory: RunDirectory,
    step: Annotated[str, typer.Option("--step", metavar="ID", help="The rows of this step.")] = "flattened",
    limit: Annotated[int, typer.Option("--limit", metavar="N", min=1, help="Show N rows.")] = 30,
) -> None:
    """Show the rows of the run in DIR as a table: finished rows across all steps, or those of one step."""
    run = RunDir(directory)
    state, _ = read_state(run)
    folders = {node.id: node.folder for node in state.graph.nodes if not node.hidden}
    folders |= {name: name for name in ("flattened", "rejected")}
    if step not in folders:
        raise typer.BadParameter(f"--step {step}: the run has no rows of that name; it has {', '.join(folders)}")
    found = read_folder(run, state, folders[step])
    shown = list(itertools.islice(found, limit))
    written = sum(count for _, count in state.ends.get(folders[step], {}).values())
    _print(shown, written - len(shown))


def _print(shown: list[dict[str, Any]], more: int) -> None:
    screen = console()
    if not shown:
        screen.print("no rows")
        return
    columns = [name for name in shown[0] if any(row.get(name) not in (None, "") for row in shown)]
    table = new_table([name.replace(".", "\n.") for name in columns])
    for row in shown:
        table.add_row(*(_cell(row.get(name)) for name in columns))
    screen.print(table)
    if more:
        screen.print(f"and {more:,} more: --limit N shows more")


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()
