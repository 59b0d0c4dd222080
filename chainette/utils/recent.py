"""The last values that were put in, by key: a table in memory, and the values in a temporary file."""

from __future__ import annotations

import mmap
import os
import tempfile
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from io import FileIO

__all__ = ["Recent"]

#: Bytes of a number in the table, and of the length before a value.
_NUMBER, _LENGTH = 8, 4


@dataclass
class Recent:
    """Keeps at least the last half of `most` values, and at most all of them; fewer if they have more than `most_bytes`.

    Keys are digests, all of one length and 8 bytes at least. Two tables take turns: once the newer one is half of it all,
    the older one is thrown away whole. In memory there are 64 bytes or less for each of `most` values, and only as far as
    they are used; a disk that is full or fails costs values.
    """

    most: int
    most_bytes: int
    _new: _Table | None = None
    _old: _Table | None = None

    def __len__(self) -> int:
        return sum(table.count for table in (self._new, self._old) if table is not None)

    def get(self, key: bytes) -> bytes | None:
        """The value of a key; None if there is none, or if it is too long ago."""
        for table in (self._new, self._old):
            if table is not None and (found := table.get(key)) is not None:
                return found
        return None

    def put(self, key: bytes, value: bytes) -> None:
        """Keeps a value, in place of an earlier one; one that would take all the room is not kept."""
        size = len(key) + _LENGTH + len(value)
        if 2 * size > self.most_bytes:
            return
        table = self._new
        if table is None or 2 * (table.count + 1) > self.most or 2 * (table.size + size) > self.most_bytes:
            if self._old is not None:
                self._old.close()
            self._old, table = self._new, _Table.open(self.most // 2)
            self._new = table
        if table is not None:
            table.put(key, value)

    def close(self) -> None:
        """Forgets everything."""
        for table in (self._new, self._old):
            if table is not None:
                table.close()
        self._new = self._old = None


@dataclass
class _Table:
    """Open addressing: the first bytes of each key beside the place of its value in the file, both from 1."""

    file: FileIO
    tags: memoryview
    places: memoryview
    count: int = 0
    size: int = 0
    #: Closes the file, once: at the latest when nobody has the table any more.
    close: Callable[[], object] = field(init=False)
    _mask: int = field(init=False)

    def __post_init__(self) -> None:
        self.close = weakref.finalize(self, self.file.close)
        self._mask = len(self.tags) - 1

    @classmethod
    def open(cls, most: int) -> _Table | None:
        """An empty table that is at most half full with so many values; None if the disk refuses its file."""
        try:
            file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115  # `close` is for that
        except OSError:
            return None
        slots = 1 << max(4, (2 * most).bit_length())
        # a page of these takes memory once something is written there
        tags, places = (memoryview(mmap.mmap(-1, slots * _NUMBER)).cast("Q") for _ in range(2))
        return cls(file, tags, places)

    def get(self, key: bytes) -> bytes | None:
        at = self._slot(key)
        if not self.tags[at]:
            return None
        start = self.places[at] - 1
        try:
            head = os.pread(self.file.fileno(), len(key) + _LENGTH + 512, start)
            end = len(key) + _LENGTH + int.from_bytes(head[len(key) : len(key) + _LENGTH])
            if len(head) < end:
                head += os.pread(self.file.fileno(), end - len(head), start + len(head))
        except OSError:
            return None
        return head[len(key) + _LENGTH : end] if head.startswith(key) and len(head) >= end else None

    def put(self, key: bytes, value: bytes) -> None:
        record = key + len(value).to_bytes(_LENGTH) + value
        try:
            if os.pwrite(self.file.fileno(), record, self.size) < len(record):
                return
        except OSError:
            return
        at = self._slot(key)
        self.count += not self.tags[at]
        self.tags[at], self.places[at] = _tag(key), self.size + 1
        self.size += len(record)

    def _slot(self, key: bytes) -> int:
        """The place of a key in the table, or the free one that it would take."""
        tag, tags, mask = _tag(key), self.tags, self._mask
        at = tag & mask
        while (found := tags[at]) and found != tag:
            at = (at + 1) & mask
        return at


def _tag(key: bytes) -> int:
    return int.from_bytes(key[:_NUMBER]) | 1 << 63
