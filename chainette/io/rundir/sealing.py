"""Sealing: turns a full journal into a shard in the run's format (docs/protocol.md, 16)."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from chainette.core.run_settings import Format
from chainette.io.rundir.event_types import ShardSealed
from chainette.io.rundir.paths import RunDir, disk_errors, fsync_dir
from chainette.io.rundir.shard_recovery import require_bytes, require_size, sum_of
from chainette.io.rundir.shards import StreamWriter
from chainette.utils.private_files import beside, make_folder

__all__ = ["Sealer"]


class Sealer:
    """Knows which journals are complete, and turns them into shards.

    A JSONL journal is its own shard. A Parquet or CSV shard is written to a temporary file, fsynced and renamed; its
    journal stays until every root in it is complete, because resuming a root reads journals.
    """

    def __init__(
        self, directory: RunDir, format: Format, streams: Mapping[str, StreamWriter], schemas: Mapping[str, Any]
    ) -> None:
        self._directory = directory
        self._format = format
        self._streams = streams
        #: Folder -> its columns, as the writer of the format needs them.
        self._schemas = schemas
        #: Journal -> the number of incomplete roots with rows in it.
        self._open: Counter[str] = Counter()
        #: Incomplete root -> the journals with its rows. In a run with phases, these may be all roots.
        self._files: dict[int, tuple[str, ...]] = {}

    def note(self, root: int, files: Iterable[str], *, done: bool) -> None:
        """Records that rows of a root are in these journals; `done` says that the root is complete."""
        if self._format == "jsonl":
            return
        before = self._files.pop(root, ())
        new = tuple(sys.intern(file) for file in files if file not in before)
        if done:
            self._open.subtract(before)
        else:
            self._open.update(new)
            self._files[root] = before + new

    def ready(self) -> Iterator[tuple[StreamWriter, int]]:
        """Full journals that can be sealed now."""
        for stream in self._sealable():
            for number in list(stream.full):
                if not self._open[stream.file(number)]:
                    stream.full.remove(number)
                    yield stream, number

    def rest(self) -> Iterator[tuple[StreamWriter, int]]:
        """The remaining journals at the end of a run."""
        for stream in self._sealable():
            for number in list(stream.close()):
                stream.full.remove(number)
                yield stream, number

    def _sealable(self) -> list[StreamWriter]:
        return [stream for stream in self._streams.values() if stream.folder in self._schemas]

    def seal(self, stream: StreamWriter, number: int) -> ShardSealed:
        """Converts a shard to its final format, durably; the caller logs the event.

        Raises:
            DiskError: the disk is full, or a write failed; the journal is untouched.
        """
        journal = stream.journal(number)
        file = stream.file(number)
        del self._open[file]
        rows = stream.rows(number)
        if self._format == "jsonl":
            return ShardSealed(file=file, rows=rows, bytes=journal.stat().st_size, sum=stream.sums[file])
        target = self.shard(stream.folder, number)
        aside = beside(journal)
        with disk_errors(target):
            make_folder(target.parent)
            self._convert(journal, aside, stream.folder)
            aside.replace(target)
            fsync_dir(target.parent)
            fsync_dir(target.parent.parent)
        size = target.stat().st_size
        return ShardSealed(file=file, rows=rows, bytes=size, sum=sum_of(target, size))

    def _convert(self, journal: Path, aside: Path, folder: str) -> None:
        from chainette.io.tables.shard_formats import seal_csv, seal_parquet

        convert = seal_parquet if self._format == "parquet" else seal_csv
        convert(journal, aside, self._schemas[folder])

    def fault(self, folder: str, values: Iterable[bytes]) -> str:
        """The reason why a shard of the folder cannot hold rows with these values; "" if it can, or is never sealed."""
        if self._format == "jsonl" or folder not in self._schemas:
            return ""
        from chainette.io.tables.shard_formats import sealing_fault

        return sealing_fault(values, self._schemas[folder], parquet=self._format == "parquet")

    def sweep(self, stream: StreamWriter, number: int) -> None:
        """Deletes the journal of a shard that is sealed according to the log."""
        journal = stream.journal(number)
        if self._format != "jsonl":
            with disk_errors(journal):
                journal.unlink(missing_ok=True)

    def shard(self, folder: str, number: int) -> Path:
        """The path of a sealed shard."""
        return self._directory.path / folder / f"{number}.{self._format}"

    def check(self, sealed: Mapping[str, Mapping[int, int]], sums: Mapping[str, int], needed: Container[str]) -> None:
        """Checks the length of every sealed shard, and the bytes of the `needed` ones, whose rows are read again.

        Raises:
            DamagedRun: a sealed shard is not complete.
        """
        for folder, numbers in sealed.items():
            for number, size in numbers.items():
                require_size(self.shard(folder, number), size)
                if (file := f"{folder}/{number}") in needed:
                    require_bytes(self.shard(folder, number), size, sums.get(file))

    def delete_unsealed(self, sealed: Mapping[str, Mapping[int, int]]) -> None:
        """Deletes shards without a shard_sealed event: their journals still exist."""
        if self._format == "jsonl":
            return
        for stream in self._sealable():
            known = {self.shard(stream.folder, number) for number in sealed.get(stream.folder, ())}
            for number in sealed.get(stream.folder, ()):
                self.sweep(stream, number)
            for left in stream.directory.glob(".*.tmp"):  # from a crash during sealing
                left.unlink()
            for path in (self._directory.path / stream.folder).glob(f"*.{self._format}"):
                if path not in known:
                    path.unlink()
