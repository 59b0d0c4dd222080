"""The answers of earlier runs, by their keys (`--reuse`), and of earlier sessions of a run whose rows share (`dedupe`)."""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from chainette.core.dump import NotRoundTrip, dump_row
from chainette.core.plan_node import PlanNode
from chainette.core.step import Step
from chainette.errors import InputError, RunDirectoryError
from chainette.io.rundir.answer_collection import index_of
from chainette.io.rundir.answer_index import AnswerIndex, IndexEntry
from chainette.io.rundir.open import read_created
from chainette.io.rundir.paths import RunDir, disk_errors
from chainette.io.tables.row_lines import parse_output
from chainette.records import Output, Spent, child_id, declared_of
from chainette.run.answer_sources import AnswerSources
from chainette.utils.private_files import open_file
from chainette.utils.user_errors import RAISED

__all__ = ["StoredAnswers", "index_own", "require_runs"]

_log = logging.getLogger("chainette")

#: Bytes of a claim.
_CLAIM = 8

#: The most entries of one key that are looked at, and the number of claimed ones after which the place that follows them is
#: remembered.
_LOOKS, _PASSED = 64, 16


def require_runs(directories: Sequence[str]) -> None:
    """Raises InputError unless each directory holds a run."""
    for directory in directories:
        try:
            read_created(RunDir(directory))
        except RunDirectoryError as error:
            raise InputError(
                f"--reuse {directory}: there is no run in it; name the directory of an earlier run "
                "(at a resume, its new place, or another run instead)"
            ) from error


def index_own(sources: AnswerSources | None) -> None:
    """Makes the index of a run's own answers, before its session adds to them.

    Raises:
        DamagedRun: a shard is not there, or does not hold the bytes that were written.
        DiskError: the disk is full, or a write failed.
    """
    if sources is not None and sources.own:
        pinned = _pinned(RunDir(sources.own), Path(sources.folder))
        with disk_errors(pinned):
            pinned.unlink(missing_ok=True)
        index_of(RunDir(sources.own), pinned).close()


def _pinned(source: RunDir, folder: Path) -> Path:
    """The place of the index of a run, in the folder of the run that looks there."""
    return folder / f"{hashlib.blake2b(read_created(source).run_id.encode(), digest_size=8).hexdigest()}.index"


@dataclass
class StoredAnswers:
    """Finds the outputs of earlier runs; several processes may look side by side."""

    _shelves: list[_Shelf]
    _but: frozenset[str]

    @classmethod
    def open(cls, sources: AnswerSources) -> Self:
        """The answers of these runs; their indexes are made if they are not there yet.

        Raises:
            InputError: a directory holds no run.
            DamagedRun: a shard of one is not there, or does not hold the bytes that were written.
            DiskError: the disk is full, or a write failed.
        """
        require_runs(sources.directories)
        folder = Path(sources.folder)
        shelves = [_Shelf.open(RunDir(sources.own), folder, is_own=True)] if sources.own else []
        shelves += [_Shelf.open(RunDir(directory), folder) for directory in sources.directories]
        return cls(shelves, frozenset(sources.but))

    def find(self, node: PlanNode, row_id: str, key: bytes) -> list[Output] | None:
        """The outputs for a row, of the first run that has them; None if none has, or if they no longer fit the model.

        Above temperature 0, one stored answer serves one row, unless rows share answers anyway: the row with its own id, or
        else the first that comes.
        """
        if declared_of(node.id) in self._but:
            return None
        found = (shelf.find(node, row_id, key) for shelf in self._shelves)
        return next(filter(None, found), None)

    async def find_all(self, node: PlanNode, keys: Mapping[str, bytes]) -> Mapping[str, list[Output]]:
        """See `Answers`."""
        found = {row_id: self.find(node, row_id, key) for row_id, key in keys.items()}
        return {row_id: outputs for row_id, outputs in found.items() if outputs}

    def close(self) -> None:
        for shelf in self._shelves:
            shelf.close()


