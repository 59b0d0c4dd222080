"""Readers: one input, record by record, in bounded memory.

Every record of an input has a fixed index from 0: bad records have one, blank lines have none. A record
that cannot even be read (too long, not UTF-8, too many cells) is a record with an `error`; it does not affect
the others. `records(start)` starts at an index without decoding the records before it.
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
from chainette.io.inputs.delimited import KEPT
from chainette.io.inputs.input_digest import Stamp, Trail, digest_of, stamp_of
from chainette.records import Read

if TYPE_CHECKING:
    from chainette.io.inputs.growing_file import GrowingFile

__all__ = ["InputFile", "Record", "require_distinct"]

_SAMPLE = 1 << 20
#: The size of a file whose end is not known; more than any file has.
_ENDLESS = 1 << 62
#: Errors of a file that disappeared, or of a compressed file that is cut or damaged.
_BROKEN = (OSError, EOFError, zlib.error)


class Record(msgspec.Struct, frozen=True):
    """One record of the input."""

    #: 0-based; bad records count, blank lines do not.
    index: int
    #: The 1-based line of its file where it starts; in Parquet the record's number in its file, from 1.
    line: int
    #: JSON of a JSONL line; cells by column for CSV (without empty ones) and Parquet; if `error` is
    #: set, the beginning of the bytes that could not be read.
    data: bytes | dict[str, Any]
    #: Why the record cannot be read at all.
    error: str | None = None
    #: The file that holds it.
    file: Path | None = None
    #: Column -> why its cell cannot be read; `data` has None there.
    unreadable: dict[str, str] = {}

    @property
    def raw(self) -> str:
        """The record for people, cut at 64 KiB."""
        if isinstance(self.data, bytes):
            return self.data[:KEPT].decode(errors="replace")
        return str(self.data if len(self.data) < 1000 else list(self.data))[:KEPT]


class InputFile(ABC):
    """An input whose kind is known. Opens its files only while it reads."""

    #: "jsonl", "csv", "tsv" or "parquet"
    kind: str

    def __init__(self, path: Path, limit: int | None, stamps: Sequence[Stamp] = ()) -> None:
        self.path = path.absolute()
        self.limit = limit
        #: Sizes and times of the files when the input was opened.
        self.stamps = tuple(stamps) or (stamp_of(self.path),)
        #: Set if the file grows as it is read.
        self.growing: GrowingFile | None = None
        #: Entries of the log about a place elsewhere that the files were copied from.
        self.origin: dict[str, Any] = {}
        self._left_out: frozenset[str] = frozenset()
        #: Number of records up to the limit, once a pass has reached the end.
        self._total: int | None = None

    @abstractmethod
    def _records(self, start: int, first: int, trail: Trail) -> Generator[Record, None, int]:
        """See `read`."""

    @abstractmethod
    def _count(self) -> int | None: ...

    @abstractmethod
    def columns(self) -> list[str] | None:
        """The columns every record has; None if each record names its own."""

    def leave_out(self, columns: Collection[str]) -> None:
        """Names columns nobody needs, so that the reader may skip them."""
        self._left_out = frozenset(columns)

    def parts(self) -> Sequence[InputFile]:
        """Its files as separate inputs, in reading order."""
        return [self]

    def files(self) -> list[Path]:
        """Its files, in reading order."""
        return [part.path for part in self.parts()]

    def grow(self, growing: GrowingFile) -> None:
        """From now on, a read beyond the end of the file takes more from its source."""
        self.growing = growing
        self.stamps = (Stamp(_ENDLESS, 0, 0),)

    def close(self) -> None:
        """Takes nothing more from the source of a file that grows."""
        if self.growing is not None:
            self.growing.close()

    @property
    def is_cut(self) -> bool:
        """Whether reading ended before its source did, since nobody gave the source."""
        return self.growing is not None and self.growing.is_cut

    def trail(self) -> Trail:
        """Follows one pass over the files, as they were when the input was opened."""
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
        """The number of records that `records()` yields: known after a complete pass, else counted by reading them.

        Raises:
            InputError: a file disappeared, is damaged, or changed while it was read.
        """
        if self._total is None:
            now = Trail(self.files(), [stamp_of(file) for file in self.files()])  # others read it, maybe before it was touched
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
            trail.mark()  # if the file changed, that explains the error better
            raise
        except _BROKEN as error:
            trail.mark()
            raise InputError(f"{self.path}: cannot be read on: {error}") from error

    def count(self) -> int | None:
        """The number of records that `records()` yields: exact up to 64 MiB and for Parquet, beyond an estimate
        from samples, for an ETA. None if even that would mean reading everything (a large compressed file), or if it grows."""
        if self.growing is not None:
            return None
        try:
            found = self._count()
        except _BROKEN:  # reading it later shows where it is damaged
            found = None
        return found if found is None or self.limit is None else min(found, self.limit)

    def identity(self) -> dict[str, Any]:
        """Identifies this input: sizes, times, and a digest of its first and last MiB."""
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
        """Bytes of all files, when the input was opened."""
        return sum(stamp.size for stamp in self.stamps)

    def digest(self, read: Read | None = None) -> str:
        """sha256 of the whole input on disk, over its files in order. `read` may have it already.

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
