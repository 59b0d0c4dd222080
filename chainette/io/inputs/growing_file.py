"""A file that grows as it is read: a copy of the part of a source that the run has read.

A run with `accept` may take its rows from a source that never ends, any run from a data set of the hub, and a run that
stops early from a file at a URL. As long as the source may have more, there is a marker file beside the copy; a later session
compares the source with the copy and continues after it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from pydantic import BaseModel

from chainette.errors import InputError
from chainette.io.inputs.hub import HubRows
from chainette.io.inputs.remote_text import RemoteText
from chainette.io.inputs.spool import blocks_of
from chainette.io.rundir.paths import disk_errors, fsync_dir, write_all
from chainette.utils.private_files import make_folder, open_file

__all__ = ["GrowingFile", "RowSource"]

#: A stream of bytes or text, or an iterable of rows.
RowSource = IO[bytes] | IO[str] | RemoteText | Iterable[BaseModel | Mapping[str, Any]]

#: The lines and bytes that are needed to recognize the kind of a stream.
_LINES, _HEAD = 21, 1 << 16


class GrowingFile:
    """One file and its source."""

    def __init__(self, path: Path, source: RowSource | None) -> None:
        """Begins a file, or continues one. `source` gives all rows from its start; None gives no more rows.

        Raises:
            DiskError: the file cannot be opened.
        """
        self.path = path
        #: The log entries with which the source can be opened again, and the columns of all its rows; empty if unknown.
        self.origin: dict[str, Any] = source.origin if isinstance(source, HubRows | RemoteText) else {}
        self.columns = source.columns if isinstance(source, HubRows) and not path.exists() else []
        #: Whether a reader wanted more than the file has, but there was no source.
        self.is_cut = False
        self._mark = path.with_name(f"{path.name}.open")
        self._blocks: Iterator[bytes] | None = None if source is None else blocks_of(source, at_once=True)
        self._closed = False
        self._reading, self._closing = threading.Lock(), threading.Lock()
        with disk_errors(path):
            make_folder(path.parent)
            if not path.exists():
                os.close(open_file(self._mark, os.O_WRONLY | os.O_CREAT))
            self._file = open_file(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)  # only `more` changes it, under the run's lock
            fsync_dir(path.parent)
        #: The bytes of earlier sessions, and those that the source has given in this one.
        self._there, self._given = os.fstat(self._file).st_size, 0

    @property
    def ended(self) -> bool:
        """Whether the source was read to its end."""
        return not self._mark.exists()

    def begin(self) -> None:
        """Reads the part of a new source that is needed to recognize its kind."""
        head = b"" if not self._there else b"\n" * _LINES
        while len(head) < _HEAD and head.count(b"\n") < _LINES and self.more(len(head)):
            with self.path.open("rb") as file:
                head = file.read(_HEAD)
            if self.path.suffix == ".jsonl" and head:
                return

    def more(self, read: int) -> bool:
        """Waits for the next block of the source and appends it, unless the file has more than `read` bytes by now.

        Returns False at the end of the source.

        Raises:
            InputError: the source gives different rows than before, or something that is not a row.
            DiskError: the disk is full, or a write failed.
        """
        with self._reading:
            while self.path.stat().st_size <= read:
                if self.ended or not self._take():
                    return False
            return True

    def drain(self) -> None:
        """Reads the source to its end."""
        while self.more(self.path.stat().st_size):
            pass

    def _take(self) -> bool:
        """Takes the next block of the source; returns False if there is none."""
        block = self._next()
        with self._closing:
            if self._closed or block is None:
                return False
            new = self._unknown(block)
            with disk_errors(self.path):
                write_all(self._file, new)
            if not block:
                self._end()
        return True

    def _next(self) -> bytes | None:
        """The next block of the source; b"" at its end, None if there is no source."""
        if self._blocks is None:
            self.is_cut = True
            return None
        return next(self._blocks, b"")

    def _unknown(self, block: bytes) -> bytes:
        """The part of a block that the file does not have yet.

        Raises:
            InputError: the file has different bytes.
        """
        known = os.pread(self._file, min(len(block), max(0, self._there - self._given)), self._given)
        ends_early = not block and self._given < self._there
        if ends_early or not block.startswith(known):
            raise InputError(self._other_rows())
        self._given += len(block)
        return block[len(known) :]

    def _other_rows(self) -> str:
        where = f"from {self.path} after byte {self._given:,}"
        if (place := self.origin.get("file")) is not None:
            return f"{place} has changed since the run began: it differs {where}. Restore the old file, or begin a new run"
        return (
            f"the source gives different rows than when the run began: they differ {where}. "
            "Give the same rows again, from the first one, or begin a new run"
        )

    def _end(self) -> None:
        self.sync()
        with disk_errors(self.path):
            self._mark.unlink()
            fsync_dir(self.path.parent)

    def sync(self) -> None:
        """Makes everything that was read so far durable."""
        with disk_errors(self.path):
            os.fsync(self._file)

    def close(self) -> None:
        """Closes the file; nothing more is appended, even if the source gives more."""
        with self._closing:
            if not self._closed:
                self._closed = True
                os.close(self._file)
