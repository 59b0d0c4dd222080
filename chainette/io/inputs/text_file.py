"""Text files as inputs, split into lines or records: JSON Lines, and the parts shared with CSV."""

from __future__ import annotations

import io
import re
from abc import abstractmethod
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import IO, NamedTuple, Protocol

from chainette.io.inputs.compression import BOM, open_text, packing_of, text_of
from chainette.io.inputs.input_digest import Trail
from chainette.io.inputs.readers import KEPT, InputFile, Record

__all__ = ["AnyLineEnd", "JsonLinesFile", "Line", "LineSource", "TextFile", "lines", "not_utf8", "without_mark"]

#: Inputs of at most this size, in bytes, are counted; larger ones are estimated from samples.
_COUNTED_BYTES, _SAMPLE = 64 << 20, 1 << 20

#: The bytes in which a lone carriage return is searched for.
_HEAD = 1 << 16

_BLOCK = 1 << 16
#: Bytes of lines that are skipped at a time.
_SKIPPED = 1 << 20
#: A blank line, from the end of the line before it up to its own end.
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


def _skip_lines(stream: IO[bytes], records: int, max_bytes: int) -> tuple[int, int, LineSource]:
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


class TextFile(InputFile):
    """The parts that JSONL and CSV share: text that is split into lines or records."""

    def __init__(self, path: Path, limit: int | None, max_line_bytes: int) -> None:
        super().__init__(path, limit)
        self._max_line_bytes = max_line_bytes

    @abstractmethod
    def _cut(self, stream: IO[bytes]) -> Iterator[Line]:
        """One `Line` for each record of the stream, including blank lines."""

    @abstractmethod
    def _record(self, index: int, line: Line) -> Record: ...

    def _records(self, start: int, first: int, trail: Trail) -> Generator[Record, None, int]:
        with text_of(trail.open(self.path)) as stream:
            skipped, found = self._skip(stream, start - first)
            index = first + skipped
            for line in found:
                if index >= start:
                    yield self._record(index, line)
                index += 1
        return index

    def _skip(self, stream: IO[bytes], records: int) -> tuple[int, Iterator[Line]]:
        """Skips up to `records` records, if that is faster than reading them; returns their number and the next records."""
        if records <= 0 or not self._by_lines or self.growing is not None:  # large blocks would read ahead of the need
            return 0, self._lines(stream)
        skipped, number, rest = _skip_lines(stream, records, self._max_line_bytes)
        return skipped, _not_blank(map(without_mark, lines(rest, self._max_line_bytes, number + 1)))

    @property
    def _by_lines(self) -> bool:
        """Whether every line that is not blank is a record that ends in LF."""
        return False

    def _lines(self, stream: IO[bytes]) -> Iterator[Line]:
        return _not_blank(self._cut(stream))

    def _count(self) -> int | None:
        size = self.path.stat().st_size
        with self.path.open("rb") as file:
            compressed = bool(packing_of(file.read(4)))
        with open_text(self.path) as stream:
            if size <= (_COUNTED_BYTES >> 3 if compressed else _COUNTED_BYTES):
                return sum(1 for _ in self._lines(stream))
            return None if compressed else self._estimate(stream, size)

    def _estimate(self, stream: IO[bytes], size: int) -> int:
        """The number of records, estimated from eight evenly spread samples of 1 MiB."""
        sampled = 0
        for part in range(8):
            stream.seek(size // 8 * part)
            sampled += _line_ends(stream.read(_SAMPLE))
        stream.seek(0)
        head = stream.read(_SAMPLE)
        return round(size / (8 * _SAMPLE) * sampled * self._records_per_line(head))

    def _records_per_line(self, head: bytes) -> float:
        found = sum(1 for _ in self._lines(io.BytesIO(head)))
        return found / max(1, _line_ends(head))


def _not_blank(found: Iterable[Line]) -> Iterator[Line]:
    return (line for line in found if line.error or line.data.strip())


def _line_ends(block: bytes) -> int:
    return block.count(b"\n") or block.count(b"\r")


class JsonLinesFile(TextFile):
    """One JSON object per line."""

    kind = "jsonl"

    def __init__(self, path: Path, limit: int | None, max_line_bytes: int) -> None:
        super().__init__(path, limit, max_line_bytes)
        with open_text(path) as stream:
            head = stream.read(_HEAD)
        #: Whether lines end in a lone carriage return, which is otherwise whitespace in JSON.
        self._cr = b"\r" in head.replace(b"\r\n", b"")

    def columns(self) -> None:
        return None

    @property
    def _by_lines(self) -> bool:
        return not self._cr

    def _cut(self, stream: IO[bytes]) -> Iterator[Line]:
        return map(without_mark, lines(AnyLineEnd(stream) if self._cr else stream, self._max_line_bytes))

    def _record(self, index: int, line: Line) -> Record:
        data = line.data.rstrip(b"\r\n")
        return Record(index, line.number, data, line.error or not_utf8(data), self.path)


def not_utf8(data: bytes) -> str | None:
    """The reason why a record cannot be decoded; None if it can."""
    if data.isascii():
        return None
    try:
        data.decode()
    except UnicodeDecodeError as error:
        byte = data[error.start : error.start + 1]
        western = byte.decode("cp1252", errors="ignore")
        hint = f" (iconv -f WINDOWS-1252 -t UTF-8, if that byte stands for {western!r})" if western else ""
        return f"not UTF-8: byte {error.start} of the record is 0x{byte.hex()}; convert the file to UTF-8{hint}"
    return None
