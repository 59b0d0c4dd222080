"""The history of a row in its run directory: its record, and the outcomes of the row, its ancestors and its descendants."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from chainette.errors import InputError, RunDirectoryError, RunError
from chainette.io.rundir.chain_changes import FLATTENED
from chainette.io.rundir.event_log import read_log
from chainette.io.rundir.event_types import AnyEvent, UnitCommitted
from chainette.io.rundir.folder_rows import read_span
from chainette.io.rundir.input_records import fields_of, record_at
from chainette.io.rundir.open import read_state
from chainette.io.rundir.paths import RunDir
from chainette.io.rundir.run_state import RunState
from chainette.io.rundir.versions import version_numbers
from chainette.records import CHAIN_INPUT, declared_of, owner_of, record_of, row_order
from chainette.utils.plurals import counted

__all__ = ["RowStory", "StepResult", "UnitLines", "read_lines", "story_of"]

_REJECTED = "rejected"


@dataclass(frozen=True)
class StepResult:
    """The result of one step for one row."""

    step: str
    row_id: str
    #: "output", "rejected", "dropped", or "finished" for a row of `flattened/`.
    kind: str
    #: The columns of the row in the directory; {} if it was dropped.
    values: dict[str, Any] = field(default_factory=dict)
    #: The node of the plan that gave it, such as `draft#2` for the second round of `draft`.
    node: str = ""


@dataclass(frozen=True)
class RowStory:
    """Everything that a run directory has about one row."""

    row_id: str
    #: The file and line of its record; "" if the input cannot be read now.
    place: str
    #: The record in the current input: its fields, or its text if it has none; None if the input cannot be read now.
    record: Any
    #: The outcomes in the order of the plan, round by round in a loop, and of row ids within a node.
    outcomes: list[StepResult]
    #: Whether its root is complete, so that there will be no more outcomes.
    complete: bool
    #: Rejections that a retry or a `--from` has taken back, from the kept versions of the directory, oldest first.
    earlier: list[StepResult] = field(default_factory=list)


def story_of(run: RunDir, row_id: str) -> RowStory:
    """The history of a row. It imports no code of the chain, and reads the rows of one root only.

    Raises:
        RunDirectoryError: there is no run, or it has no such row so far.
        DamagedRun: the log or a shard does not hold the bytes that were written.
    """
    state, lines = read_lines(run)
    root = state.roots.root_of(int(record_of(row_id)))
    outcomes = sorted(_outcomes(run, state, lines.of(root), row_id), key=_order(state))
    known = any(owner_of(outcome.row_id, {row_id}) is not None for outcome in outcomes)
    if not known and (state.roots.is_done(root) or "~" in row_id):
        raise RunDirectoryError(_no_row(run, state, row_id))
    place, record = _record(run, state, int(record_of(row_id)))
    if not place and not outcomes:
        raise RunDirectoryError(_no_row(run, state, row_id))
    return RowStory(row_id, place, record, outcomes, state.roots.is_done(root), [*_rejected_before(run, row_id)])


def _rejected_before(run: RunDir, row_id: str) -> Iterator[StepResult]:
    for number in version_numbers(run):
        version = RunDir(run.versions / str(number))
        with suppress(RunError):  # a damaged version is skipped
            state, lines = read_lines(version)
            found = _outcomes(version, state, lines.of(state.roots.root_of(int(record_of(row_id)))), row_id)
            yield from [outcome for outcome in found if outcome.kind == "rejected"]


def _no_row(run: RunDir, state: RunState, row_id: str) -> str:
    return f"{run} has no row {row_id} so far: {counted(state.records, 'record')} of its input done, and rows count from 0"


class UnitLines:
    """The log offsets of the units of each root, in 16 bytes for each unit, because a log may have millions."""

    def __init__(self) -> None:
        self._roots, self._offsets = array("q"), array("q")

    def note(self, offset: int, event: AnyEvent) -> None:
        if isinstance(event, UnitCommitted):
            self._roots.append(event.root)
            self._offsets.append(offset)

    def of(self, root: int) -> Iterator[int]:
        return (offset for other, offset in zip(self._roots, self._offsets, strict=True) if other == root)


def read_lines(run: RunDir) -> tuple[RunState, UnitLines]:
    """The state of a run, and the log offsets of its units. Raises as `read_state` does."""
    lines = UnitLines()
    state, _ = read_state(run, heard=lines.note)
    return state, lines


def _outcomes(run: RunDir, state: RunState, lines: Iterator[int], row_id: str) -> Iterator[StepResult]:
    names = {node.folder: node.id for node in state.graph.steps}
    for offset in lines:
        _, event = next(iter(read_log(run.log, offset)))
        assert isinstance(event, UnitCommitted)
        step = declared_of(event.node)
        yield from (StepResult(step, gone, "dropped", node=event.node) for gone in event.dropped if _is_kin(gone, row_id))
        for file, (_, first, _, last) in event.off.items():
            folder, _, number = file.rpartition("/")
            for row in _rows(run, state, folder, int(number), first, last):
                if _is_kin(row["row_id"], row_id):
                    yield _outcome(names, folder.removeprefix(f"{run.held.name}/"), row, event.node)


def _is_kin(one: str, other: str) -> bool:
    """Whether two rows are the same, or one descends from the other."""
    return owner_of(one, {other}) is not None or owner_of(other, {one}) is not None


def _rows(run: RunDir, state: RunState, folder: str, number: int, first: int, last: int) -> Iterator[dict[str, Any]]:
    """The rows of a file; none for a hidden step whose rows were deleted when the run finished."""
    if folder.startswith(run.held.name) and not (run.path / folder).exists():
        return iter(())
    return read_span(run, state, folder, number, first, last)


def _outcome(names: dict[str, str], folder: str, row: dict[str, Any], node: str) -> StepResult:
    row_id = row.pop("row_id")
    if folder == _REJECTED:
        return StepResult(row.pop("step_id"), row_id, "rejected", row, node)
    if folder == FLATTENED:
        return StepResult(folder, row_id, "finished", row, FLATTENED)
    return StepResult(names[folder], row_id, "output", row, node)


def _order(state: RunState) -> Any:
    places = {name: place for place, name in enumerate([CHAIN_INPUT, *state.graph.by_id, FLATTENED])}
    last = len(places)  # for a fork, at which a row that is too large is rejected
    return lambda outcome: (places.get(outcome.node, last), row_order(outcome.row_id))


def _record(run: RunDir, state: RunState, number: int) -> tuple[str, Any]:
    """(file:line, fields or text) of a record of the input; ("", None) if the input is gone."""
    try:
        record = record_at(run, state, number)
    except InputError:
        record = None
    if record is None:
        return "", None
    fields = fields_of(record)
    return f"{record.file}:{record.line}", record.raw if fields is None else fields
