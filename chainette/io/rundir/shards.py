"""StreamWriter: rolling shards of one folder, appended and made durable in groups."""

from __future__ import annotations

import contextlib
import os
import zlib
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from chainette.errors import DamagedRun
from chainette.io.rundir.paths import disk_errors, fsync_dir, write_all
from chainette.utils.plurals import counted
from chainette.utils.private_files import make_folder, open_file

__all__ = ["Span", "StreamWriter", "require_bytes", "require_size", "sum_of"]


#: Journal bytes and rows: (start bytes, start rows, end bytes, end rows).
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
    """Rows of one folder as lines of a journal that rolls every `max_rows` rows.

    For JSONL the journal is the shard; Parquet and CSV journals lie in `.journal/` until they are
    sealed. `append` buffers nothing in this process; `sync` makes all appends so far durable.
    """

    def __init__(self, folder: str, directory: Path, max_rows: int) -> None:
        #: The folder's name in the log: `extract`, `.held/extract`.
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
        """A journal's name in the log."""
        return f"{self.folder}/{number}"

    def rows(self, number: int) -> int:
        """Rows of a journal."""
        return self._rows[number]

    def append(self, lines: Sequence[bytes]) -> dict[str, Span]:
        """Appends whole lines (without newline); returns their spans by journal.

        Raises:
            DiskError: the disk refused.
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
            del self._dirty[0]  # before the close, since `let_go` closes the rest of this list
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
        """Closes files as they are; safe after `close`, and after a write failed."""
        journals = [*self._dirty, *([self._open] if self._open is not None and self._open not in self._dirty else [])]
        for journal in journals:
            os.close(journal.file)
        self._dirty.clear()
        self._open = None

    def check(self, ends: Mapping[int, tuple[int, int]], sealed: Container[int], sums: Mapping[str, int]) -> None:
        """Reads every journal that is not sealed; `ends` is (bytes, rows) per journal, `sums` their expected sums.

        Raises:
            DamagedRun: a journal is shorter than the log says, or holds other bytes.
        """
        for number, (size, _) in ends.items():
            if number not in sealed:
                file = self.file(number)
                self.sums[file] = require_bytes(self.journal(number), size, sums.get(file))

    def recover(self, ends: Mapping[int, tuple[int, int]], sealed: Container[int]) -> None:
        """Brings the folder to the state in the log, after `check`."""
        self._next = max(ends, default=-1) + 1
        for number, (size, rows) in ends.items():
            self._rows[number] = rows
            if number in sealed:
                continue
            path = self.journal(number)
            if rows >= self.max_rows:
                self.full.append(number)
            else:
                self._reopen(number, path, size, rows)
        self._delete_unknown(ends)

    def _reopen(self, number: int, path: Path, size: int, rows: int) -> None:
        _truncate(path, size)
        file = open_file(path, os.O_WRONLY | os.O_APPEND)
        self._open = _Open(number, path, file, size, rows)

    def _delete_unknown(self, ends: Mapping[int, tuple[int, int]]) -> None:
        known = {f"{number}.jsonl" for number in ends}
        if self.directory.is_dir():
            for path in self.directory.glob("*.jsonl"):
                if path.name not in known:
                    path.unlink()
            fsync_dir(self.directory)

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


def require_size(path: Path, size: int) -> None:
    """Checks that a file is at least as long as the log says.

    Raises:
        DamagedRun: it is shorter.
    """
    found = path.stat().st_size if path.exists() else 0
    if found < size:
        there = counted(found, "byte") if path.exists() else "is missing"
        raise DamagedRun(
            f"{path}: {there}, but the log says {counted(size, 'byte')}; rows were lost. Restore the file from a backup"
        )


def require_bytes(path: Path, size: int, crc: int | None) -> int:
    """Checks that the first `size` bytes of a file are those that were written; returns their CRC-32.

    Raises:
        DamagedRun: they are not, or the file is shorter.
    """
    require_size(path, size)
    found = sum_of(path, size)
    if crc is not None and found != crc:
        raise DamagedRun(
            f"{path}: its {size:,} bytes are not those that were written (CRC-32 {found:08x}, the log says {crc:08x}). "
            "Restore the file from a backup"
        )
    return found


def sum_of(path: Path, size: int) -> int:
    """CRC-32 of the first bytes of a file."""
    found = 0
    with path.open("rb") as file:
        while size and (data := file.read(min(size, 1 << 20))):
            found = zlib.crc32(data, found)
            size -= len(data)
    return found


def _truncate(path: Path, size: int) -> None:
    if path.exists() and path.stat().st_size > size:
        os.truncate(path, size)
        with contextlib.closing(path.open("rb+")) as file:
            os.fsync(file.fileno())
