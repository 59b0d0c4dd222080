"""The event log: append-only lines with seq and crc, from which the state of a run follows (docs/protocol.md, 16)."""

from __future__ import annotations

import fcntl
import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from chainette.errors import DamagedRun, RunDirectoryError, RunDirectoryInUse
from chainette.io.rundir.event_types import AnyEvent, Event, Note, timestamp
from chainette.io.rundir.paths import disk_errors, fsync_dir, write_all
from chainette.utils.private_files import open_file

__all__ = ["EventLog", "encode_line", "parse_line", "parse_note", "read_log"]

_E = TypeVar("_E")

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(AnyEvent)
_note_decoder = msgspec.json.Decoder(Note)

#: `,"crc":"xxxxxxxx"}` closes every line.
_TAIL = len(b',"crc":"00000000"}')


def encode_line(event: Event) -> bytes:
    """The event as a line of the log: its JSON, whose last field is the CRC-32 of everything before it."""
    body = _encoder.encode(event)
    return b'%b,"crc":"%08x"}\n' % (body[:-1], zlib.crc32(body))


def parse_line(line: bytes) -> AnyEvent | None:
    """The event of a complete line without its newline; None if the line is torn or changed."""
    return _parsed(line, _decoder)


def parse_note(line: bytes) -> Note | None:
    """The event of a line that another process sent; None if it is of a kind that only the sink writes."""
    return _parsed(line, _note_decoder)


def _parsed(line: bytes, decoder: msgspec.json.Decoder[_E]) -> _E | None:
    tail = line[-_TAIL:]
    body = line[:-_TAIL] + b"}"
    if tail != b',"crc":"%08x"}' % zlib.crc32(body):
        return None
    try:
        return decoder.decode(body)
    except (ValueError, RecursionError):  # msgspec's errors, text that is not UTF-8, and nesting
        return None


def read_log(path: Path, start: int = 0) -> Iterator[tuple[int, AnyEvent]]:
    """(byte offset, event) of every intact line from `start`; stops at a torn tail.

    Raises:
        DamagedRun: a bad line is followed by intact lines, or an event is missing.
    """
    expected: int | None = None
    with path.open("rb") as file:
        file.seek(start)
        offset = start
        for line in file:
            if not line.endswith(b"\n"):
                return  # the end for now; a writer may be active, so the bytes after it are not examined
            event = parse_line(line[:-1])
            if event is None:
                _refuse_unless_tail(path, offset, file)
                return
            if expected is not None and event.seq != expected:
                raise DamagedRun(
                    f"{path}: byte {offset}: event {expected} is missing, {event.seq} follows; restore the file from a backup"
                )
            expected = event.seq + 1
            yield offset, event
            offset += len(line)


def _refuse_unless_tail(path: Path, offset: int, rest: Iterator[bytes]) -> None:
    for line in rest:
        if parse_line(line[:-1]) is not None:
            raise DamagedRun(
                f"{path}: the line at byte {offset} is damaged, but later ones are intact, so this is not a torn tail; "
                f"restore the file from a backup (everything before byte {offset} is good)"
            )


class EventLog:
    """Appends events and makes them durable. It holds the lock of the directory.

    Raises:
        RunDirectoryInUse: another process holds the lock.
        RunDirectoryError: the file system has no locks.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.epoch = 0
        self._seq = 0
        new = not path.exists()
        with disk_errors(path):
            self._file = open_file(path, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._file)
            if isinstance(error, BlockingIOError):
                raise RunDirectoryInUse(
                    f"{path.parent} is in use: another process writes to it; wait for it or stop it"
                ) from None
            if new:
                path.unlink(missing_ok=True)
            raise RunDirectoryError(
                f"{path.parent} cannot be locked ({error.strerror}): its file system has no flock, so two processes could "
                f"write it at once. Put the run directory on a local disk and copy it when the run is finished"
            ) from error
        if new:
            try:
                fsync_dir(path.parent)
            except BaseException:
                self.close()
                raise

    def continue_after(self, offset: int, seq: int, epoch: int) -> None:
        """Cuts a torn tail at `offset` and continues after event `seq`.

        Raises:
            DiskError: the disk is full, or a write failed.
        """
        with disk_errors(self.path):
            os.ftruncate(self._file, offset)
            os.fsync(self._file)
        os.lseek(self._file, offset, os.SEEK_SET)
        self._seq, self.epoch = seq + 1, epoch

    def append(self, events: Sequence[Event]) -> list[tuple[int, Event]]:
        """Writes and fsyncs events; returns each as logged, with its offset.

        Raises:
            DiskError: the disk is full, or a write failed; no event of the group is in the log.
        """
        at = timestamp()
        start = offset = os.lseek(self._file, 0, os.SEEK_CUR)
        seq, written, lines = self._seq, [], []
        for event in events:
            stamped = msgspec.structs.replace(event, seq=self._seq, at=at, epoch=self.epoch)
            line = encode_line(stamped)
            written.append((offset, stamped))
            lines.append(line)
            offset += len(line)
            self._seq += 1
        try:
            with disk_errors(self.path):
                write_all(self._file, b"".join(lines))
                os.fsync(self._file)
        except BaseException:
            self._take_back(start, seq)
            raise
        return written

    def _take_back(self, offset: int, seq: int) -> None:
        """Cuts off a group that failed, so that no later line follows a torn one."""
        os.ftruncate(self._file, offset)
        os.lseek(self._file, offset, os.SEEK_SET)
        self._seq = seq

    def close(self) -> None:
        """Releases the lock."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
