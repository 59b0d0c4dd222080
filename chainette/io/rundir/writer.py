"""RunWriter makes outcomes durable. It is the only writer of a run directory.

`commit` takes a group: rows are written to the shards and fsynced, then one log line per outcome is written and
fsynced. A crash between the two leaves rows without a log line, which recovery cuts off. So every logged row
is on the disk once, and nothing else is (docs/protocol.md, 16 and 17).
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import msgspec

from chainette.core.durable import Durable
from chainette.core.plan import Plan
from chainette.core.plan_node import NodeKind
from chainette.engine.budget import Amounts, Budget, BudgetLimits, budget_of
from chainette.engine.price import Rate
from chainette.errors import NotFinished, RunStopped
from chainette.io.rundir.accepted_rows import AcceptedRows
from chainette.io.rundir.chain_changes import different_models
from chainette.io.rundir.dependents import starts_of
from chainette.io.rundir.derived_files import publish_metadata
from chainette.io.rundir.durable_rows import rows_of_root
from chainette.io.rundir.event_log import EventLog
from chainette.io.rundir.event_types import (
    Charged,
    EngineLoaded,
    Event,
    InputRead,
    RootDone,
    RunCancelledEvent,
    RunFinished,
    RunPaused,
    UnitCommitted,
)
from chainette.io.rundir.folder_rows import require_whole
from chainette.io.rundir.live_roots import Admitted, Commit, Committed, InOrder, Item, LiveRoots, Suspended
from chainette.io.rundir.paths import RunDir
from chainette.io.rundir.run_state import RunState, Status
from chainette.io.rundir.sealing import Sealer
from chainette.io.rundir.shards import Span, StreamWriter
from chainette.io.rundir.unit_line import unit_line
from chainette.io.tables.row_lines import flattened_line, output_line, rejection_line
from chainette.io.tables.schemas import Added
from chainette.records import CHAIN_INPUT, Outcome, Read, Rejection, Row, Unit, declared_of

__all__ = ["Reopened", "RunWriter", "tidy"]


@dataclass(frozen=True)
class Reopened:
    """The differences between a session and the log, for the first line of the session."""

    #: The identity of the input, if it was moved or has other times.
    input: dict[str, Any] | None = None
    #: The limit, if it was raised.
    limit: int | None = None
    #: The number of records of the input before files were appended to it.
    records: int | None = None
    #: The number of rows to accept, if it was raised.
    accept: int | None = None

    @property
    def is_longer(self) -> bool:
        """Whether there are records or rows beyond those of earlier sessions."""
        return self.limit is not None or self.records is not None or self.accept is not None


class RunWriter:
    """Writes a run directory. `open.py` makes it when it creates or recovers the directory."""

    def __init__(
        self, directory: RunDir, plan: Plan, log: EventLog, state: RunState, streams: dict[str, StreamWriter], sealer: Sealer
    ) -> None:
        self.directory = directory
        self.plan = plan
        self.state = state
        self._log = log
        self._streams = streams
        self._by_folder = {stream.folder: stream for stream in streams.values()}
        self._sealer = sealer
        self._roots = LiveRoots(plan)
        #: Set if the run stops after a number of rows.
        self._in_order = InOrder(accepted, self._roots, state.boundary_at) if (accepted := state.accepted) else None
        self.reopened = Reopened()
        #: Engine -> its rate, which is logged with the start or the resume.
        self.rates: dict[str, Rate] = {}
        #: The limits of this session, in the form of `--budget`.
        self.limits: tuple[str, ...] = ()
        #: Engine -> its limits.
        self.engine_limits: dict[str, BudgetLimits] = {}
        #: Shards that earlier sessions sealed, which are read once more before the run counts as finished.
        self._found = [(folder, number) for folder, numbers in state.shards.sealed.items() for number in numbers]
        #: The position up to which the input was read, if it is not logged yet.
        self._read: Read | None = None
        self.added = Added.of(state.run.settings)
        self._flattened = bool(state.run.settings.get("flattened", True))

    @property
    def epoch(self) -> int:
        """The number of times the run was resumed or entered another phase."""
        return self._log.epoch

    @property
    def raised(self) -> bool:
        """Whether this session began a new epoch."""
        return self._log.epoch > self.state.epoch

    @property
    def accepted(self) -> AcceptedRows | None:
        """The progress of a run that stops after a number of rows; None if it takes all rows."""
        return self.state.accepted

    @property
    def waiting(self) -> int:
        """The number of roots whose rows have all ended, but that are not complete in the log because earlier roots are not."""
        return 0 if self._in_order is None else len(self._in_order)

    def has_ended(self, root: int) -> bool:
        """Whether all rows of a root have ended: it is complete in the log, or waits for earlier roots."""
        return self.state.roots.is_done(root) or (self._in_order is not None and root in self._in_order)

    def readmit(self) -> None:
        """Drops the roots that wait for others, because a new epoch or phase admits them again."""
        for root in () if self._in_order is None else self._in_order.leave():
            self._roots.suspend(root)

    def raise_epoch(self, known: int = -1) -> None:
        """Begins an epoch, later than `known`, with the next event, unless the last new epoch is not logged yet."""
        self.readmit()
        self._log.epoch = max(self._log.epoch, self.state.epoch + 1, known + 1)

    @property
    def budget(self) -> Budget | None:
        """The budget of this session; None if it has no limits."""
        return budget_of(self.limits, {**self.state.bill.rates, **self.rates}, self.engine_limits)

    @property
    def used(self) -> dict[str, Amounts]:
        """The spent or reserved part of each budget: under "" that of the run, otherwise that of an engine."""
        return {name: self.state.used(name) for name in ("", *self.engine_limits)}

    def charge(self, rates: dict[str, Rate], limits: Sequence[str], engine_limits: dict[str, BudgetLimits]) -> None:
        """Sets the rates and limits of this session; `limits` are those of `--budget`."""
        self.rates, self.limits, self.engine_limits = rates, tuple(limits), engine_limits

    @property
    def charged(self) -> Charged:
        """The rates and limits, for the first event of a session."""
        return {"rates": self.rates, "budget": [*self.limits], "engine_budgets": self.engine_limits}

    # -- rows

    def commit(self, group: Sequence[Item]) -> Committed:
        """Makes a group durable; the whole group or, after a crash, a prefix of it.

        Raises:
            DiskError: the disk is full, or a write failed; no part of the group counts.
        """
        finished: list[list[Row]] = []
        events: list[Event] = []
        for item in group:
            match item:
                case Admitted():
                    self._roots.open(item)
                    self._note_read(item.read)
                case Suspended():
                    self._roots.suspend(item.root)
                case Commit():
                    events += self._unlogged_read()
                    events.append(self._write(item, finished))
                case EngineLoaded():
                    self._require_same_model(item)
                    events.append(item)
                case _:
                    events.append(item)
        began = perf_counter()
        logged = self._record_rows(events)
        if self._in_order is not None:
            logged += self._record_rows([self._complete(*closed, finished) for closed in self._in_order.closed()])
        synced = perf_counter() - began
        return Committed(finished, logged + self._seal(self._sealer.ready()), synced)

    def _record_rows(self, events: Sequence[Event]) -> list[Event]:
        """Logs events after the rows that they mention."""
        if events:
            for stream in self._streams.values():
                stream.sync()
        return self.record(events)

    def _complete(self, root: int, rows: list[Row], done: RootDone, finished: list[list[Row]]) -> UnitCommitted:
        """Appends the rows of a root that is complete, as are all roots before it."""
        finished.append(rows)
        off = self._append_finished(rows)
        self._sealer.note(root, off, done=True)
        return UnitCommitted(node=CHAIN_INPUT, root=root, off=off, sums=self._sums_of(off), root_done=done)

    def _append_finished(self, rows: Sequence[Row]) -> dict[str, Span]:
        if not (self._flattened and rows):
            return {}
        return self._streams["flattened"].append([flattened_line(self.plan, row, self.added) for row in rows])

    def _sums_of(self, off: Iterable[str]) -> dict[str, int]:
        return {file: self._by_folder[file.rpartition("/")[0]].sums[file] for file in off}

    def _require_same_model(self, event: EngineLoaded) -> None:
        """Raises RunStopped if the model of an engine differs from the one that answered earlier rows."""
        found = different_models(event.engine, self.state.engines.loaded_from(event.engine), event.identity)
        if found:
            answered = [node.id for node in self.plan.nodes.values() if event.engine in node.engines]
            steps = " ".join(f"--from {step}" for step in starts_of(self.plan, answered))
            raise RunStopped(
                f"{' and '.join(found)} since it answered rows of this run. Restore the old one and resume, "
                f"or recompute its rows: `chainette resume {self.directory} {steps}`"
            )

    def _seal(self, shards: Iterable[tuple[StreamWriter, int]]) -> list[Event]:
        """Converts full shards to their final format, and deletes a journal once the log says that its shard is sealed."""
        sealed = [(stream, number, self._sealer.seal(stream, number)) for stream, number in shards]
        logged = self.record([event for _, _, event in sealed])
        for stream, number, _ in sealed:
            self._sealer.sweep(stream, number)
        return logged

    def _write(self, commit: Commit, finished: list[list[Row]]) -> UnitCommitted:
        """Appends the rows of an outcome, and those of its root if this completes it."""
        unit, outcome = commit.unit, commit.outcome
        self._roots.add(commit)
        off = self._append_outputs(unit, outcome) | self._append_rejected(outcome)
        root_done = None
        if commit.done and self._in_order is not None:
            self._in_order.wait(unit.root)
        elif commit.done:
            rows, root_done = self._roots.close(unit.root)
            finished.append(rows)
            off |= self._append_finished(rows)
        self._sealer.note(unit.root, off, done=root_done is not None)
        return unit_line(self.plan, commit, off, self._sums_of(off), root_done)

    def _append_rejected(self, outcome: Outcome) -> dict[str, Span]:
        if not outcome.rejected:
            return {}
        tells_engine = self.plan.escalates or self.added.engine
        lines = [
            rejection_line(self._told(rejection), self.added, self._round_of(rejection), escalates=tells_engine)
            for rejection in outcome.rejected
        ]
        return self._streams["rejected"].append(lines)

    def _told(self, rejection: Rejection) -> Rejection:
        """The rejection with its engine, if the directory records the engine in every step."""
        node = self.plan.nodes.get(rejection.step_id)
        if rejection.engine or not self.added.engine or node is None or node.kind is not NodeKind.STEP:
            return rejection
        return msgspec.structs.replace(rejection, engine=node.engine)

    def _round_of(self, rejection: Rejection) -> int | str | None:
        """The round in the form of `rejected/`, with one type for all nodes of the chain."""
        node = self.plan.nodes.get(rejection.step_id)
        if node is None or node.round is None:
            return None
        return node.round.path if self.plan.nests_loops else node.round.number

    def _note_read(self, read: Read | None) -> None:
        known = self._read or self.state.read
        if read is not None and (known is None or read.upto > known.upto):
            self._read = read

    def _unlogged_read(self) -> list[Event]:
        """The event for the position in the input, logged before the first unit with rows from there."""
        read, self._read = self._read, None
        return [] if read is None else [InputRead(upto=read.upto, digest=read.digest)]

    def _append_outputs(self, unit: Unit, outcome: Outcome) -> dict[str, Span]:
        node = self.plan.stations.get(unit.node)
        if node is None or node.passes or not outcome.outputs:
            return {}
        lines = [
            output_line(node, output, self._roots.key(unit.root, output.row_id) if self.added.key else None, self.added)
            for output in outcome.outputs
        ]
        return self._streams[declared_of(node.id)].append(lines)

    def fault(self, folder: str, values: Iterable[bytes]) -> str:
        """The reason why rows with these values from outside cannot be written to a folder; "" if they can."""
        return self._sealer.fault(folder, values)

    def durable(self, root: int) -> Durable | None:
        """The outcomes of an incomplete root from earlier phases or sessions."""
        return rows_of_root(self.directory, self.plan, self.state, root)

    # -- events

    def record(self, events: Iterable[Event]) -> list[Event]:
        """Logs events; durable on return."""
        events = list(events)
        if not events:
            return []
        logged = []
        for offset, event in self._log.append(events):
            self.state.apply(event, offset)
            logged.append(event)
        return logged

    def finish(self, input_digest: str, records: int | None) -> list[Event]:
        """Seals every shard, closes the log with run_finished, and writes the derived files. `records` is the number of
        records in the whole input; None if it was not read to its end because all wanted rows are accepted.

        Raises:
            NotFinished: according to the log, some records are missing, or a step does not balance.
            DamagedRun: a shard of an earlier session does not hold the bytes that were written.
        """
        if gaps := self.state.gaps(records):
            raise NotFinished(self.directory, gaps)
        for folder, number in self._found:
            require_whole(self.directory, self.state, folder, number)
        finished = RunFinished(input_digest=input_digest, records=records)
        logged = self._seal(self._sealer.rest()) + self.record([finished])
        tidy(self.directory, self.state)
        return logged

    def cancel(self) -> list[Event]:
        """Logs that the run was cancelled, and updates the derived files."""
        logged = self.record([RunCancelledEvent()])
        publish_metadata(self.directory, self.state)
        return logged

    def pause(self, reason: str, flags: Iterable[str] = ()) -> list[Event]:
        """Logs that the run stopped, and updates the derived files. A finished run stays finished."""
        if self.state.status is Status.FINISHED:
            return []
        logged = self.record([RunPaused(reason=reason, flags=[*flags])])
        publish_metadata(self.directory, self.state)
        return logged

    def close(self) -> None:
        """Releases the directory. Logged rows stay; the next session cuts off other rows."""
        for stream in self._streams.values():
            stream.let_go()
        self._log.close()


def tidy(directory: RunDir, state: RunState) -> None:
    """Cleans up a finished run's directory for readers; safe to repeat after a crash."""
    if state.accepted is None:  # with `accept`, surplus rows are kept, so that they are not asked again if more are wanted
        shutil.rmtree(directory.held, ignore_errors=True)
    shutil.rmtree(directory.journals, ignore_errors=True)
    publish_metadata(directory, state)
