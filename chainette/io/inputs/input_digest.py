"""The trail of an input: the bytes that were read, and checks that they are unchanged.

One sha256 covers the files of an input in reading order. The log records it during reading, so that a later session can
check every byte from which rows were made. That check reads the files only if their sizes and times do not suffice.
"""

from __future__ import annotations

import hashlib
import io
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from itertools import accumulate
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple

from chainette.errors import InputError
from chainette.records import Read
from chainette.utils.plurals import counted

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

    from chainette.io.inputs.growing_file import GrowingFile

__all__ = ["Stamp", "Trail", "digest_of", "stamp_of"]

#: Bytes per read.
_BLOCK = 1 << 18
#: Nanoseconds within which two writes may give a file the same time: if times have fractions of a second, and if they
#: do not.
_TICK, _COARSE_TICK = 100_000_000, 2_100_000_000


class Stamp(NamedTuple):
    """Detects changes of a file without reading it."""

    size: int
    mtime_ns: int
    ctime_ns: int
    #: Whether any later change shows in the times. If the file is very new, two writes may have the same time.
    settled: bool = True


def stamp_of(path: Path) -> Stamp:
    """The current stamp of a file.

    Raises:
        InputError: the file is gone or inaccessible.
    """
    now = time.time_ns()
    try:
        stat = path.stat()
    except OSError as error:
        raise InputError(f"{path}: can no longer be read: {error.strerror}") from error
    tick = _TICK if stat.st_mtime_ns % 1_000_000_000 else _COARSE_TICK
    settled = max(stat.st_mtime_ns, stat.st_ctime_ns) + tick < now
    return Stamp(stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, settled)


class Trail:
    """One pass over the files of an input, from the first byte on.

    Files are opened through it, in order, and it sees all bytes that are read from them. Readers that skip bytes call
    `catch_up`.
    """

    def __init__(self, files: Sequence[Path], stamps: Sequence[Stamp], growing: GrowingFile | None = None) -> None:
        """`growing` is the only file, if it grows as it is read."""
        self._growing = growing
        self._files = tuple(files)
        self._stamps = list(stamps)
        self._starts = [0, *accumulate(stamp.size for stamp in stamps)]
        self._start = dict(zip(self._files, self._starts, strict=False))
        self._hash = hashlib.sha256()
        self._upto = 0
        self._checked = 0

    def open(self, file: Path) -> IO[bytes]:
        """Opens a file of the input at its start, after reading the rest of the files before it."""
        self.catch_up(0, file)
        return io.BufferedReader(_Heard(file, self, self._start[file]), _BLOCK)

    def catch_up(self, upto: int, file: Path) -> None:
        """Reads up to byte `upto` of a file whose reader bypasses the trail."""
        missing = self._start[file] + upto - self._upto
        if missing > 0:
            for block in _blocks(self._files, self._starts, self._upto, missing):
                self.hear(self._upto, block)

    def hear(self, at: int, data: memoryview | bytes) -> None:
        """Records bytes that were read at a position, which counts from the start of the first file."""
        known = self._upto - at
        if 0 <= known < len(data):
            self._hash.update(data[known:])
            self._upto = at + len(data)

    def grows(self, read: int) -> bool:
        """Whether there are more bytes now than were read. For a file that grows, this waits for its source."""
        return self._growing is not None and self._growing.more(read)

    def mark(self) -> Read:
        """The position of the pass, after a check that no file has changed since the input was opened.

        Raises:
            InputError: a file has changed.
        """
        if self._growing is not None:
            self._growing.sync()
            return Read(self._upto, self._hash.hexdigest())
        current = next(index for index, end in enumerate([*self._starts[1:-1], self._upto]) if self._upto <= end)
        for index in range(self._checked, current + 1):
            self._require_unchanged(index)
        self._checked = current
        return Read(self._upto, self._hash.hexdigest())

    def confirms(self, read: Read) -> bool:
        """Whether the bytes up to a position have the given digest. Reads up to that position.

        Raises:
            InputError: a file cannot be read.
        """
        if read.upto < self._upto:
            return digest_of(self._files, read.upto) == read.digest
        for block in _blocks(self._files, self._starts, self._upto, read.upto - self._upto):
            self.hear(self._upto, block)
        return self._upto == read.upto and self._hash.hexdigest() == read.digest

    def end(self) -> None:
        """Ends the pass.

        Raises:
            InputError: a file has changed, even if its times do not show it.
        """
        self.mark()
        if self._growing is None and not all(stamp.settled for stamp in self._stamps[: self._checked + 1]):
            self._require_same_bytes(self._checked)

    def _require_unchanged(self, index: int) -> None:
        path, known = self._files[index], self._stamps[index]
        found = stamp_of(path)
        if found[:2] != known[:2]:
            raise InputError(f"{path} changed while the run was reading it: {_difference(known, found)}; {_GO_ON}")
        if (
            found.ctime_ns != known.ctime_ns
        ):  # it was renamed, linked or got another mode; or it was changed, and its times set back
            self._require_same_bytes(index)
            self._stamps[index] = found

    def _require_same_bytes(self, index: int) -> None:
        if digest_of(self._files, self._upto) != self._hash.hexdigest():
            raise InputError(
                f"{self._files[index]} changed while the run was reading it: its content is different now; {_GO_ON}"
            )


_GO_ON = (
    "all rows so far are from the old file. Restore the old file and resume, or begin a new run "
    "(a resume checks every byte that was read)"
)


def _difference(known: Stamp, found: Stamp) -> str:
    if found.size != known.size:
        return f"it had {counted(known.size, 'byte')}, now it has {found.size:,}"
    return f"it was written to at {datetime.fromtimestamp(found.mtime_ns / 1e9).isoformat(' ', 'seconds')}"


class _Heard(io.RawIOBase):
    """A file that reports all bytes read from it to the trail."""

    def __init__(self, path: Path, trail: Trail, start: int) -> None:
        self._file = io.FileIO(path)
        self._trail = trail
        self._start = start

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        at = self._file.tell()
        count = self._file.readinto(buffer) or 0
        while not count and self._trail.grows(at):
            count = self._file.readinto(buffer) or 0
        if count:
            self._trail.hear(self._start + at, memoryview(buffer)[:count])
        return count

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        self._file.close()
        super().close()


def digest_of(files: Sequence[Path], upto: int | None = None) -> str:
    """The sha256 of files in order, or of at most their first `upto` bytes.

    Raises:
        InputError: a file cannot be read.
    """
    sizes = [stamp_of(file).size for file in files]
    total = hashlib.sha256()
    for block in _blocks(files, [0, *accumulate(sizes)], 0, sum(sizes) if upto is None else upto):
        total.update(block)
    return total.hexdigest()


def _blocks(files: Sequence[Path], starts: Sequence[int], at: int, missing: int) -> Iterator[bytes]:
    """The bytes from position `at` of the first file on."""
    for path, start, end in zip(files, starts, starts[1:], strict=False):
        first = max(0, at - start)
        left = min(missing, end - start - first)
        if left <= 0:
            continue
        missing -= left
        try:
            with path.open("rb", buffering=0) as file:
                file.seek(first)
                while left > 0 and (block := file.read(min(_BLOCK, left))):
                    left -= len(block)
                    yield block
        except OSError as error:
            raise InputError(f"{path}: reading stopped: {error.strerror}") from error
