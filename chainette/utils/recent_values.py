"""A cache of the most recent values: an index in memory, and the values in a temporary file."""

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
    """Keeps between half of `most` and `most` of the latest values; fewer if they take more than `most_bytes`.

    Keys are digests of one length, at least 8 bytes. There are two tables: once the newer one holds half of `most`, or of
    `most_bytes`, the older one is dropped whole. The index takes at most 64 bytes of memory for each of `most` values, and
    grows as it fills. If the disk is full or fails, values are lost, but nothing is raised.
    """

    most: int
    most_bytes: int
    _new: _Table | None = None
    _old: _Table | None = None

    def __len__(self) -> int:
        return sum(table.count for table in (self._new, self._old) if table is not None)

    def get(self, key: bytes) -> bytes | None:
        """The value of a key; None if it was never stored, or is no longer kept."""
        for table in (self._new, self._old):
            if table is not None and (found := table.get(key)) is not None:
                return found
        return None

    def put(self, key: bytes, value: bytes) -> None:
        """Stores a value in place of an earlier one; a value larger than half of `most_bytes` is not stored."""
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
        """Drops all values and closes the files."""
        for table in (self._new, self._old):
            if table is not None:
                table.close()
        self._new = self._old = None


@dataclass
class _Table:
    """A hash table with open addressing: the tag of each key, and the offset of its value in the file plus 1; 0 is free."""

    file: FileIO
    tags: memoryview
    places: memoryview
    count: int = 0
    size: int = 0
    #: Closes the file once, at the latest when the table is garbage-collected.
    close: Callable[[], object] = field(init=False)
    _mask: int = field(init=False)

    def __post_init__(self) -> None:
        self.close = weakref.finalize(self, self.file.close)
        self._mask = len(self.tags) - 1

    @classmethod
    def open(cls, most: int) -> _Table | None:
        """An empty table that `most` values fill at most half; None if its file cannot be created."""
        try:
            file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115  # `close` closes it
        except OSError:
            return None
        slots = 1 << max(4, (2 * most).bit_length())
        # a page of these takes no memory until it is written to
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
        """The slot of a key in the table, or the free slot that it would take."""
        tag, tags, mask = _tag(key), self.tags, self._mask
        at = tag & mask
        while (found := tags[at]) and found != tag:
            at = (at + 1) & mask
        return at


def _tag(key: bytes) -> int:
    return int.from_bytes(key[:_NUMBER]) | 1 << 63
