"""CSV and TSV as text: splits a stream into records and records into cells, and writes them.

RFC 4180, read as leniently as Python's csv module: a quote matters only at the start of a cell.
Unlike that module, it distinguishes an empty cell (None) from a quoted empty one (""), knows the line
at which a record starts, and never holds more than `max_bytes` of a record.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator
from typing import IO, Any, NamedTuple, Protocol

from chainette.utils.plurals import counted

__all__ = [
    "BOM",
    "KEPT",
    "AnyLineEnd",
    "Line",
    "LineSource",
    "format_cells",
    "lines",
    "records",
    "skip_lines",
    "split_cells",
    "without_mark",
]

_SPECIAL = frozenset('",\r\n')
#: Bytes of a line that is too long that are kept for the rejection.
KEPT = 65536
_BLOCK = 1 << 16
#: Bytes of lines that are skipped at a time.
_SKIPPED = 1 << 20
#: The byte-order mark of UTF-8.
BOM = b"\xef\xbb\xbf"
#: A blank line, from the end of the previous line to its own end.
_BLANK = re.compile(rb"\n(?:%b)?[ \t\r\v\f]*+(?=\n)" % BOM)


class Line(NamedTuple):
    """A line, or a CSV record of several lines, with its line end."""

    number: int
    data: bytes
    #: The reason why `data` is only the beginning of the line; "" if it is complete.
    error: str = ""


class LineSource(Protocol):
    """A source of text, read line by line."""

    def readline(self, size: int, /) -> bytes: ...


class AnyLineEnd:
    """Reads lines that end in CR, LF or both, as in CSV files of different systems."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        #: Lines that were read ahead; the last one is next.
        self._read: list[bytes] = []

    def readline(self, size: int, /) -> bytes:
        """The next line; if it is longer than `size` bytes, a part of at least that length."""
        line = b""
        while self._fill():
            line += self._read.pop()
            if line.endswith(b"\n") or len(line) >= size:
                break
            if line.endswith(b"\r"):
                if self._fill() and self._read[-1] == b"\n":  # the block ended between CR and LF
                    line += self._read.pop()
                break
        return line

    def _fill(self) -> bool:
        if not self._read:
            self._read = self._stream.readline(_BLOCK).splitlines(keepends=True)[::-1]
        return bool(self._read)


class _Ahead:
    """Bytes that were read ahead (complete lines and the beginning of one), followed by the rest of their stream."""

    def __init__(self, data: bytes, stream: IO[bytes]) -> None:
        self._data, self._stream = io.BytesIO(data), stream

    def readline(self, size: int, /) -> bytes:
        line = self._data.readline(size)
        return line if line.endswith(b"\n") or len(line) == size else line + self._stream.readline(size - len(line))


def skip_lines(stream: IO[bytes], records: int, max_bytes: int) -> tuple[int, int, LineSource]:
    """Skips lines that end in LF by counting them, in blocks, for at most `records` records.

    Returns the number of records (lines that are not blank) and of lines that were skipped, and the rest of the stream.
    Stops early at a long line, so that memory stays bounded.
    """
    skipped = number = 0
    ahead = b"\n"  # begins with the end of the previous line
    while len(ahead) <= max_bytes and (data := stream.read(_SKIPPED)):
        ahead += data
        last = ahead.rfind(b"\n")
        ends = ahead.count(b"\n", 1, last + 1)
        found = ends - sum(len(blank[0]) <= max_bytes + 1 for blank in _BLANK.finditer(ahead, 0, last + 1))
        if skipped + found > records:
            break
        skipped, number, ahead = skipped + found, number + ends, ahead[last:]
    return skipped, number, _Ahead(ahead[1:], stream)


def lines(stream: LineSource, max_bytes: int, first: int = 1) -> Iterator[Line]:
    """The lines of a stream. Of a line longer than `max_bytes`, only the beginning is held."""
    ends = (b"\n", b"\r") if isinstance(stream, AnyLineEnd) else (b"\n",)
    number = first - 1
    while data := stream.readline(max_bytes + 1):
        number += 1
        if len(data) > max_bytes and not data.endswith(ends):
            total = len(data) + _skip_line(stream, ends)
            yield Line(
                number,
                data[:KEPT],
                f"the line is {total:,} bytes long, more than the {max_bytes:,} allowed; split or shorten it",
            )
        else:
            yield Line(number, data)


