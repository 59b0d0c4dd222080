"""Forks a directory in place: `--from` and `--retry` reopen rows of a run (docs/protocol.md, 18).

A new directory is built aside from the kept rows: sealed shards are hard-linked, open shards and log lines are copied,
`rejected/` and `flattened/` are rewritten. It is swapped in by renaming, and keeps the directory that it replaces as its
newest version. After that, it is an ordinary directory to resume.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import msgspec

from chainette.core.plan import Plan
from chainette.errors import RunDirectoryError
from chainette.io.rundir.dependents import lost_nodes
from chainette.io.rundir.directory_swap import aside_of, remove_leftovers, swap
from chainette.io.rundir.durable_rows import ShardReader, asked_engine
from chainette.io.rundir.event_log import EventLog, encode_line, read_log
from chainette.io.rundir.event_types import (
    AnswersDiscarded,
    AnyEvent,
    EngineLoaded,
    EngineProbed,
    RowsTakenBack,
    RunCreated,
    RunFinished,
    RunPaused,
    RunResumed,
    RunStarted,
    ShardSealed,
    UnitCommitted,
    UnitRetried,
    UnitSplit,
)
from chainette.io.rundir.folder_rows import require_whole
from chainette.io.rundir.origin import changed, require_no_links
from chainette.io.rundir.paths import RunDir, disk_errors, fsync_dir
from chainette.io.rundir.reasked import Reasked
from chainette.io.rundir.run_state import RunState
from chainette.io.rundir.shards import Span, StreamWriter
from chainette.io.rundir.versions import copy, copy_tree, keep_versions, link, link_versions, version_numbers
from chainette.io.tables.row_lines import parse_earlier
from chainette.io.tables.schemas import TELLS_ENGINE
from chainette.records import CHAIN_INPUT
from chainette.utils.private_files import make_folder, new_file, permitted

__all__ = ["Reopen", "fork", "require_kept"]


@dataclass(frozen=True)
class Reopen:
    """The results that a fork takes back."""

    #: Nodes whose rows are all recomputed; `chain_input` reads the input again, `flattened` computes no row.
    nodes: frozenset[str] = frozenset()
    #: Whether a rejection (step id, reason) is taken back.
    rejection: Callable[[str, str], bool] = lambda _step, _reason: False
    #: Roots whose rows do not add up; the rows stay and are counted again.
    roots: frozenset[int] = frozenset()
    #: Whether rows name the engine that answered from now on, because an engine other than the chain's is asked.
    tells_engine: bool = False


def fork(directory: RunDir, plan: Plan, state: RunState, reopen: Reopen) -> int:
    """Replaces the directory with one in which rows are pending again; returns the number of rejections taken back.

    Raises:
        RunDirectoryInUse: another process writes to it.
        RunDirectoryError: rows that are needed again were not kept.
        DamagedRun: rows to keep are not those that were written.
        DiskError: the disk is full, or a write failed; the directory is as it was.
    """
    require_kept(directory, plan, state, reopen)
    require_no_links(directory)
    lock = EventLog(directory.log)
    try:
        aside = RunDir(aside_of(directory.path))
        remove_leftovers(directory)
        forking = _Fork(directory, aside, plan, state, reopen)
        with disk_errors(aside.path):
            forking.build()
            numbers = version_numbers(directory)
            keep = link_versions if numbers and _broke_off(directory, state, numbers[-1]) else keep_versions
            keep(directory, aside, numbers)
            swap(directory.path)
        return forking.taken_back
    finally:
        lock.close()


def require_kept(directory: RunDir, plan: Plan, state: RunState, reopen: Reopen) -> None:
    """Raises RunDirectoryError if rows that are needed again were deleted when the run finished."""
    lost = [node for node in lost_nodes(plan, state) if node not in reopen.nodes]
    if lost:
        raise RunDirectoryError(
            f"{directory}: the rows of {', '.join(lost)} (yield_output=False) were deleted when the run finished; "
            f"recompute them: `chainette resume {directory} --from {lost[0]}`"
        )


def _broke_off(directory: RunDir, state: RunState, newest: int) -> bool:
    """Whether the directory is an unfinished attempt to recompute rows of its newest version. That version is complete and
    stays the newest: no matter how often an attempt is interrupted, `rollback` restores the rows from before the first."""
    if state.ended:
        return False
    ended, epoch = False, 0
    for _, event in read_log(RunDir(directory.versions / str(newest)).log):
        ended, epoch = ended or isinstance(event, RunFinished), max(epoch, event.epoch)
    return ended and epoch <= state.epoch


@dataclass
class _Fork:
    source: RunDir
    target: RunDir
    plan: Plan
    state: RunState
    reopen: Reopen
    #: The number of rejections that became pending rows again.
    taken_back: int = 0
    _open_roots: set[int] = field(default_factory=set)
    _reasked: Reasked = field(init=False)
    _rewritten: dict[str, StreamWriter] = field(default_factory=dict)
    _seq: int = 0

    def build(self) -> None:
        self._require_whole("rejected", *(self._shared if self.reopen.nodes else ("flattened",)))
        reader = ShardReader(self.source, self.plan, self.state)
        self._reasked = Reasked(self.plan)
        self._open_roots = set(self._roots_to_open(reader))
        self._require_whole(*self._reasked.folders)
        if self._reasked.rows:
            self._reasked.spare(self._units(), reader)
        self.target.path.mkdir(permitted(0o777))
        self._link_shards()
        base = self.target.path if self.state.run.settings["format"] == "jsonl" else self.target.journals
        for name in ("rejected", "flattened", *self._shared, *self._reasked.folders):
            place = self.target.path if name.startswith(self.source.held.name) else base
            self._rewritten[name] = StreamWriter(name, place / name, self.state.run.settings["max_rows_per_file"])
        try:
            self._write_log(reader)
            for stream in self._rewritten.values():
                stream.close()
        finally:
            for stream in self._rewritten.values():
                stream.let_go()
        fsync_dir(self.target.path)

    def _require_whole(self, *folders: str) -> None:
        """Checks the rows that are copied to other files, in which a damaged row would get a matching CRC-32."""
        for folder in folders:
            for number in self.state.shards.ends.get(folder, ()):
                require_whole(self.source, self.state, folder, number)

    @cached_property
    def _shared(self) -> list[str]:
        """Folders that have rows both of nodes that are taken back and of nodes that are kept, as for rounds of a loop."""
        taken = {node.logged_folder for node in self.plan.nodes.values() if node.id in self.reopen.nodes}
        kept = {node.logged_folder for node in self.plan.nodes.values() if node.id not in self.reopen.nodes}
        return sorted(taken & kept)

    def _write_log(self, reader: ShardReader) -> None:
        with new_file(self.target.log) as log:
            for _, event in read_log(self.source.log):
                for kept in self._keep(event, reader):
                    log.write(encode_line(msgspec.structs.replace(kept, seq=self._seq)))
                    self._seq += 1
            log.flush()
            os.fsync(log.fileno())

    def _roots_to_open(self, reader: ShardReader) -> Iterator[int]:
        found: set[int] = set()
        for event in self._units():
            if self._is_open(event, reader):
                self._reasked.note(event, [line for line in reader.rejected(event.off) if self._reopens(line)])
                found.add(event.root)
        if self.state.accepted is not None and found:  # fewer or more of the later rows may be accepted
            found |= {*range(min(found), len(self.state.roots.done))}
        yield from found

    def _units(self) -> Iterator[UnitCommitted]:
        return (event for _, event in read_log(self.source.log) if isinstance(event, UnitCommitted))

    def _is_open(self, event: UnitCommitted, reader: ShardReader) -> bool:
        if self.reopen.nodes or event.root in self.reopen.roots:
            return True
        return any(self._reopens(line) for line in reader.rejected(event.off))

    def _reopens(self, rejection: dict[str, Any]) -> bool:
        return rejection["step_id"] != CHAIN_INPUT and self.reopen.rejection(rejection["step_id"], rejection["reason"])

    def _link_shards(self) -> None:
        """Links the files that will not change. Other files are copied, because the replaced directory keeps its own."""
        nodes = [node for node in self.plan.nodes.values() if node.id not in self.reopen.nodes]
        copied = {*self._shared, *self._reasked.folders}
        for folder in dict.fromkeys(node.folder for node in nodes if node.logged_folder not in copied):
            self._take(folder, {str(number) for number in self.state.shards.sealed.get(folder, ())})
            self._take(f"{self.source.journals.name}/{folder}")
            self._take(f"{self.source.held.name}/{folder}")
        grows = bool(self.state.input.get("growing"))
        self._take(self.source.inputs.name, () if grows else {path.stem for path in self.source.inputs.glob("*")})
        if self.source.plan.is_dir():  # a later plan may write to its sample
            copy_tree(self.source.plan, self.target.plan)
        self._take(self.source.answers.name, {path.stem for path in self.source.answers.glob("*.index*")})

    def _take(self, place: str, final: Container[str] = ()) -> None:
        """Takes over the files of a folder: links final files, and copies the others."""
        paths = sorted((self.source.path / place).glob("*"))
        if paths:
            make_folder(folder := self.target.path / place)
            for path in paths:
                (link if path.stem in final else copy)(path, folder / path.name)
            fsync_dir(folder)
            fsync_dir(folder.parent)

    def _keep(self, event: AnyEvent, reader: ShardReader) -> Iterator[AnyEvent]:
        """The event for the fork's log; nothing if it no longer holds."""
        match event:
            case RunPaused() | RunFinished():
                return
            case RunCreated() if (
                self.reopen.tells_engine and event.settings["format"] == "jsonl"
            ):  # the columns of other formats are fixed
                yield changed(event, self.source, event.settings | {TELLS_ENGINE: True})
            case RunStarted() | RunResumed():
                # no queue continues this log, and reopened rows may need earlier phases
                phase = {"phase": 0} if isinstance(event, RunResumed) else {}
                yield msgspec.structs.replace(event, anchor=None, **phase)
            case ShardSealed():
                folder = event.file.rpartition("/")[0]
                if folder not in self._rewritten and self._is_kept(folder):
                    yield event
            case UnitCommitted():
                if self._has(event.node):
                    yield self._keep_unit(event, reader)
                elif event.usage.requests:
                    yield self._taken_back(event)
            case EngineLoaded():
                yield msgspec.structs.replace(event, identity=event.identity if self._answered(event.engine) else {})
            case AnswersDiscarded() | EngineProbed() if not self._has(event.node):
                yield self._taken_back(event)
            case UnitRetried() | UnitSplit():
                if self._has(event.node):
                    yield event
            case _:
                yield event

    def _taken_back(self, event: UnitCommitted | AnswersDiscarded | EngineProbed) -> RowsTakenBack:
        """The cost of answers whose rows are recomputed."""
        engine = event.engine or self.state.graph.engine_of(event.node)
        return RowsTakenBack(node=event.node, engine=engine, usage=event.usage, at=event.at, epoch=event.epoch)

    def _answered(self, engine: str) -> bool:
        """Whether rows that an engine answered are kept, so that it must use the same model again."""
        return any(engine in node.engines and node.id not in self.reopen.nodes for node in self.plan.nodes.values())

    def _is_kept(self, folder: str) -> bool:
        return any(node.folder == folder and self._has(node.id) for node in self.plan.nodes.values())

    def _has(self, node: str) -> bool:
        """Whether the rows of a node or a fork are kept: the chain still has it, and its rows are not taken back."""
        joins = node in self.plan.forks and bool(self.plan.forks[node].joins)
        known = node == CHAIN_INPUT or node in self.plan.nodes or joins
        return known and node not in self.reopen.nodes

    def _keep_unit(self, event: UnitCommitted, reader: ShardReader) -> UnitCommitted:
        """The unit with the new spans of its rejections and its finished rows."""
        off: dict[str, Span] = {
            file: span for file, span in event.off.items() if file.rpartition("/")[0] not in self._rewritten
        }
        lines = [(line, msgspec.json.decode(line)) for line in reader.read("rejected", event.off)]
        kept = [(line, rejection) for line, rejection in lines if not self._reopens(rejection)]
        gone = len(lines) - len(kept)
        self.taken_back += gone
        off |= self._rewritten["rejected"].append([line for line, _ in kept])
        for folder in self._shared:
            off |= self._rewritten[folder].append(list(reader.read(folder, event.off)))
        is_open = event.root in self._open_roots
        node = self.plan.nodes.get(event.node)
        if node is not None and (folder := node.logged_folder) in self._reasked.folders:
            event, candidates = self._reasked.kept(event, reader, self._number)
            off |= self._rewritten[folder].append(candidates)
        if event.root_done is not None and not is_open:
            off |= self._rewritten["flattened"].append(list(reader.read("flattened", event.off)))
        reasons, earlier = dict(event.reasons), dict(event.earlier)
        for _, rejection in lines:
            if self._reopens(rejection):
                reasons[rejection["reason"]] -= 1
                if rejection["attempts"]:
                    earlier[rejection["row_id"]] = parse_earlier(rejection, self._number(event))
        if event.root in self.reopen.roots:
            event = _recounted(event)
        return msgspec.structs.replace(
            event,
            off=off,
            sums={file: crc for file, crc in event.sums.items() if file in off} | self._sums_of(off),
            taken=event.taken - gone,
            shared=min(event.shared, event.taken - gone),
            rejected=len(kept),
            reasons={reason: count for reason, count in reasons.items() if count},
            earlier=earlier,
            root_done=None if is_open else event.root_done,
            pos=None,
        )

    def _number(self, event: UnitCommitted) -> int:
        """The number of the engine that was asked, among those of its step; 0 if it is none of them."""
        return asked_engine(self.plan.nodes.get(event.node), event)

    def _sums_of(self, off: Mapping[str, Span]) -> dict[str, int]:
        """The checksums of the rewritten journals."""
        streams = {file: self._rewritten.get(file.rpartition("/")[0]) for file in off}
        return {file: stream.sums[file] for file, stream in streams.items() if stream is not None}


def _recounted(event: UnitCommitted) -> UnitCommitted:
    """The unit, with its counts computed from its spans in the shards."""
    rows = {"rejected": 0, "flattened": 0, "given": 0}
    for file, (_, first, _, last) in event.off.items():
        folder = file.rpartition("/")[0]
        rows[folder if folder in rows else "given"] += last - first
    rows["given"] += len(event.passed)
    if event.node == CHAIN_INPUT or not (event.taken or rows["given"]):
        return event
    taken = rows["given"] + rows["rejected"] + len(event.dropped) - event.added
    return msgspec.structs.replace(event, taken=taken, given=rows["given"], rejected=rows["rejected"])
