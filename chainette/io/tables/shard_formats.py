"""Seals shards, from the JSONL journal to Parquet or CSV, and reads the same rows back.

The columns are those of `columns.py`. In CSV, an empty cell is null and `""` is the empty string; lists,
structs and JSON are JSON text in their cell; other text is not altered, even if a spreadsheet would treat
it as a formula, unless the run asks for that (`formulas.py`).

A sealed row is equal, as JSON, when it is read back; a column that the row lacks is read as null.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NoReturn

import msgspec

from chainette.errors import DamagedRun
from chainette.io.inputs.delimited import format_cells, records, split_cells
from chainette.io.rundir.paths import disk_errors
from chainette.io.tables.columns import EXTRA_COLUMN, Convert, is_json, json_places
from chainette.io.tables.formulas import CSV_SAFE, harmless, restored
from chainette.utils.plurals import counted
from chainette.utils.private_files import new_file

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["read_rows", "seal_csv", "seal_parquet", "sealing_fault", "table_of"]

_BATCH_ROWS = 5_000
_BATCH_BYTES = 32 << 20

Row = dict[str, Any]


def seal_parquet(journal: Path, target: Path, schema: pa.Schema) -> tuple[int, int]:
    """Writes a journal's rows as one fsynced Parquet file (zstd); returns its rows and bytes.

    Memory holds 5,000 rows or 32 MiB of the journal at a time. A failure leaves no target behind.

    Raises:
        DamagedRun: a journal line does not fit the schema.
        DiskError: the disk is full, or a read or write failed.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    encode = _row_encoder(schema, nested_as_text=False)
    rows = 0
    with _new_file(target) as file:
        with pq.ParquetWriter(file, schema, compression="zstd") as writer:
            for first, batch in _batches(journal):
                encoded = [encode(row, journal, first + at) for at, row in enumerate(batch)]
                writer.write_batch(pa.RecordBatch.from_arrays(_arrays(encoded, schema, journal, first), schema=schema))
                rows += len(batch)
        return rows, _sync(file)


def seal_csv(journal: Path, target: Path, schema: pa.Schema) -> tuple[int, int]:
    """Writes a journal's rows as one fsynced CSV file with a header; returns its rows and bytes.

    Memory and errors are those of `seal_parquet`.
    """
    encode = _row_encoder(schema, nested_as_text=True)
    names = schema.names
    cells = [_safe_cell if _is_safe(field, schema) else _cell for field in schema]
    rows = 0
    with _new_file(target) as file:
        file.write(format_cells(names).encode())
        for first, batch in _batches(journal):
            encoded = [encode(row, journal, first + at) for at, row in enumerate(batch)]
            file.write(
                "".join(
                    [format_cells([cell(row.get(name)) for name, cell in zip(names, cells, strict=True)]) for row in encoded]
                ).encode()
            )
            rows += len(batch)
        return rows, _sync(file)