def without_mark(line: Line) -> Line:
    """The line without a byte-order mark at its beginning; concatenated files have such marks."""
    return line._replace(data=line.data[len(BOM) :]) if line.data.startswith(BOM) else line


def _skip_line(stream: LineSource, ends: tuple[bytes, ...]) -> int:
    skipped = 0
    while data := stream.readline(1 << 20):
        skipped += len(data)
        if data.endswith(ends):
            break
    return skipped


def records(stream: LineSource, separator: bytes, max_bytes: int, first: int = 1) -> Iterator[Line]:
    """The records of a CSV stream: its lines, which are joined if a quoted cell contains a line end."""
    source = lines(stream, max_bytes, first)
    for line in map(without_mark, source):
        if not line.error and b'"' in line.data and _is_open(line.data, separator, inside=False):
            yield _join_record(line, source, separator, max_bytes)
        else:
            yield line


def _join_record(start: Line, source: Iterable[Line], separator: bytes, max_bytes: int) -> Line:
    parts, size, error, last = [start.data], len(start.data), "", start.number
    for line in source:
        last, data = line.number, line.data
        size += len(data)
        error = error or line.error
        if not error and size > max_bytes:
            error = f"the record is longer than the {max_bytes:,} bytes allowed; is a quote in it never closed?"
        if error:
            parts = [b"".join(parts)[:KEPT]]
        else:
            parts.append(data)
        if not _is_open(data, separator, inside=True):
            break
    else:
        error = f"a quoted cell in it is never closed, so the record goes on for {counted(last - start.number, 'more line')}"
    data = b"".join(parts)
    if not error and not _is_well_quoted(data, separator):
        error = (
            f"it has a quote in the middle of a cell, so lines {start.number} to {last} were read as one record; "
            "is there a quote too many, or one that is not doubled?"
        )
    return Line(start.number, data, error)


def _is_well_quoted(record: bytes, separator: bytes) -> bool:
    """Whether every quoted cell ends at a separator or at the end; if not, a stray quote may have joined lines."""
    between = re.escape(separator)
    cell = rb'(?:"(?:[^"]++|"")*+"|[^"%b][^%b]*+)?+' % (between, between)
    return re.fullmatch(rb"%b(?:%b%b)*+" % (cell, between, cell), record.rstrip(b"\r\n")) is not None


def _is_open(data: bytes, separator: bytes, *, inside: bool) -> bool:
    """Whether a quoted cell is open at the end of a line."""
    at = 0
    while True:
        if not inside:
            if data[at : at + 1] != b'"':
                at = data.find(separator, at) + 1
                if at == 0:
                    return False
                continue
            at += 1
        quote = data.find(b'"', at)
        if quote < 0:
            return True
        inside = data[quote + 1 : quote + 2] == b'"'
        at = quote + 2 if inside else data.find(separator, quote + 1) + 1
        if at == 0:
            return False


def split_cells(text: str, separator: str) -> list[str | None]:
    """The cells of a record; None stands for an empty cell without quotes."""
    text = text.removesuffix("\n").removesuffix("\r")
    if '"' not in text:
        return [cell or None for cell in text.split(separator)]
    cells: list[str | None] = []
    at = 0
    while at <= len(text):
        cell, at = _quoted(text, at + 1, separator) if text.startswith('"', at) else _plain(text, at, separator)
        cells.append(cell)
    return cells


def _plain(text: str, at: int, separator: str) -> tuple[str | None, int]:
    end = text.find(separator, at)
    end = len(text) if end < 0 else end
    return text[at:end] or None, end + 1


def _quoted(text: str, at: int, separator: str) -> tuple[str, int]:
    """The quoted cell whose content starts at `at`, and the position of the next cell."""
    parts = []
    while (quote := text.find('"', at)) >= 0 and text.startswith('"', quote + 1):
        parts.append(text[at : quote + 1])
        at = quote + 2
    quote = len(text) if quote < 0 else quote
    rest, following = _plain(text, quote + 1, separator)
    return "".join([*parts, text[at:quote], rest or ""]), following


def format_cells(cells: Iterable[Any]) -> str:
    """A line of CSV. None becomes an empty cell and an empty string "", so that they can be distinguished."""
    return ",".join(["" if cell is None else _quote(cell) for cell in cells]) + "\n"


def _quote(cell: str) -> str:
    if cell and _SPECIAL.isdisjoint(cell) and cell[0] > " " and cell[-1] > " ":
        return cell
    return '"' + cell.replace('"', '""') + '"'
