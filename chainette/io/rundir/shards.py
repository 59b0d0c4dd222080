"""StreamWriter: the rolling shards of a folder, to which rows are appended and made durable in groups."""

from __future__ import annotations

import os
import zlib
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from chainette.io.rundir.paths import disk_errors, fsync_dir, write_all
from chainette.utils.private_files import make_folder, open_file

__all__ = ["Span", "StreamWriter"]


#: A span in a journal: (start bytes, start rows, end bytes, end rows).
Span = tuple[int, int, int, int]


@dataclass
class _Open:
    """The current journal."""

    number: int
    path: Path
    file: int
    bytes: int
    rows: int


class StreamWriter:
    """Writes the rows of a folder as lines of a journal, with a new journal every `max_rows` rows.

    For JSONL, the journal is the shard; Parquet and CSV journals are in `.journal/` until they are
    sealed. `append` buffers nothing in this process; `sync` makes all appends so far durable.
    """

    def __init__(self, folder: str, directory: Path, max_rows: int) -> None:
        #: The name of the folder in the log: `extract`, `.held/extract`.
        self.folder = folder
        self.directory = directory
        self.max_rows = max_rows
        self._open: _Open | None = None
        self._next = 0
        self._dirty: list[_Open] = []
        self._rows: dict[int, int] = {}
        #: Journal as the log names it -> CRC-32 of its bytes so far.
        self.sums: dict[str, int] = {}
        #: Numbers of journals that are full.
        self.full: list[int] = []

    def journal(self, number: int) -> Path:
        return self.directory / f"{number}.jsonl"

    def file(self, number: int) -> str:
        """The name of a journal in the log."""
        return f"{self.folder}/{number}"

    def rows(self, number: int) -> int:
        """The number of rows of a journal."""
        return self._rows[number]

    def append(self, lines: Sequence[bytes]) -> dict[str, Span]:
        """Appends complete lines (without newlines); returns their spans by journal.

        Raises:
            DiskError: the disk is full, or a write failed.
        """
        spans: dict[str, Span] = {}
        rest = list(lines)
        while rest:
            journal = self._open or self._create()
            taken, rest = rest[: self.max_rows - journal.rows], rest[self.max_rows - journal.rows :]
            data = b"\n".join(taken) + b"\n"
            start = (journal.bytes, journal.rows)
            with disk_errors(journal.path):
                write_all(journal.file, data)
            journal.bytes += len(data)
            journal.rows += len(taken)
            self._rows[journal.number] = journal.rows
            file = self.file(journal.number)
            self.sums[file] = zlib.crc32(data, self.sums.get(file, 0))
            spans[file] = (*start, journal.bytes, journal.rows)
            if journal not in self._dirty:
                self._dirty.append(journal)
            if journal.rows >= self.max_rows:
                self.full.append(journal.number)
                self._open = None
        return spans

    def sync(self) -> None:
        """Makes everything appended durable, and closes full journals."""
        while self._dirty:
            journal = self._dirty[0]
            with disk_errors(journal.path):
                os.fsync(journal.file)
            del self._dirty[0]  # before the close, because `let_go` closes the rest of this list
            if journal is not self._open:
                os.close(journal.file)

    def close(self) -> list[int]:
        """Closes the open journal; returns the numbers of all journals that are not sealed yet."""
        self.sync()
        if self._open is not None:
            os.close(self._open.file)
            self.full.append(self._open.number)
            self._open = None
        return self.full

    def let_go(self) -> None:
        """Closes files without writing anything; safe after `close`, and after a failed write."""
        journals = [*self._dirty, *([self._open] if self._open is not None and self._open not in self._dirty else [])]
        for journal in journals:
            os.close(journal.file)
        self._dirty.clear()
        self._open = None

    def resume(self, ends: Mapping[int, tuple[int, int]], sealed: Container[int]) -> None:
        """Continues after the journals in `ends`: number -> (bytes, rows), to which they have been cut (`shard_recovery`)."""
        self._next = max(ends, default=-1) + 1
        for number, (size, rows) in ends.items():
            self._rows[number] = rows
            if number in sealed:
                continue
            if rows >= self.max_rows:
                self.full.append(number)
            else:
                path = self.journal(number)
                self._open = _Open(number, path, open_file(path, os.O_WRONLY | os.O_APPEND), size, rows)

    def _create(self) -> _Open:
        path = self.journal(self._next)
        with disk_errors(path):
            make_folder(self.directory)
            file = open_file(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_TRUNC)
        self._open = _Open(self._next, path, file, 0, 0)  # from here on `let_go` closes it
        self._next += 1
        fsync_dir(self.directory)
        fsync_dir(self.directory.parent)
        return self._open
