"""Builds the index of a run's answers (`answer_index.py`) once, from the log and the shards, in bounded memory."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import msgspec

from chainette.core.answer_key import KEY_BYTES
from chainette.errors import DamagedRun, DiskError
from chainette.io.rundir.answer_index import (
    ENTRY_BYTES,
    MAKING,
    AnswerIndex,
    Head,
    Mark,
    RowFile,
    entry_of,
    mark_of,
    open_index,
    rows_beside,
)
from chainette.io.rundir.event_log import read_log
from chainette.io.rundir.event_types import RunCreated, RunResumed, UnitCommitted
from chainette.io.rundir.folder_rows import require_whole, typed_rows
from chainette.io.rundir.graph import Graph
from chainette.io.rundir.open import read_state
from chainette.io.rundir.paths import RunDir, disk_errors, fsync_dir
from chainette.io.rundir.run_state import RunState
from chainette.records import parent_of
from chainette.utils.private_files import make_folder, new_file

__all__ = ["build", "index_of"]

#: The number of parts in which entries are sorted, by the first byte of the key, and the bytes of a part in memory.
_PARTS, _HELD = 256, 1 << 18


def index_of(source: RunDir, pinned: Path) -> AnswerIndex:
    """The index of a run directory, at `pinned`: an existing one if there is one (beside the shards, or from an earlier
    session), otherwise a new one.

    Raises:
        RunDirectoryError: there is no run.
        DamagedRun: a shard is missing, or does not hold the bytes that were written.
        DiskError: the disk is full, or a write failed.
    """
    found = open_index(pinned, source)
    if found is not None:
        return found
    make_folder(pinned.parent)
    cached = source.own_answers / "index"
    kept = open_index(cached, source)
    is_new = kept is None or kept.head.mark != mark_of(source, kept.head.mark.run_id)
    if kept is not None:
        kept.close()
    try:
        if is_new:
            make_folder(cached.parent)
            build(source, cached)
        for path in (cached, rows_beside(cached)):
            _link(path, pinned if path == cached else rows_beside(pinned))
    except (DiskError, OSError):  # the directory belongs to somebody else, or is on a read-only disk
        build(source, pinned)
    made = open_index(pinned, source)
    if made is None:
        raise DamagedRun(f"{source} was replaced while its answers were read; run the command again")
    return made


def _link(source: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    if source.exists():
        try:
            os.link(source, target)
        except OSError:
            shutil.copyfile(source, target)


def build(source: RunDir, target: Path) -> None:
    """Writes the index of all durable answers in a directory, whole or not at all."""
    state, end = read_state(source)
    mark = mark_of(source, state.run.run_id, end)
    with (
        disk_errors(target),
        tempfile.TemporaryDirectory(prefix=MAKING, dir=target.parent) as folder,
        ExitStack() as stack,
    ):
        rows = Path(folder) / "rows"
        copied = None if state.run.settings["format"] == "jsonl" else stack.enter_context(new_file(rows))
        making = _Making(source, state, Path(folder), copied)
        making.collect()
        made = Path(folder) / "index"
        with new_file(made) as file:
            making.write(file, mark)
            os.fsync(file.fileno())
        if copied is not None:
            copied.flush()
            os.fsync(copied.fileno())
            rows.replace(rows_beside(target))
        made.replace(target)
    fsync_dir(target.parent)


@dataclass
class _Making:
    source: RunDir
    state: RunState
    folder: Path
    #: The file for rows that cannot be read one by one; None for JSON Lines.
    copied: IO[bytes] | None
    places: dict[RowFile, int] = field(default_factory=dict)
    _parts: list[bytearray] = field(default_factory=lambda: [bytearray() for _ in range(_PARTS)])

    def collect(self) -> None:
        """Reads the log and collects every row with a key."""
        graph, readers = Graph(), dict[str, Iterator[tuple[str, int, bytes]]]()
        for _, event in read_log(self.source.log):
            if event.seq > self.state.seq:
                return
            match event:
                case RunCreated():
                    graph = event.graph
                case RunResumed():
                    graph = event.graph or graph
                case UnitCommitted():
                    self._take(event, graph, readers)

    def _take(self, event: UnitCommitted, graph: Graph, readers: dict[str, Iterator[tuple[str, int, bytes]]]) -> None:
        node = graph.by_id.get(event.node)
        if node is None:
            return
        folder = f"{self.source.held.name}/{node.folder}" if node.hidden else node.folder
        count = sum(span[3] - span[1] for file, span in event.off.items() if file.rpartition("/")[0] == folder)
        if not count or folder not in self.state.shards.ends:  # rows of hidden steps are deleted once a run is finished
            return
        if folder not in readers:
            readers[folder] = self._rows(folder)
        is_keyed = len(event.keys) == count * KEY_BYTES
        largest = int(node.rescues.get("max_tokens", 0))
        for at in range(count):
            file, offset, line = next(readers[folder])
            if is_keyed:
                place = RowFile(file, folder, node.cardinality == "many", largest)
                self._add(event.keys[at * KEY_BYTES : (at + 1) * KEY_BYTES], place, offset, line)

    def _add(self, key: bytes, place: RowFile, offset: int, line: bytes) -> None:
        number = self.places.setdefault(place, len(self.places))
        row_id = line[11 : line.index(b'"', 11)].decode()  # {"row_id":"17", as every journal has it
        owner = parent_of(row_id) if place.many else row_id
        part = self._parts[key[0]]
        part += entry_of(key, owner, number, offset)
        if len(part) >= _HELD:
            self._spill(key[0])

    def _spill(self, part: int) -> None:
        with (self.folder / str(part)).open("ab") as file:
            file.write(self._parts[part])
        self._parts[part].clear()

    def _rows(self, folder: str) -> Iterator[tuple[str, int, bytes]]:
        """(file, offset, line) of every row of a folder, in the order of the log."""
        if self.copied is None or folder.startswith(self.source.held.name):
            for number, (_, count) in sorted(self.state.shards.ends[folder].items()):
                path = require_whole(self.source, self.state, folder, number)
                yield from _lines(path, f"{folder}/{number}", count)
            return
        for row in typed_rows(self.source, self.state, folder):
            line = msgspec.json.encode({"row_id": row["row_id"]} | row)
            offset = self.copied.tell()
            self.copied.write(line + b"\n")
            yield "", offset, line

    def write(self, file: IO[bytes], mark: Mark) -> None:
        """Writes the entries in order, followed by the header."""
        digest, entries = hashlib.blake2b(), 0
        for part in range(_PARTS):
            data = self._sorted(part)
            digest.update(data)
            entries += len(data) // ENTRY_BYTES
            file.write(data)
        file.write(Head(mark, entries, digest.hexdigest(), [*self.places]).trailer)

    def _sorted(self, part: int) -> bytes:
        spilled = self.folder / str(part)
        data = (spilled.read_bytes() if spilled.exists() else b"") + self._parts[part]
        self._parts[part].clear()
        spilled.unlink(missing_ok=True)
        return b"".join(sorted(data[at : at + ENTRY_BYTES] for at in range(0, len(data), ENTRY_BYTES)))


def _lines(path: Path, name: str, count: int) -> Iterator[tuple[str, int, bytes]]:
    offset = 0
    with path.open("rb") as file:
        for _, line in zip(range(count), file, strict=False):
            yield name, offset, line
            offset += len(line)
