"""`chainette ls`: the run directories below a folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from chainette.cli.command_errors import guarded
from chainette.cli.directory_status import is_working, standing
from chainette.cli.flags import AsJson
from chainette.cli.printing import command_line, print_json
from chainette.cli.screen.tables import console, new_table
from chainette.errors import ChainetteError
from chainette.io.rundir.metadata import metadata_of
from chainette.io.rundir.open import read_state
from chainette.io.rundir.paths import RunDir
from chainette.screen.numbers import amount
from chainette.utils.terminal_text import visible_line

__all__ = ["ls"]

_COLUMNS = ("directory", "chain", "status", "rows", "rejected", "cost", "started")


@guarded
def ls(
    folder: Annotated[Path, typer.Argument(metavar="[FOLDER]", help="Where to look.")] = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """List the run directories below FOLDER, the newest first.

    Rows are those that reached the end of the chain. Needs no Redis: `chainette runs` lists the runs that are live on one.
    """
    found = sorted((_described(path) for path in _directories(folder)), key=lambda run: run["started"], reverse=True)
    if as_json:
        print_json(found)
    elif found:
        columns = [column for column in _COLUMNS if column != "cost" or any(run["cost"] for run in found)]
        table = new_table(columns, numbers=("rows", "rejected", "cost"), cut=("directory",))
        for run in found:
            table.add_row(*(visible_line(_cell(run[column])) for column in columns))
        console().print(table)
    else:
        console().print(f"no runs below {folder}; {command_line('run', 'CHAIN', 'INPUTS')} begins one", soft_wrap=True)


def _directories(folder: Path) -> Iterator[Path]:
    """The run directories below a folder, or itself; hidden folders and the insides of runs are left out."""
    for path, folders, _ in os.walk(folder):
        if RunDir(path).exists():
            folders.clear()
            yield Path(path)
        folders[:] = [name for name in folders if not name.startswith(".")]


def _described(path: Path) -> dict[str, Any]:
    run = {"directory": str(path), "chain": "", "status": "", "rows": None, "rejected": None, "cost": None, "started": ""}
    try:
        metadata = _metadata(RunDir(path))
    except ChainetteError as error:
        return run | {"status": f"damaged: {error}"}
    return run | {
        "chain": metadata["chain"],
        "status": standing(metadata, working=is_working(path)),
        "rows": metadata["rows_finished"],
        "rejected": metadata["rows_rejected"],
        "cost": metadata.get("cost"),
        "started": metadata["started_at"] or metadata["created_at"],
    }


def _metadata(run: RunDir) -> dict[str, Any]:
    """metadata.json if nothing was logged since it was written, else the same from the log, which takes longer."""
    derived = run.path / "metadata.json"
    if derived.exists() and derived.stat().st_mtime_ns > run.log.stat().st_mtime_ns:
        try:
            return msgspec.json.decode(derived.read_bytes(), type=dict[str, Any])
        except (msgspec.DecodeError, OSError):
            pass  # the log has it
    return metadata_of(read_state(run)[0])


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        return amount(value)
    if isinstance(value, int):
        return f"{value:,}"
    try:
        return f"{datetime.fromisoformat(value).astimezone():%Y-%m-%d %H:%M}"
    except (TypeError, ValueError):
        return value or ""
