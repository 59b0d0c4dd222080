"""Recovers shards when a directory is opened: checks their bytes, then cuts off rows that the log does not cover."""

from __future__ import annotations

import os
import zlib
from collections.abc import Container, Mapping
from pathlib import Path

from chainette.errors import DamagedRun
from chainette.io.rundir.paths import fsync_dir
from chainette.io.rundir.shards import StreamWriter
from chainette.utils.plurals import counted

__all__ = ["check_journals", "cut_journals", "require_bytes", "require_size", "sum_of"]


def check_journals(
    stream: StreamWriter, ends: Mapping[int, tuple[int, int]], sealed: Container[int], sums: Mapping[str, int]
) -> None:
    """Checks the bytes of every journal that is not sealed. `ends` has (bytes, rows) of each journal, `sums` its CRC-32.

    Raises:
        DamagedRun: a journal is shorter than the log says, or holds different bytes.
    """
    for number, (size, _) in ends.items():
        if number not in sealed:
            file = stream.file(number)
            stream.sums[file] = require_bytes(stream.journal(number), size, sums.get(file))


def cut_journals(stream: StreamWriter, ends: Mapping[int, tuple[int, int]], sealed: Container[int]) -> None:
    """Restores the journals of a folder to the state in the log, after `check_journals`: cuts each one at its end, and
    deletes those that the log does not name."""
    for number, (size, _) in ends.items():
        if number not in sealed:
            _truncate(stream.journal(number), size)
    if stream.directory.is_dir():
        known = {stream.journal(number) for number in ends}
        for path in stream.directory.glob("*.jsonl"):
            if path not in known:
                path.unlink()
        fsync_dir(stream.directory)


def _truncate(path: Path, size: int) -> None:
    if path.exists() and path.stat().st_size > size:
        os.truncate(path, size)
        with path.open("rb+") as file:
            os.fsync(file.fileno())


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
    """The CRC-32 of the first `size` bytes of a file."""
    found = 0
    with path.open("rb") as file:
        while size and (data := file.read(min(size, 1 << 20))):
            found = zlib.crc32(data, found)
            size -= len(data)
    return found