@dataclass
class _Shelf:
    """The answers of one run."""

    index: AnswerIndex
    claims: _Claims
    #: Whether it is the run that looks; only rows of the same step share its answers.
    is_own: bool = False
    #: Key -> the first entry that may not be claimed yet.
    _passed: dict[bytes, int] = field(default_factory=dict)

    @classmethod
    def open(cls, source: RunDir, folder: Path, *, is_own: bool = False) -> Self:
        pinned = _pinned(source, folder)
        index = index_of(source, pinned)
        if not len(index) and not is_own:
            _log.warning(
                "--reuse %s: nothing is taken from it: it has no rows, or an older Chainette wrote them, without keys",
                source,
            )
        return cls(index, _Claims(pinned.with_suffix(".claims"), index), is_own)

    def find(self, node: PlanNode, row_id: str, key: bytes) -> list[Output] | None:
        step = node.node
        largest = step.sampling.max_tokens if isinstance(step, Step) else 0
        once = isinstance(step, Step) and step.sampling.temperature > 0 and not node.dedupe
        entries = self._unclaimed(node, row_id, key) if once else self.index.of_key(key)
        if self.is_own:
            is_shared = node.dedupe and node.round is None  # rounds of a loop have one folder
            entries = (entry for entry in entries if is_shared and entry.place.folder == node.logged_folder)
        for entry, _ in zip(entries, range(_LOOKS), strict=False):
            if entry.place.max_tokens <= largest and (found := self._outputs(node, row_id, key, entry)):
                return found
        return None

    def _unclaimed(self, node: PlanNode, row_id: str, key: bytes) -> Iterator[IndexEntry]:
        """Entries that are this row's now: its own, or the first that nobody has claimed."""
        mine = hashlib.blake2b(f"{node.station}\0{row_id}".encode(), digest_size=_CLAIM).digest()
        for entry in self.index.of_row(key, row_id):
            if self.claims.take(entry.number, mine):
                yield entry
        number = first = self._passed.get(key) or self.index.first(key)
        while (found := self.index.at(number, key)) is not None:
            if self.claims.take(number, mine):
                yield found
            number += 1
            if number - first > _PASSED:
                self._passed[key] = first = number

    def _outputs(self, node: PlanNode, row_id: str, key: bytes, entry: IndexEntry) -> list[Output]:
        if not entry.place.many:
            return [output for output in [self._output(node, row_id, key, entry)] if output is not None]
        siblings = enumerate(self.index.siblings(entry, key))
        children = [self._output(node, child_id(row_id, number), key, one) for number, one in siblings]
        return [child for child in children if child is not None] if None not in children else []

    def _output(self, node: PlanNode, row_id: str, key: bytes, entry: IndexEntry) -> Output | None:
        """The stored row under another id; None if it cannot be read, or is no row of the node's model."""
        line = self.index.line(entry)
        if not line:
            return None
        try:
            stored = parse_output(line)
            model = node.output_model
            value = stored.value if model is None else dump_row(model.model_validate_json(stored.value))
        except (*RAISED, NotRoundTrip):
            return None
        origin = "" if self.is_own else f"{self.index.head.mark.run_id}/{stored.row_id}"
        return Output(row_id, value, stored.attempts, stored.reasoning, Spent(), key, origin)

    def close(self) -> None:
        self.index.close()
        self.claims.close()


class _Claims:
    """The row each entry serves: 8 bytes an entry, shared by all processes of the run and kept for its resumes."""

    def __init__(self, path: Path, index: AnswerIndex) -> None:
        self._path, self._size = path, len(index) * _CLAIM
        self._file = -1
        if path.exists() and path.stat().st_size != self._size:  # of an index that was replaced
            path.unlink()

    def take(self, number: int, mine: bytes) -> bool:
        """Whether an entry is this row's, from now on or already."""
        at = number * _CLAIM
        with disk_errors(self._path):
            if self._file < 0:
                self._file = open_file(self._path, os.O_RDWR | os.O_CREAT)
                os.truncate(self._file, self._size)
            fcntl.lockf(self._file, fcntl.LOCK_EX, _CLAIM, at)
            try:
                held = os.pread(self._file, _CLAIM, at)
                if held == bytes(_CLAIM):
                    os.pwrite(self._file, mine, at)
                return held in (mine, bytes(_CLAIM))
            finally:
                fcntl.lockf(self._file, fcntl.LOCK_UN, _CLAIM, at)

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
