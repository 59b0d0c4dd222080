"""Readers: they read an input record by record, in bounded memory.

Every record of an input has a fixed index from 0. Bad records have an index too; blank lines do not. A record
that cannot be read (too long, not UTF-8, too many cells) has an `error` and does not affect the others.
`records(start)` starts at an index without decoding the records before it.
"""

from __future__ import annotations

import hashlib
import zlib
from abc import ABC, abstractmethod
from collections.abc import Collection, Generator, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from chainette.errors import InputError
from chainette.io.inputs.input_digest import Stamp, Trail, digest_of, stamp_of
from chainette.records import Read

if TYPE_CHECKING:
    from chainette.io.inputs.growing_file import GrowingFile

__all__ = ["KEPT", "InputFile", "Record", "require_distinct"]

#: The bytes of a record that its rejection keeps.
KEPT = 65536

_SAMPLE = 1 << 20
#: The assumed size of a file whose end is unknown, larger than any file.
_ENDLESS = 1 << 62
#: Errors of a file that disappeared, or of a compressed file that is cut or damaged.
_BROKEN = (OSError, EOFError, zlib.error)


class Record(msgspec.Struct, frozen=True):
    """A record of an input."""

    #: Its index from 0; bad records count, blank lines do not.
    index: int
    #: The line of its file at which it starts, from 1; in Parquet, the number of the record in its file, from 1.
    line: int
    #: The JSON of a JSONL line, or the cells by column of CSV (without empty ones) and Parquet. If `error` is
    #: set, the beginning of the bytes that cannot be read.
    data: bytes | dict[str, Any]
    #: The reason why the record cannot be read; None if it can.
    error: str | None = None
    #: The file of the record.
    file: Path | None = None
    #: Column -> the reason why its cell cannot be read; the cell is None in `data`.
    unreadable: dict[str, str] = {}

    @property
    def raw(self) -> str:
        """The record as text for people, cut at 64 KiB."""
        if isinstance(self.data, bytes):
            return self.data[:KEPT].decode(errors="replace")
        return str(self.data if len(self.data) < 1000 else list(self.data))[:KEPT]


