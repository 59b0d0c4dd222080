"""Text files as inputs, split into lines or records: JSON Lines, and the parts shared with CSV."""

from __future__ import annotations

import io
from abc import abstractmethod
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import IO

from chainette.io.inputs.delimited import AnyLineEnd, Line, lines, skip_lines, without_mark
from chainette.io.inputs.input_digest import Trail
from chainette.io.inputs.packing import open_text, packing_of, text_of
from chainette.io.inputs.readers import InputFile, Record

__all__ = ["JsonLinesFile", "TextFile", "not_utf8"]

#: Inputs of at most this size, in bytes, are counted; larger ones are estimated from samples.
_COUNTED_BYTES, _SAMPLE = 64 << 20, 1 << 20

#: The bytes in which a lone carriage return is searched for.
_HEAD = 1 << 16


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
        skipped, number, rest = skip_lines(stream, records, self._max_line_bytes)
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
