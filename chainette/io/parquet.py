"""Parquet as an input: row groups and batches, never a whole file in memory."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chainette.errors import InputError
from chainette.io.readers import InputFile, Record

if TYPE_CHECKING:
    import pyarrow.parquet as pq

__all__ = ["ParquetFile"]


class ParquetFile(InputFile):
    """One Parquet file."""

    kind = "parquet"

    def __init__(self, path: Path, limit: int | None) -> None:
        super().__init__(path, limit)
        with self._open() as file:
            self._size: int = file.metadata.num_rows
            self._columns: list[str] = list(file.schema_arrow.names)

    def columns(self) -> list[str]:
        return list(self._columns)

    def _count(self) -> int:
        return self._size

    def _open(self) -> pq.ParquetFile:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            return pq.ParquetFile(self.path)
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{self.path}: cannot be read as Parquet: {error}") from error

    def _records(self, start: int, first: int) -> Generator[Record, None, int]:
        if start < first + self._size:
            for number, row in self._rows(max(0, start - first)):
                yield Record(first + number, number + 1, row, file=self.path)
        return first + self._size

    def _rows(self, start: int) -> Iterator[tuple[int, dict[str, Any]]]:
        """(number in the file, row) from row `start` on; row groups before it are not touched."""
        import pyarrow as pa

        with self._open() as file:
            groups: list[int] = []
            index = 0
            for group in range(file.metadata.num_row_groups):
                size = file.metadata.row_group(group).num_rows
                if groups or index + size > start:
                    groups.append(group)
                else:
                    index += size
            try:
                for batch in file.iter_batches(256, row_groups=groups, use_threads=False):
                    if index + batch.num_rows > start:
                        skip = max(0, start - index)
                        yield from enumerate(_plain_rows(batch.slice(skip)), index + skip)
                    index += batch.num_rows
            except pa.ArrowException as error:
                raise InputError(f"{self.path}: cannot be read after row {index}: {error}") from error


def _plain_rows(batch: Any) -> list[dict[str, Any]]:
    """Rows as Python objects: nanoseconds are cut to microseconds, maps become dicts."""
    import pyarrow as pa

    rows: list[dict[str, Any]] = batch.cast(
        pa.schema([_without_nanoseconds(field) for field in batch.schema]), safe=False
    ).to_pylist()
    maps = [field.name for field in batch.schema if pa.types.is_map(field.type)]
    for row in rows:
        row.update({name: dict(row[name]) for name in maps if row[name] is not None})
    return rows


def _without_nanoseconds(field: Any) -> Any:
    import pyarrow as pa

    if pa.types.is_timestamp(field.type) and field.type.unit == "ns":
        return field.with_type(pa.timestamp("us", field.type.tz))
    if pa.types.is_duration(field.type) and field.type.unit == "ns":
        return field.with_type(pa.duration("us"))
    return field
