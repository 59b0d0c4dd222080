"""The index of a run's answers by their keys: a sorted file, which `answer_collection.py` builds.

An entry has 36 bytes: the key, a digest of the row's id, the number of a place (a file of rows), and the row's offset there.
Entries are sorted, so that a lookup reads only a few of them. Rows of Parquet and CSV files, which cannot be read one by
one, are copied to a file of JSON lines beside the index.
"""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import msgspec

from chainette.core.answer_key import KEY_BYTES
from chainette.io.rundir.graph import require_file
from chainette.io.rundir.paths import RunDir

__all__ = [
    "ENTRY_BYTES",
    "MAKING",
    "AnswerIndex",
    "Head",
    "IndexEntry",
    "Mark",
    "RowFile",
    "entry_of",
    "mark_of",
    "open_index",
    "rows_beside",
]

#: The bytes of the parts of an entry after the key (row, place, offset), and of a whole entry.
_ROW, _PLACE, _OFFSET = 8, 4, 8
ENTRY_BYTES = KEY_BYTES + _ROW + _PLACE + _OFFSET

#: The prefix of the names of folders in which an index is built.
MAKING = "making-"

#: The bytes at the end of the log by which a changed log is noticed.
_TAIL = 4096

#: An index ends with the length of its header, and these bytes.
_MAGIC = b"chainette answers 1\n"


class RowFile(msgspec.Struct, frozen=True):
    """A file of rows."""

    #: Its journal as the log names it (`extract/0`); "" for the file of rows beside the index.
    file: str
    #: The folder of the rows, and whether a row may have become several rows.
    folder: str
    many: bool
    #: The largest possible answer of its rows; 0 for functions.
    max_tokens: int

    def __post_init__(self) -> None:
        if self.file:
            require_file(self.file)


class Mark(msgspec.Struct, frozen=True):
    """The part of a log from which an index was built."""

    run_id: str
    #: The length of that part in bytes, and the digest of its last bytes.
    size: int
    tail: str


class Head(msgspec.Struct, frozen=True):
    """The description of an index."""

    mark: Mark
    entries: int
    #: The digest of the entries.
    digest: str
    places: list[RowFile]

    @property
    def trailer(self) -> bytes:
        """The end of the file, after the entries."""
        data = msgspec.json.encode(self)
        return data + len(data).to_bytes(8) + _MAGIC


@dataclass(frozen=True)
class IndexEntry:
    """One stored row: its number in the index, and its location."""

    number: int
    row: bytes
    place: RowFile
    offset: int


def entry_of(key: bytes, row_id: str, place: int, offset: int) -> bytes:
    """The bytes of an entry."""
    return key + _row_digest(row_id) + place.to_bytes(_PLACE) + offset.to_bytes(_OFFSET)


def _row_digest(row_id: str) -> bytes:
    return hashlib.blake2b(row_id.encode(), digest_size=_ROW).digest()


