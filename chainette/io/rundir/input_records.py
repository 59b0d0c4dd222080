"""Reads records of a run's input again, for `why` and `rejected --records`."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import msgspec
from pydantic_core import to_json

from chainette.io.inputs.delimited import format_cells
from chainette.io.inputs.locate import open_input
from chainette.io.inputs.readers import InputFile, Record
from chainette.io.inputs.same_input import require_same_input
from chainette.io.rundir.logged_paths import chain_root_of, input_paths
from chainette.io.rundir.paths import RunDir
from chainette.io.rundir.run_state import RunState

__all__ = ["fields_of", "kind_of_records", "record_at", "record_lines", "same_input_of"]


def kind_of_records(state: RunState) -> str:
    """The format of `record_lines` for a run: CSV if cells have no types, otherwise JSON lines."""
    return "csv" if state.input["kind"] in ("csv", "tsv") else "jsonl"


def record_at(run: RunDir, state: RunState, number: int) -> Record | None:
    """A record from the current input; None if the input is shorter.

    Raises:
        InputError: the input is missing, or cannot be read.
    """
    return next(open_input(input_paths(state.input, run, chain_root_of(state.run, run))).records(number), None)


def same_input_of(run: RunDir, state: RunState) -> InputFile:
    """The input of a run; if it has grown, only the part that was read.

    Raises:
        InputError: the input is missing, or no longer the one that the run read.
    """
    source = open_input(input_paths(state.input, run, chain_root_of(state.run, run)))
    require_same_input(source, state.input, state.read, str(run))
    return source


def record_lines(run: RunDir, state: RunState, numbers: Collection[int]) -> Iterator[str]:
    """The records with these numbers in the order of the input, as lines of a file of `kind_of_records`.

    JSON comes as it was written. Of Parquet, cells of bytes that are no text are left out, since JSON has none.

    Raises:
        InputError: the input is missing, or no longer the one that the run read.
    """
    source = same_input_of(run, state)
    found = ((record, fields) for record in _chosen(source, numbers) if (fields := fields_of(record)) is not None)
    if kind_of_records(state) == "jsonl":
        yield from (_json_line(record, fields) for record, fields in found)
        return
    columns = source.columns() or []
    yield format_cells(columns).removesuffix("\n")
    yield from (format_cells(map(fields.get, columns)).removesuffix("\n") for _, fields in found)


def _chosen(source: InputFile, numbers: Collection[int]) -> Iterator[Record]:
    last = max(numbers, default=-1)
    for record in source.records(min(numbers)) if numbers else ():
        if record.index in numbers:
            yield record
        if record.index >= last:
            return


def _json_line(record: Record, fields: dict[str, Any]) -> str:
    if not isinstance(record.data, dict):
        return msgspec.json.format(record.data, indent=-1).decode()
    text = {name: value for name, value in fields.items() if not isinstance(value, bytes) or _is_text(value)}
    return to_json(text, inf_nan_mode="strings").decode()


def _is_text(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def fields_of(record: Record) -> dict[str, Any] | None:
    """The columns of a record; None if it has none."""
    if isinstance(record.data, dict):
        return record.data
    try:
        return msgspec.json.decode(record.data, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
