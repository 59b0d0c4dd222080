"""CSV and TSV as an input: the separator, the header, and cells by column."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import IO

from chainette.errors import InputError
from chainette.io.delimited import KEPT, AnyLineEnd, Line, lines, records, split_cells
from chainette.io.readers import Record, TextFile, not_utf8, open_bytes, require_distinct

__all__ = ["DelimitedFile"]

_SEPARATORS = (",", ";", "\t", "|")
#: Excel's first line for a file whose separator is not the country's.
_SEP_LINE = re.compile(rb'"?sep=([^\w"])"?[\r\n]*', re.IGNORECASE)
_HEAD = 1 << 16
_SAMPLE = 20


class DelimitedFile(TextFile):
    """CSV or TSV with a header. An empty cell is missing, and so are cells that a short record lacks."""

    def __init__(self, path: Path, limit: int | None, max_line_bytes: int, kind: str) -> None:
        super().__init__(path, limit, max_line_bytes)
        self._separator, self._before = _dialect(path, max_line_bytes, "\t" if kind == "tsv" else ",")
        self.kind = "tsv" if self._separator == "\t" else "csv"
        with open_bytes(path) as stream:
            header = next(islice(super()._lines(stream), self._before, None), None)
        self._header = _header_cells(path, header, self._separator) if header else []
        #: A column without a name (the index that pandas writes, Excel's empty columns) is called by its position.
        self._columns = [name or f"column_{number}" for number, name in enumerate(self._header, 1)]
        require_distinct(self._columns, f"{path}:{header.number}" if header else str(path))

    def columns(self) -> list[str]:
        return list(self._columns)

    def _cut(self, stream: IO[bytes]) -> Iterator[Line]:
        return records(AnyLineEnd(stream), self._separator.encode(), self._max_line_bytes)

    def _lines(self, stream: IO[bytes]) -> Iterator[Line]:
        return islice(super()._lines(stream), self._before + 1, None)

    def _record(self, index: int, line: Line) -> Record:
        error = line.error or _not_text(line.data)
        cells = [] if error else split_cells(line.data.decode(), self._separator)
        error = error or self._problem(cells)
        if error:
            return Record(index, line.number, line.data[:KEPT], error, self.path)
        found = {name: cell for name, cell in zip(self._columns, cells, strict=False) if cell}
        return Record(index, line.number, found, file=self.path)

    def _problem(self, cells: list[str | None]) -> str | None:
        if len(cells) > len(self._columns) and any(cells[len(self._columns) :]):
            return f"{len(cells)} cells where the header has {len(self._columns)}; quote cells that hold {self._separator!r}"
        if [(cell or "").strip() for cell in cells] == self._header:
            return "the header again; if two files were put one behind the other, give them as several inputs"
        return None


def _dialect(path: Path, max_bytes: int, usual: str) -> tuple[str, int]:
    """The separator, and how many records stand before the header."""
    with open_bytes(path) as stream:
        head = stream.read(_HEAD)
    source = (line.data for line in lines(AnyLineEnd(io.BytesIO(head)), max_bytes) if not line.data.isspace())
    first = next(source, b"")
    named = _SEP_LINE.fullmatch(first)
    if named:
        return named[1].decode(), 1
    found = {separator: _fit(head, separator, max_bytes) for separator in _SEPARATORS if separator.encode() in first}
    return max(found, key=lambda separator: (*found[separator], separator == usual), default=usual), 0


def _fit(head: bytes, separator: str, max_bytes: int) -> tuple[int, int]:
    """How many of the first records have as many cells as the header, and how many those are (0 if there is no record)."""
    cut = records(AnyLineEnd(io.BytesIO(head)), separator.encode(), max_bytes)
    rows = (split_cells(line.data.decode(errors="replace"), separator) for line in cut if not line.data.isspace())
    counts = [len(row) for row in islice(rows, _SAMPLE + 1)]
    return sum(count == counts[0] for count in counts[1:]), counts[0] if len(counts) > 1 else 0


def _not_text(data: bytes) -> str | None:
    if b"\0" in data:
        return "it holds NUL bytes; the file is damaged, or not text"
    return not_utf8(data)


def _header_cells(path: Path, header: Line, separator: str) -> list[str]:
    problem = header.error or _not_text(header.data)
    if problem:
        raise InputError(f"{path}:{header.number}: the header cannot be read: {problem}")
    return [(name or "").strip() for name in split_cells(header.data.decode(), separator)]