def sealing_fault(values: Iterable[bytes], schema: pa.Schema, *, parquet: bool) -> str:
    """The reason why rows with these values from outside cannot be sealed as Parquet or CSV; "" if they can."""
    try:
        rows = [msgspec.json.decode(value, type=Row) for value in values]
        if parquet:
            table_of(rows, schema)
        else:
            encode = _row_encoder(schema, nested_as_text=True)
            for number, row in enumerate(rows, 1):
                encode(row, Path("rows"), number)
    except (DamagedRun, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return str(error)
    return ""


def table_of(rows: Iterable[Row], schema: pa.Schema) -> pa.Table:
    """Rows as one Arrow table, with the columns that `seal_parquet` writes."""
    import pyarrow as pa

    encode, nowhere = _row_encoder(schema, nested_as_text=False), Path("rows")
    batches, pending, first = [], iter(rows), 1
    while batch := list(islice(pending, _BATCH_ROWS)):
        encoded = [encode(row, nowhere, first + at) for at, row in enumerate(batch)]
        batches.append(pa.RecordBatch.from_arrays(_arrays(encoded, schema, nowhere, first), schema=schema))
        first += len(batch)
    return pa.Table.from_batches(batches, schema=schema)


def _is_safe(field: pa.Field, schema: pa.Schema) -> bool:
    """Whether formulas in the text of a CSV column are escaped."""
    import pyarrow as pa

    return CSV_SAFE.encode() in (schema.metadata or {}) and field.type == pa.string() and not is_json(field)


def _safe_cell(value: Any) -> str | None:
    cell = _cell(value)
    return cell and harmless(cell)


def _cell(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else msgspec.json.encode(value).decode()


@contextmanager
def _new_file(path: Path) -> Iterator[IO[bytes]]:
    with disk_errors(path):
        path.unlink(missing_ok=True)
        with new_file(path) as file:
            yield file


def _sync(file: IO[bytes]) -> int:
    file.flush()
    os.fsync(file.fileno())
    return os.fstat(file.fileno()).st_size


def _batches(journal: Path) -> Iterator[tuple[int, list[Row]]]:
    """The rows of a journal in batches, each with the number of its first line."""
    first, size = 1, 0
    batch: list[Row] = []
    for number, row, length in _journal_rows(journal):
        batch.append(row)
        size += length
        if len(batch) >= _BATCH_ROWS or size >= _BATCH_BYTES:
            yield first, batch
            first, size, batch = number + 1, 0, []
    if batch:
        yield first, batch


def _journal_rows(journal: Path) -> Iterator[tuple[int, Row, int]]:
    decoder = msgspec.json.Decoder(dict[str, Any])
    with journal.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                yield number, decoder.decode(line), len(line)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise DamagedRun(f"{journal}:{number}: not a row: {error}") from error


def _arrays(rows: Sequence[Row], schema: pa.Schema, journal: Path, first: int) -> list[pa.Array]:
    import pyarrow as pa

    arrays = []
    for field in schema:
        values = [row.get(field.name) for row in rows]
        try:
            arrays.append(pa.array(values, field.type))
        except (pa.ArrowException, TypeError, ValueError, OverflowError):
            if field.type != pa.string():
                _blame(values, field, journal, first)
            arrays.append(pa.array(map(_cell, values), field.type))
    return arrays


def _blame(values: Sequence[Any], field: pa.Field, journal: Path, first: int) -> NoReturn:
    import pyarrow as pa

    for number, value in enumerate(values, first):
        try:
            pa.array([value], field.type)
        except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
            shown = msgspec.json.encode(value).decode()[:200]
            found = f"column {field.name!r} is {field.type}, but the row has {shown}"
            raise DamagedRun(f"{journal}:{number}: {found}: {error}") from error
    raise DamagedRun(f"{journal}: column {field.name!r} does not fit {field.type}")


def _row_encoder(schema: pa.Schema, nested_as_text: bool) -> Callable[[Row, Path, int], Row]:
    """Converts journal rows into values for the columns."""
    convert = {field.name: found for field in schema if (found := _encoder(field, nested_as_text))}
    names = frozenset(schema.names)

    def encode(row: Row, journal: Path, number: int) -> Row:
        if not names.issuperset(row):
            row = _collect_extra(row, names, journal, number)
        changed = {name: to_column(row[name]) for name, to_column in convert.items() if row.get(name) is not None}
        return row | changed if changed else row

    return encode


def _collect_extra(row: Row, names: frozenset[str], journal: Path, number: int) -> Row:
    unknown = {name: value for name, value in row.items() if name not in names}
    if EXTRA_COLUMN not in names:
        found = f"the schema has no column {next(iter(unknown))!r}"
        raise DamagedRun(f"{journal}:{number}: {found}; another chain wrote this row")
    return {name: value for name, value in row.items() if name in names} | {EXTRA_COLUMN: unknown}


def _to_text(value: Any) -> str | None:
    return None if value is None else msgspec.json.encode(value).decode()


def _encoder(field: pa.Field, nested_as_text: bool) -> Convert | None:
    import pyarrow as pa

    nested = pa.types.is_list(field.type) or pa.types.is_struct(field.type)
    return _to_text if nested and nested_as_text else json_places(field, _to_text)


def _from_text(value: Any) -> Any:
    return None if value is None else msgspec.json.decode(value)


def read_rows(path: Path, start: int = 0, count: int | None = None, schema: pa.Schema | None = None) -> Iterator[Row]:
    """Rows `start` to `start + count - 1` of a shard or journal, in the form of the journal.

    A CSV file needs the schema with which it was sealed; files of other formats contain theirs.

    Raises:
        DamagedRun: the file is damaged, or not in the format that its name says.
        ValueError: no schema was given for a CSV file.
    """
    stop = None if count is None else start + count
    if path.suffix == ".parquet":
        return _parquet_rows(path, start, stop)
    if path.suffix == ".csv":
        if schema is None:
            raise ValueError(f"{path}: a CSV shard needs its schema")
        return islice(_csv_rows(path, schema), start, stop)
    return _jsonl_rows(path, start, stop)


def _jsonl_rows(path: Path, start: int, stop: int | None) -> Iterator[Row]:
    with path.open("rb") as file:
        for number, line in islice(enumerate(file, 1), start, stop):
            try:
                row = msgspec.json.decode(line, type=dict[str, Any])
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise DamagedRun(f"{path}:{number}: not a row: {error}") from error
            yield row


def _parquet_rows(path: Path, start: int, stop: int | None) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            decode = _row_decoder(file.schema_arrow)
            groups, skip = _groups_from(file.metadata, start)
            batches = file.iter_batches(1_000, row_groups=groups, use_threads=False)
            rows = (row for batch in batches for row in batch.to_pylist())
            length = None if stop is None else max(0, stop - start) + skip
            yield from map(decode, islice(rows, skip, length))
    except (
        pa.ArrowException,
        OSError,
        ValueError,
        msgspec.DecodeError,
    ) as error:  # damaged text is noticed late, as a ValueError
        raise DamagedRun(f"{path}: not a complete Parquet file: {error}") from error


def _groups_from(metadata: Any, start: int) -> tuple[list[int], int]:
    """The row groups that hold rows from `start` on, and the number of rows to skip in the first group."""
    sizes = [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
    for index, size in enumerate(sizes):
        if start < size:
            return list(range(index, len(sizes))), start
        start -= size
    return [], 0


def _row_decoder(schema: pa.Schema) -> Convert:
    convert = {field.name: found for field in schema if (found := json_places(field, _from_text))}

    def decode(row: Row) -> Row:
        for name, from_column in convert.items():
            row[name] = from_column(row[name])
        return row | (row.pop(EXTRA_COLUMN) or {}) if EXTRA_COLUMN in row else row

    return decode


def _csv_rows(path: Path, schema: pa.Schema) -> Iterator[Row]:
    names, readers = schema.names, [restored if _is_safe(field, schema) else _cell_reader(field) for field in schema]
    with path.open("rb") as file:
        for record in islice(records(file, b",", 1 << 40), 1, None):
            try:
                cells = split_cells(record.data.decode(), ",")
                if len(cells) != len(names) or record.error:
                    raise DamagedRun(f"{path}:{record.number}: {counted(len(cells), 'cell')}, but the header has {len(names)}")
                values = (None if cell is None else read(cell) for cell, read in zip(cells, readers, strict=True))
                row = dict(zip(names, values, strict=True))
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise DamagedRun(f"{path}:{record.number}: not a row: {error}") from error
            yield row | (row.pop(EXTRA_COLUMN) or {}) if EXTRA_COLUMN in row else row


def _cell_reader(field: pa.Field) -> Convert:
    import pyarrow as pa

    return str if field.type == pa.string() and not is_json(field) else msgspec.json.decode
