"""Server-sent events and JSON lines, put together line by line (WHATWG HTML, 9.2.6), as servers write them.

More lenient than the standard: an event may be a line without a blank one after it, or JSON without `data:`, and
data that is not an object ("[DONE]", "ping") is passed over.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

import msgspec

__all__ = ["Events", "lines_of"]

T = TypeVar("T")

_LINE = re.compile(rb"([^\r\n]*)(?:\r\n|\r|\n|\Z)")


class Events(Generic[T]):
    """The decoded objects of one stream.

    `decode` raises msgspec.DecodeError for bytes that are not an object; so does `feed` for an event that begins like
    one, because a part of the answer would be lost.
    """

    def __init__(self, decode: Callable[[bytes], T]) -> None:
        self._decode = decode
        self._data: list[bytes] = []
        self._is_error = False

    def feed(self, line: bytes) -> Iterator[T]:
        """Takes in a line without its end."""
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if not line:
            yield from self.end()
        elif line.startswith(b"{"):
            yield self._decode(line)
        elif name == b"event":
            self._is_error = value.strip() == b"error"
        elif name == b"data" and (self._data or value.lstrip().startswith(b"{")):
            yield from self._take(value)

    def end(self) -> Iterator[T]:
        """The event a blank line, or the end of the stream, completes."""
        data, self._data = b"\n".join(self._data), []
        self._is_error = False
        if data:
            yield self._decode(data)

    def _take(self, value: bytes) -> Iterator[T]:
        """Most events are one line, which need not wait for the next."""
        if not self._data:
            try:
                yield self._decode(b'{"error":%b}' % value if self._is_error else value)
                return
            except msgspec.DecodeError:
                pass
        self._data.append(value)


def lines_of(data: bytes) -> Iterator[bytes]:
    """The lines of a body, one at a time: a list of very many would fill the memory."""
    for line in _LINE.finditer(data):
        yield line[1]
