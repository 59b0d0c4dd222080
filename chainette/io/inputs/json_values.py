"""JSON that is not one object per line: splits an array of objects, or objects over several lines, as it is read."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import IO

from chainette.io.inputs.readers import KEPT
from chainette.io.inputs.text_file import JsonLinesFile, Line

__all__ = ["JsonFile", "values"]

_BLOCK = 1 << 18
#: A complete string, a bracket, or the quote of a string whose end has not been read.
_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+"|["\[\]{}]', re.DOTALL)
#: Text without a comma outside its strings; the last string may lack its end.
_PIECE = re.compile(rb'(?:"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)|[^",]++)++', re.DOTALL)
#: Bytes that may occur between two values.
_BETWEEN = b" \t\r\n,\xef\xbb\xbf"


class JsonFile(JsonLinesFile):
    """A JSON array of objects, or a sequence of JSON objects."""

    @property
    def _by_lines(self) -> bool:
        return False

    def _cut(self, stream: IO[bytes]) -> Iterator[Line]:
        return values(stream, self._max_line_bytes)

    def _estimate(self, stream: IO[bytes], size: int) -> int:
        head = stream.read(8 << 20)
        return round(sum(1 for _ in _Cutter(self._max_line_bytes).cut(head)) * size / max(1, len(head)))


def values(stream: IO[bytes], max_bytes: int) -> Iterator[Line]:
    """The members of an array, or the values of a sequence. Of a value longer than `max_bytes`, only the beginning is held.

    After a missing bracket or quote, the rest is one bad value.
    """
    cutter = _Cutter(max_bytes)
    while block := stream.read(_BLOCK):
        yield from cutter.cut(block)
    yield from cutter.end()


class _Cutter:
    """The state of a scan: the bytes that were not returned yet, and the number of open brackets."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._rest = b""
        #: The position in `rest` of the bytes that were not returned yet, and their line.
        self._start, self._line = 0, 1
        #: The position up to which `rest` was scanned.
        self._at = 0
        self._depth = 0
        #: The depth of values: 1 in an array, else 0.
        self._base = 0
        #: The bytes and line ends that were dropped from the current value because it is too long.
        self._dropped, self._dropped_lines = 0, 0

    def cut(self, block: bytes) -> Iterator[Line]:
        """The values that end in this block."""
        self._rest = self._rest[self._start :] + block
        self._at -= self._start
        self._start = 0
        while (token := _TOKEN.search(self._rest, self._at)) and token.group() != b'"':
            self._at = token.end()
            yield from self._take(token)
        self._at = token.start() if token else len(self._rest)
        if self._depth > self._base:
            self._drop_excess()
        else:
            yield from self._between(self._last_piece())

    def end(self) -> Iterator[Line]:
        """The remaining values at the end of the file."""
        if self._depth > self._base:
            why = "the file ends inside this value, which lacks a bracket or a quote"
            yield Line(self._line, self._rest[self._start :][:KEPT], why)
            return
        yield from self._between(len(self._rest))
        if self._base:
            yield Line(self._line, b"", "the file ends inside its array; was it cut off?")

    def _take(self, token: re.Match[bytes]) -> Iterator[Line]:
        match token.group():
            case b"[" if self._depth == self._base == 0:
                yield from self._between(token.start())
                self._depth = self._base = 1
                self._skip(token.end())
            case b"{" | b"[":
                if self._depth == self._base:
                    yield from self._between(token.start())
                self._depth += 1
            case b"}" | b"]" if self._depth > self._base:
                self._depth -= 1
                if self._depth == self._base:
                    yield self._value(token.end())
            case b"]" if self._base == 1:
                yield from self._between(token.start())
                self._depth = self._base = 0
                self._skip(token.end())

    def _value(self, end: int) -> Line:
        size, error = end - self._start + self._dropped, ""
        if size > self._max_bytes:
            error = f"the value is {size:,} bytes long, more than the {self._max_bytes:,} allowed; split or shorten it"
        line = Line(self._line, self._rest[self._start : end][: KEPT if error else None], error)
        self._line += self._dropped_lines
        self._dropped, self._dropped_lines = 0, 0
        self._skip(end)
        return line

    def _between(self, end: int) -> Iterator[Line]:
        """Text between values that is not an object (numbers, strings, garbage); each piece is a bad record."""
        if end <= self._start:
            return
        for piece in _PIECE.findall(self._rest, self._start, end):
            found = piece.strip(_BETWEEN)
            if found:
                yield Line(self._line + piece[: piece.index(found)].count(b"\n"), found[:KEPT])
            self._line += piece.count(b"\n")
        self._start = end

    def _last_piece(self) -> int:
        """The start of the piece that may go on in the next block."""
        start = self._start
        for piece in _PIECE.finditer(self._rest, self._start, self._at):
            start = piece.start()
        return start

    def _skip(self, end: int) -> None:
        self._line += self._rest.count(b"\n", self._start, end)
        self._start = end

    def _drop_excess(self) -> None:
        """Keeps the beginning of a long value, and the part of a long string that determines its end."""
        if self._at - self._start > self._max_bytes:
            self._drop(self._start + KEPT, self._at)
        if len(self._rest) - self._at > self._max_bytes:
            self._drop(self._at + 1, len(self._rest.rstrip(b"\\")))

    def _drop(self, start: int, end: int) -> None:
        if start >= end:
            return
        self._dropped += end - start
        self._dropped_lines += self._rest.count(b"\n", start, end)
        self._rest = self._rest[:start] + self._rest[end:]
        if self._at >= end:
            self._at -= end - start