class InputFile(ABC):
    """An input of a known kind. Its files are open only while they are read."""

    #: "jsonl", "csv", "tsv" or "parquet"
    kind: str

    def __init__(self, path: Path, limit: int | None, stamps: Sequence[Stamp] = ()) -> None:
        self.path = path.absolute()
        self.limit = limit
        #: The sizes and times of the files when the input was opened.
        self.stamps = tuple(stamps) or (stamp_of(self.path),)
        #: The file, if it grows as it is read.
        self.growing: GrowingFile | None = None
        #: Log entries about the origin of files that were copied from elsewhere.
        self.origin: dict[str, Any] = {}
        self._left_out: frozenset[str] = frozenset()
        #: The number of records up to the limit, once a pass has reached the end.
        self._total: int | None = None

    @abstractmethod
    def _records(self, start: int, first: int, trail: Trail) -> Generator[Record, None, int]:
        """See `read`."""

    @abstractmethod
    def _count(self) -> int | None: ...

    @abstractmethod
    def columns(self) -> list[str] | None:
        """The columns of every record; None if each record names its own."""

    def leave_out(self, columns: Collection[str]) -> None:
        """Names columns that nobody needs, so that the reader can skip them."""
        self._left_out = frozenset(columns)

    def parts(self) -> Sequence[InputFile]:
        """The files as separate inputs, in reading order."""
        return [self]

    def files(self) -> list[Path]:
        """The files, in reading order."""
        return [part.path for part in self.parts()]

    def grow(self, growing: GrowingFile) -> None:
        """From now on, reading beyond the end of the file takes more from its source."""
        self.growing = growing
        self.stamps = (Stamp(_ENDLESS, 0, 0),)

    def close(self) -> None:
        """Stops taking more from the source of a file that grows."""
        if self.growing is not None:
            self.growing.close()

    @property
    def is_cut(self) -> bool:
        """Whether reading ended early because the source was not given."""
        return self.growing is not None and self.growing.is_cut

    def trail(self) -> Trail:
        """A trail for one pass over the files, as they were when the input was opened."""
        if self.growing is not None:
            return Trail(self.files(), self.stamps, self.growing)
        return Trail(self.files(), self.stamps)

    def records(self, start: int = 0, trail: Trail | None = None) -> Iterator[Record]:
        """The records from index `start` up to the limit. `trail` follows the position in the files.

        Raises:
            InputError: a file disappeared, is damaged, or changed while it was read.
        """
        trail = trail or self.trail()
        reading = self.read(start, 0, trail)
        at = start
        while self.limit is None or at < self.limit:
            try:
                record = next(reading)
            except StopIteration as end:
                self._total = int(end.value)
                break
            yield record
            at = record.index + 1
        if self.limit is not None and start < at >= self.limit:
            self._total = self.limit
        trail.end()

    def total(self) -> int:
        """The number of records that `records()` yields. It is known after a complete pass; otherwise all records are read.

        Raises:
            InputError: a file disappeared, is damaged, or changed while it was read.
        """
        if self._total is None:
            now = Trail(
                self.files(), [stamp_of(file) for file in self.files()]
            )  # another reader may have read it before its times changed
            now = now if self.growing is None else self.trail()
            self._total = self.count() if self.kind == "parquet" else sum(1 for _ in self.records(trail=now))
        assert self._total is not None
        return self._total

    def read(self, start: int, first: int, trail: Trail) -> Generator[Record, None, int]:
        """Yields the records from index `start` on, numbered from `first`; returns the index after the last one.

        Raises:
            InputError: the file disappeared, is damaged, or changed while it was read.
        """
        try:
            return (yield from self._records(start, first, trail))
        except InputError:
            trail.mark()  # a change of the file explains the error better
            raise
        except _BROKEN as error:
            trail.mark()
            raise InputError(f"{self.path}: reading stopped: {error}") from error

    def count(self) -> int | None:
        """The number of records that `records()` yields: exact up to 64 MiB and for Parquet, otherwise an estimate from
        samples, for an ETA. None if the file grows, or if an estimate would need a complete pass (a large compressed file)."""
        if self.growing is not None:
            return None
        try:
            found = self._count()
        except _BROKEN:  # a later read raises the error with its position
            found = None
        return found if found is None or self.limit is None else min(found, self.limit)

    def identity(self) -> dict[str, Any]:
        """The identity of this input, for the log: sizes, times, and a digest of its first and last MiB."""
        if self.growing is not None:
            return {"path": str(self.path), "kind": self.kind, "growing": True, **self.growing.origin}
        return {
            "path": str(self.path),
            "kind": self.kind,
            "size": self.size,
            "mtime_ns": max(stamp.mtime_ns for stamp in self.stamps),
            "sample": _sample_digest(self.files()),
            "files": [list(stamp) for stamp in self.stamps],
            **self.origin,
        }

    @property
    def size(self) -> int:
        """The total bytes of all files when the input was opened."""
        return sum(stamp.size for stamp in self.stamps)

    def digest(self, read: Read | None = None) -> str:
        """The sha256 of the whole input on disk, of its files in order; it is taken from `read` if `read` covers everything.

        "" if the files are no longer those that were opened.
        """
        if read is not None and read.upto == self.size:
            return read.digest
        if self.growing is not None:
            return digest_of(self.files())
        try:
            found = digest_of(self.files())
            same = all(stamp_of(file)[:2] == stamp[:2] for file, stamp in zip(self.files(), self.stamps, strict=True))
        except InputError:
            return ""
        return found if same else ""


def _sample_digest(files: list[Path]) -> str:
    total = hashlib.sha256()
    with files[0].open("rb") as first:
        total.update(first.read(_SAMPLE))
    with files[-1].open("rb") as last:
        last.seek(max(0, files[-1].stat().st_size - _SAMPLE))
        total.update(last.read(_SAMPLE))
    return total.hexdigest()


def require_distinct(columns: list[str], place: str) -> None:
    """Raises InputError if two columns have the same name."""
    twice = sorted({name for name in columns if columns.count(name) > 1})
    if twice:
        raise InputError(f"{place}: more than one column is named {', '.join(map(repr, twice))}; rename them")
