"""CSV and TSV files as inputs: separator, header, and cells by column."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import IO

from chainette.errors import InputError
from chainette.io.inputs.compression import open_text
from chainette.io.inputs.delimited import records, split_cells
from chainette.io.inputs.readers import KEPT, Record, require_distinct
from chainette.io.inputs.text_file import AnyLineEnd, Line, TextFile, lines, not_utf8
from chainette.utils.plurals import counted

__all__ = ["DelimitedFile"]

_SEPARATORS = (",", ";", "\t", "|")
#: The first line that Excel writes if the separator is not that of the locale.
_SEP_LINE = re.compile(rb'"?sep=([^\w"])"?[\r\n]*', re.IGNORECASE)
_HEAD = 1 << 16
_SAMPLE = 20


class DelimitedFile(TextFile):
    """CSV or TSV with a header. Empty cells count as missing, as do cells that a short record lacks."""

    def __init__(self, path: Path, limit: int | None, max_line_bytes: int, kind: str) -> None:
        super().__init__(path, limit, max_line_bytes)
        self._header: list[str] = []
        self._separator, self._before, self._cr = _dialect(path, max_line_bytes, "\t" if kind == "tsv" else ",")
        self.kind = "tsv" if self._separator == "\t" else "csv"
        with open_text(path) as stream:
            header = next(islice(super()._lines(stream), self._before, None), None)
        self._header = _header_cells(path, header, self._separator) if header else []
        #: A column without a name (the index that pandas writes, an empty column of Excel) is named after its position.
        self._columns = [name or f"column_{number}" for number, name in enumerate(self._header, 1)]
        require_distinct(self._columns, f"{path}:{header.number}" if header else str(path))

    def columns(self) -> list[str]:
        return list(self._columns)

    def _cut(self, stream: IO[bytes]) -> Iterator[Line]:
        found = records(AnyLineEnd(stream) if self._cr else stream, self._separator.encode(), self._max_line_bytes)
        return found if self._cr else self._split_at_cr(found)

    def _split_at_cr(self, found: Iterator[Line]) -> Iterator[Line]:
        """Treats a lone CR as the end of a record if that gives valid records, and otherwise as part of its cell.

        Concatenated files from two systems have such ends; Python and pandas write such cells.
        """
        more = 0
        for line in found:
            line = line._replace(number=line.number + more)
            pieces = [line] if line.error or b"\r" not in line.data[:-2] else self._pieces(line)
            more += len(pieces) - 1
            yield from pieces

    def _pieces(self, line: Line) -> list[Line]:
        cut = records(AnyLineEnd(io.BytesIO(line.data)), self._separator.encode(), self._max_line_bytes, line.number)
        pieces = list(cut)
        wide = len(self._header) > 1
        return pieces if wide and all(_width(piece.data, self._separator) == len(self._header) for piece in pieces) else [line]

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
            cause = f"{counted(len(cells), 'cell')}, but the header has {len(self._columns)}"
            return f"{cause}; quote cells that hold {self._separator!r}"
        if [(cell or "").strip() for cell in cells] == self._header:
            return "this is the header again; if two files were concatenated, give them as separate inputs"
        return None


def _dialect(path: Path, max_bytes: int, usual: str) -> tuple[str, int, bool]:
    """The separator, the number of records before the header, and whether lines end in a lone CR, as the first one does."""
    with open_text(path) as stream:
        head = stream.read(_HEAD)
    source = (line.data for line in lines(AnyLineEnd(io.BytesIO(head)), max_bytes) if not line.data.isspace())
    first = next(source, b"")
    cr = first.endswith(b"\r")
    named = _SEP_LINE.fullmatch(first)
    if named:
        return named[1].decode(), 1, cr
    found = {separator: _fit(head, separator, max_bytes) for separator in _SEPARATORS if separator.encode() in first}
    return max(found, key=lambda separator: (*found[separator], separator == usual), default=usual), 0, cr


def _fit(head: bytes, separator: str, max_bytes: int) -> tuple[int, int]:
    """The number of leading records with as many cells as the header, and that number of cells (0 without records)."""
    cut = records(AnyLineEnd(io.BytesIO(head)), separator.encode(), max_bytes)
    counts = list(islice((_width(line.data, separator) for line in cut if not line.data.isspace()), _SAMPLE + 1))
    return sum(count == counts[0] for count in counts[1:]), counts[0] if len(counts) > 1 else 0


def _width(record: bytes, separator: str) -> int:
    return len(split_cells(record.decode(errors="replace"), separator))


def _not_text(data: bytes) -> str | None:
    if b"\0" in data:
        return "it contains NUL bytes; the file is damaged, or not text"
    return not_utf8(data)


def _header_cells(path: Path, header: Line, separator: str) -> list[str]:
    problem = header.error or _not_text(header.data)
    if problem:
        raise InputError(f"{path}:{header.number}: the header cannot be read: {problem}")
    return [(name or "").strip() for name in split_cells(header.data.decode(), separator)]