@dataclass
class AnswerIndex:
    """An open index. Its files stay readable as long as it is open, even if the directory is replaced or deleted."""

    path: Path
    source: RunDir
    head: Head
    _map: mmap.mmap
    _log: tuple[int, int]
    _files: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.head.entries

    def of_key(self, key: bytes) -> Iterator[IndexEntry]:
        """The entries of a key, sorted by row."""
        return self._from(self.first(key), key)

    def of_row(self, key: bytes, row_id: str) -> Iterator[IndexEntry]:
        """The entries of a key whose row has this id."""
        wanted = key + _row_digest(row_id)
        return self._from(self.first(wanted), wanted)

    def _from(self, number: int, wanted: bytes) -> Iterator[IndexEntry]:
        while number < len(self) and self._entry(number).startswith(wanted):
            yield self._read(number)
            number += 1

    def siblings(self, entry: IndexEntry, key: bytes) -> Iterator[IndexEntry]:
        """The entries of all rows that the same row became, in the order of the shard."""
        wanted = key + entry.row
        return (other for other in self._from(self.first(wanted), wanted) if other.place.folder == entry.place.folder)

    def at(self, number: int, key: bytes) -> IndexEntry | None:
        """The entry with this number; None if it does not belong to the key."""
        return self._read(number) if number < len(self) and self._entry(number).startswith(key) else None

    def _entry(self, number: int) -> bytes:
        return self._map[number * ENTRY_BYTES : (number + 1) * ENTRY_BYTES]

    def _read(self, number: int) -> IndexEntry:
        entry = self._entry(number)
        place = int.from_bytes(entry[KEY_BYTES + _ROW : -_OFFSET])
        return IndexEntry(
            number, entry[KEY_BYTES : KEY_BYTES + _ROW], self.head.places[place], int.from_bytes(entry[-_OFFSET:])
        )

    def first(self, wanted: bytes) -> int:
        """The number of the first entry not before `wanted`. Keys are spread evenly, so the search begins near it."""
        low, high, size = 0, len(self), len(wanted)
        guess = int.from_bytes(wanted[:8]) * high >> 64
        step = max(8, int(high**0.5))
        if guess - step > 0 and self._entry(guess - step)[:size] < wanted:
            low = guess - step
        if guess + step < high and self._entry(guess + step)[:size] >= wanted:
            high = guess + step
        while low < high:
            middle = (low + high) // 2
            if self._entry(middle)[:size] < wanted:
                low = middle + 1
            else:
                high = middle
        return low

    def line(self, entry: IndexEntry) -> bytes:
        """The row of an entry, as in its shard; b"" if its file is gone, or the directory was replaced."""
        file = self._open(entry.place.file)
        data, size = b"", 1 << 12
        while file >= 0:
            data = os.pread(file, size, entry.offset)
            end = data.find(b"\n")
            if end >= 0:
                return data[:end]
            if len(data) < size:
                return b""
            size *= 8
        return b""

    def _open(self, name: str) -> int:
        """The descriptor of a file of rows; -1 if it is gone."""
        if name not in self._files:
            found = -1
            with suppress(OSError):
                found = os.open(self.source.path / f"{name}.jsonl" if name else rows_beside(self.path), os.O_RDONLY)
                if name and _file_of(self.source.log) != self._log:  # the directory was replaced and has other rows
                    os.close(found)
                    found = -1
            self._files[name] = found
        return self._files[name]

    def close(self) -> None:
        for file in self._files.values():
            if file >= 0:
                os.close(file)
        self._files.clear()
        self._map.close()


def open_index(path: Path, source: RunDir) -> AnswerIndex | None:
    """The index in a file; None if it is damaged, or if the log no longer begins as it did when the index was built."""
    try:
        log = _file_of(source.log)
        with path.open("rb") as file:
            found = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            head = _head_of(found)
            if head is None or _digest_of(file, head.entries * ENTRY_BYTES) != head.digest:
                return None
    except (OSError, ValueError):  # it is missing or empty
        return None
    if head.mark != mark_of(source, head.mark.run_id, head.mark.size):
        return None
    return AnswerIndex(path, source, head, found, log)


def _digest_of(file: IO[bytes], size: int) -> str:
    """The digest of the first bytes of a file, read in pieces, because a memory map would count as memory."""
    digest = hashlib.blake2b()
    while size and (data := file.read(min(size, 1 << 20))):
        digest.update(data)
        size -= len(data)
    return digest.hexdigest()


def _head_of(data: mmap.mmap) -> Head | None:
    end = len(data) - len(_MAGIC)
    if end < 8 or data[end:] != _MAGIC:
        return None
    size = int.from_bytes(data[end - 8 : end])
    try:
        return msgspec.json.decode(data[max(0, end - 8 - size) : end - 8], type=Head)
    except ValueError:  # msgspec's errors, and text that is not UTF-8
        return None


def mark_of(source: RunDir, run_id: str, size: int | None = None) -> Mark:
    """The mark of the first `size` bytes of a log, or of the whole log."""
    with source.log.open("rb") as log:
        length = os.fstat(log.fileno()).st_size if size is None else size
        log.seek(max(0, length - _TAIL))
        tail = log.read(length - log.tell())
    return Mark(run_id, length, hashlib.blake2b(tail, digest_size=16).hexdigest())


def _file_of(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino


def rows_beside(index: Path) -> Path:
    return index.with_name(f"{index.name}.rows")
