"""Parquet files as inputs, read by row groups and batches, never a whole file in memory."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chainette.errors import InputError
from chainette.io.inputs.arrow_values import cells
from chainette.io.inputs.input_digest import Trail
from chainette.io.inputs.readers import InputFile, Record, require_distinct

if TYPE_CHECKING:
    import pyarrow.parquet as pq

__all__ = ["ParquetFile"]


class ParquetFile(InputFile):
    """One Parquet file."""

    kind = "parquet"

    def __init__(self, path: Path, limit: int | None) -> None:
        super().__init__(path, limit)
        with self._open() as file:
            self._rows_in_all: int = file.metadata.num_rows
            self._columns: list[str] = list(file.schema_arrow.names)
        require_distinct(self._columns, f"{path}")

    def columns(self) -> list[str]:
        return list(self._columns)

    def _count(self) -> int:
        return self._rows_in_all

    def _open(self) -> pq.ParquetFile:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            return pq.ParquetFile(self.path)
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{self.path}: cannot be read as Parquet: {error}") from error

    def _records(self, start: int, first: int, trail: Trail) -> Generator[Record, None, int]:
        if start < first + self._rows_in_all:
            for number, (row, unreadable) in self._rows(max(0, start - first), trail):
                yield Record(first + number, number + 1, row, file=self.path, unreadable=unreadable)
        return first + self._rows_in_all

    def _rows(self, start: int, trail: Trail) -> Iterator[tuple[int, tuple[dict[str, Any], dict[str, str]]]]:
        """(number in the file, (row, unreadable cells)) from row `start` on, without decoding the row groups before it."""
        import pyarrow as pa

        wanted = [name for name in self._columns if name not in self._left_out] or None
        with self._open() as file:
            ends = _ends(file.metadata, self.size)
            groups: list[int] = []
            index = 0
            for group in range(file.metadata.num_row_groups):
                size = file.metadata.row_group(group).num_rows
                if groups or index + size > start:
                    groups.append(group)
                else:
                    index += size
            try:
                for batch in file.iter_batches(256, row_groups=groups, columns=wanted, use_threads=False):
                    if index + batch.num_rows > start:
                        skip = max(0, start - index)
                        read = next((end for rows, end in ends if rows >= index + batch.num_rows), self.size)
                        trail.catch_up(read, self.path)
                        yield from enumerate(_rows_of(batch.slice(skip)), index + skip)
                    index += batch.num_rows
            except pa.ArrowException as error:
                raise InputError(f"{self.path}: cannot be read after row {index}: {error}") from error


def _ends(metadata: Any, size: int) -> list[tuple[int, int]]:
    """For each row group, the numbers of rows and bytes up to its end; the last one ends with the file."""
    rows, ends = 0, []
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        rows += group.num_rows
        ends.append((rows, max((_end(group.column(column)) for column in range(group.num_columns)), default=0)))
    return [*ends[:-1], (rows, size)]


def _end(column: Any) -> int:
    start = column.data_page_offset
    if column.has_dictionary_page:
        start = min(start, column.dictionary_page_offset)
    return int(start + column.total_compressed_size)


def _rows_of(batch: Any) -> Iterator[tuple[dict[str, Any], dict[str, str]]]:
    """Rows as Python objects, each with the reasons why some of its cells cannot be read."""
    names = batch.schema.names
    columns = [cells(batch.column(index)) for index in range(len(names))]
    for index, row in enumerate(zip(*(values for values, _ in columns), strict=True)):
        found = {name: problems[index] for name, (_, problems) in zip(names, columns, strict=True) if index in problems}
        yield dict(zip(names, row, strict=True)), found
