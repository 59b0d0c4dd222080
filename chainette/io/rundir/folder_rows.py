"""Reads rows of a run directory for people, from any format and without the chain."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chainette.errors import DamagedRun
from chainette.io.rundir.shard_recovery import require_bytes
from chainette.io.tables.features import columns_of
from chainette.io.tables.formulas import restored
from chainette.io.tables.schemas import Added, shard_schema
from chainette.utils.plurals import counted

if TYPE_CHECKING:
    import pyarrow as pa

    from chainette.io.rundir.paths import RunDir
    from chainette.io.rundir.run_state import RunState

__all__ = [
    "accepted_only",
    "cells_of",
    "read_folder",
    "read_span",
    "rejection_examples",
    "require_content",
    "require_whole",
    "shard_schema_of",
    "typed_rows",
]


def read_folder(run: RunDir, state: RunState, step: str, *, surplus: bool = False) -> Iterator[dict[str, Any]]:
    """The logged rows of a step, `rejected` or `flattened`, from shards and journals; CSV cells are text. Rows after the last
    accepted one are left out unless `surplus` is set.

    Raises:
        DamagedRun: a file is missing, or does not hold the bytes that were written.
    """
    folder = state.graph.row_folders[step]
    spans = sorted(state.shards.ends.get(folder, {}).items())
    rows = chain.from_iterable(read_span(run, state, folder, number, 0, count) for number, (_, count) in spans)
    return rows if surplus else accepted_only(rows, state, step)


def accepted_only(rows: Iterator[dict[str, Any]], state: RunState, step: str) -> Iterator[dict[str, Any]]:
    """The rows of a step without those after the last accepted one."""
    boundary = state.boundary
    if boundary is None or step == "flattened":
        return rows
    if step == "rejected":
        return (row for row in rows if boundary.includes(row["step_id"], row["row_id"]))
    return (row for row in rows if boundary.includes(step, row["row_id"]))


def typed_rows(run: RunDir, state: RunState, folder: str) -> Iterator[dict[str, Any]]:
    """The logged rows of a folder with the types of their columns, in the order of the shards.

    Raises:
        DamagedRun: a file is missing, or does not hold the bytes that were written.
    """
    from chainette.io.tables.shard_formats import read_rows

    for number, (_, count) in sorted(state.shards.ends.get(folder, {}).items()):
        path = require_whole(run, state, folder, number)
        yield from read_rows(path, 0, count, shard_schema_of(state, folder) if path.suffix == ".csv" else None)


def shard_schema_of(state: RunState, folder: str) -> pa.Schema:
    """The Arrow schema of a folder's shards, from the log alone."""
    return shard_schema(columns_of(state.graph.features[folder]), Added.of(state.run.settings))


def read_span(run: RunDir, state: RunState, folder: str, number: int, first: int, last: int) -> Iterator[dict[str, Any]]:
    """Rows `first` to `last - 1` of one shard or journal, in the form of `read_folder`."""
    from chainette.io.tables.shard_formats import read_rows

    path = require_whole(run, state, folder, number)
    if path.suffix == ".csv":
        rows = islice(cells_of(path), first, last)
        yield from map(_restored, rows) if state.run.settings.get("csv_safe") else rows
    else:
        yield from read_rows(path, first, last - first)


def require_whole(run: RunDir, state: RunState, folder: str, number: int) -> Path:
    """The path of a shard, or of its journal, after a check of all its bytes.

    Raises:
        DamagedRun: it is missing, or does not hold the bytes that were written.
    """
    suffix, (size, count) = state.run.settings["format"], state.shards.ends[folder][number]
    in_place = suffix == "jsonl" or folder.startswith(run.held.name)
    shard = run.path / f"{folder}/{number}.{suffix}"
    path = (run.path if in_place else run.journals) / f"{folder}/{number}.jsonl"
    if (sealed := state.shards.sealed.get(folder, {}).get(number)) is not None:
        path, size = shard, sealed
    elif not path.exists() and shard.exists():
        return shard  # it was sealed after the log was read
    if not path.exists():
        raise DamagedRun(f"{path} is missing, but the log lists {counted(count, 'row')} in it. Restore the file from a backup")
    require_bytes(path, size, state.shards.sums.get(f"{folder}/{number}"))
    return path


def require_content(run: RunDir, state: RunState) -> None:
    """Checks every byte of a run's shards and journals; raises as `require_whole` does."""
    for folder, numbers in state.shards.ends.items():
        for number in numbers:
            require_whole(run, state, folder, number)


def _restored(row: dict[str, Any]) -> dict[str, Any]:
    return {name: cell and restored(cell) for name, cell in row.items()}


def rejection_examples(run: RunDir, state: RunState, each: int) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """The first rejected rows, up to `each` for each (step, reason). Reads no further than necessary."""
    wanted = {
        (step, reason): min(count, each)
        for step, counts in state.nodes.items()
        for reason, count in counts.reasons.items()
        if count
    }
    missing = sum(wanted.values())
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    rows = read_folder(run, state, "rejected")
    while missing and (row := next(rows, None)) is not None:
        group = found.setdefault((row["step_id"], row["reason"]), [])
        if len(group) < wanted.get((row["step_id"], row["reason"]), 0):
            group.append(row)
            missing -= 1
    return found


def cells_of(shard: Path) -> Iterator[dict[str, Any]]:
    """The rows of a CSV shard as text, by the names in its header.

    Raises:
        DamagedRun: the file is not CSV in UTF-8.
    """
    csv.field_size_limit(sys.maxsize)
    try:
        with shard.open(encoding="utf-8", newline="") as file:
            yield from csv.DictReader(file)
    except (csv.Error, UnicodeDecodeError) as error:
        raise DamagedRun(f"{shard}: not a complete CSV file: {error}") from error
