"""Reads durable rows back: those of one outcome, or all of an incomplete root."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from chainette.core.candidates import PASSED, is_invalid
from chainette.core.durable import Durable
from chainette.core.plan import Plan
from chainette.core.plan_node import PlanNode
from chainette.errors import DamagedRun
from chainette.io.rundir.event_log import read_log
from chainette.io.rundir.event_types import UnitCommitted
from chainette.io.rundir.folder_rows import cells_of
from chainette.io.rundir.paths import RunDir
from chainette.io.rundir.run_state import RunState
from chainette.io.rundir.shards import Span
from chainette.io.tables.row_lines import parse_earlier, parse_output
from chainette.io.tables.schemas import Added, ShardSchemas
from chainette.records import CHAIN_INPUT, Output, Reason, parent_of

__all__ = ["ShardReader", "asked_engine", "lines_of_root", "rows_of_root"]


def rows_of_root(
    directory: RunDir,
    plan: Plan,
    state: RunState,
    root: int,
    but: Container[str] = (),
    reopens: Callable[[str, str], bool] = lambda _step, _reason: False,
) -> Durable | None:
    """The durable outcomes of a root whose lines the state has; None if there are none. Outcomes of the nodes in `but` are
    left out, as are rejections (step, reason) for which `reopens` returns true, since they are taken back."""
    if root not in state.roots.lines:
        return None
    reader = ShardReader(directory, plan, state)
    durable = Durable()
    few: dict[str, set[str]] = {}
    for event in lines_of_root(directory, state, root):
        if event.node in but:
            continue
        node = plan.nodes.get(event.node)
        rejections = [*reader.rejected(event.off)]
        again = [line for line in rejections if line["step_id"] != CHAIN_INPUT and reopens(line["step_id"], line["reason"])]
        rejected = {str(line["row_id"]): str(line["reason"]) for line in rejections if line not in again}
        if node is None:
            durable.add_rejected(event.node, rejected)
            continue
        if node.picker is not None:
            few.setdefault(node.source, set()).update(
                str(line["row_id"]) for line in again if line["reason"] != Reason.APPLY_ERROR
            )
        read = map(parse_output, reader.read(node.logged_folder, event.off))
        outputs = [*read, *(Output(row_id, PASSED) for row_id in event.passed)]
        asks = {line["row_id"]: parse_earlier(line, asked_engine(node, event)) for line in again if line["attempts"]}
        durable.add(node, outputs, rejected, event.dropped, event.earlier | asks)
    for join in (join for fork in plan.forks.values() for join in fork.joins if join.alias in few):
        durable.take_back(join.value, partial(_is_bad_candidate, few[join.alias]))
    return durable


def _is_bad_candidate(rows: Container[str], output: Output) -> bool:
    return is_invalid(output.value) and parent_of(output.row_id) in rows


def asked_engine(node: PlanNode | None, event: UnitCommitted) -> int:
    """The number of the engine that was asked, among those of its step; 0 if it is none of them."""
    engines = () if node is None else node.engines
    return engines.index(event.engine) if event.engine in engines else 0


def lines_of_root(directory: RunDir, state: RunState, root: int) -> Iterable[UnitCommitted]:
    """The log lines of an incomplete root."""
    for offset in state.roots.lines[root]:
        _, event = next(iter(read_log(directory.log, offset)))
        assert isinstance(event, UnitCommitted)
        yield event


class ShardReader:
    """Reads the rows of a run from a journal or a sealed shard."""

    def __init__(self, directory: RunDir, plan: Plan, state: RunState) -> None:
        settings = state.run.settings
        self._directory = directory
        self._ends = state.shards.ends
        self._sealed = state.shards.sealed
        self._format = settings["format"]
        self._schemas = ShardSchemas(plan, Added.of(settings))

    def rejected(self, off: Mapping[str, Span]) -> Iterable[dict[str, Any]]:
        """The rejections of one outcome."""
        return (msgspec.json.decode(line) for line in self.read("rejected", off))

    def read(self, folder: str, off: Mapping[str, Span]) -> Iterable[bytes]:
        """The lines of one outcome in one folder."""
        for file, span in off.items():
            if file.rpartition("/")[0] == folder:
                yield from self._lines(folder, file, span)

    def first_ids(self) -> Iterator[str]:
        """The id of the first row of every folder with rows. Damaged files are skipped, since later checks report them."""
        for folder, numbers in self._ends.items():
            with suppress(DamagedRun):
                yield from (str(row.get("row_id")) for row in self._first(folder, f"{folder}/{next(iter(numbers))}"))

    def _first(self, folder: str, file: str) -> Iterable[dict[str, Any]]:
        """The first row of a journal or shard, with any columns; nothing if the file is missing."""
        from chainette.io.tables.shard_formats import read_rows

        journal, shard = self._journal(folder, file), self._directory.path / f"{file}.{self._format}"
        if journal.exists():
            return read_rows(journal, 0, 1)
        if not shard.exists():
            return ()
        return islice(cells_of(shard), 1) if shard.suffix == ".csv" else read_rows(shard, 0, 1)

    def _journal(self, folder: str, file: str) -> Path:
        in_place = self._format == "jsonl" or folder.startswith(".held/")
        return (self._directory.path if in_place else self._directory.journals) / f"{file}.jsonl"

    def _lines(self, folder: str, file: str, span: Span) -> Iterable[bytes]:
        start, first, end, last = span
        journal, shard = self._journal(folder, file), self._directory.path / f"{file}.{self._format}"
        # a killed process may have left the journal of a sealed shard, which is not checked any more
        is_sealed = int(file.rpartition("/")[2]) in self._sealed.get(folder, {}) and shard.exists()
        if journal.exists() and (journal == shard or not is_sealed):
            with journal.open("rb") as lines:
                lines.seek(start)
                yield from lines.read(end - start).removesuffix(b"\n").split(b"\n")
            return
        from chainette.io.tables.shard_formats import read_rows

        for row in read_rows(shard, first, last - first, self._schemas[folder]):
            yield msgspec.json.encode(row)
