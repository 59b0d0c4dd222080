"""The state of a run, folded from its events.

It applies every event once, both during recovery and in the live writer, and depends only on events.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from msgspec import UNSET

from chainette.engine.budget import Amounts, BudgetLimits
from chainette.errors import DamagedRun
from chainette.io.rundir.accepted_rows import AcceptedRows, Boundary, has_enough
from chainette.io.rundir.accounting import NodeCounts
from chainette.io.rundir.costs import Bill
from chainette.io.rundir.event_types import (
    AnswersDiscarded,
    AnyEvent,
    BudgetUsed,
    EngineAdapted,
    EngineLoaded,
    EngineProbed,
    EngineReleased,
    Event,
    InputRead,
    RootDone,
    RowsTakenBack,
    RunCancelledEvent,
    RunCreated,
    RunFinished,
    RunPaused,
    RunResumed,
    RunStarted,
    ShardSealed,
    UnitCommitted,
    UnitRetried,
    UnitSplit,
    WorkerJoined,
    WorkerLeft,
    WorkerLost,
    WorkerRefused,
)
from chainette.io.rundir.graph import Graph
from chainette.io.rundir.logged_engines import LoggedEngines
from chainette.io.rundir.logged_roots import SHOWN, LoggedRoots
from chainette.io.rundir.logged_shards import LoggedShards
from chainette.io.rundir.work_time import WorkTime
from chainette.records import CHAIN_INPUT, Read, Reason, Usage, declared_of
from chainette.utils.plurals import counted

__all__ = ["RunState", "Status"]

#: Versions that did not log the final number of records counted Parquet, and inputs of at most this size, exactly.
_COUNTED_BYTES = 8 << 20


class Status(StrEnum):
    """The status of a run."""

    #: a process works on it, or was killed while working on it
    RUNNING = "running"
    #: it stopped before the end and can be resumed
    PAUSED = "paused"
    #: it was cancelled
    CANCELLED = "cancelled"
    #: every record of the input is in a complete root, and every step balances
    FINISHED = "finished"


@dataclass
class RunState:
    """The state of a run after the last event of its log."""

    created: RunCreated | None = None
    status: Status = Status.RUNNING
    reason: str = ""
    #: The flags with which a paused run can be resumed.
    flags: tuple[str, ...] = ()
    epoch: int = 0
    seq: int = -1
    graph: Graph = field(default_factory=Graph)
    expected: int | None = None
    started_at: str = ""
    #: The number of phases that a fleet has completed.
    phase: int = 0
    ended_at: str = ""
    work_time: WorkTime = field(default_factory=WorkTime)
    input_digest: str = ""
    #: The input in the last session; see `RunCreated.input`.
    input: dict[str, Any] = field(default_factory=dict)
    #: The position up to which the input was read for all durable rows.
    read: Read | None = None
    #: The number of records to take from the input; None means all.
    limit: int | None = None
    roots: LoggedRoots = field(default_factory=LoggedRoots)
    nodes: dict[str, NodeCounts] = field(default_factory=dict)
    bill: Bill = field(default_factory=Bill)
    #: Usage of answers whose rows were recomputed; it is on the bill, but not in the counts of a node.
    taken_back: Usage = field(default_factory=Usage)
    #: The limits of the last session, and the part of them that was spent or reserved, as far as it knew.
    budget: tuple[str, ...] = ()
    reserved: dict[str, Amounts] = field(default_factory=dict)
    engine_budgets: dict[str, BudgetLimits] = field(default_factory=dict)
    shards: LoggedShards = field(default_factory=LoggedShards)
    engines: LoggedEngines = field(default_factory=LoggedEngines)
    workers: set[str] = field(default_factory=set)
    #: The URL, without password, of every Redis that the run used.
    redis: set[str] = field(default_factory=set)
    #: The number of the last order that a sink has carried out.
    order: int = 0
    retries: int = 0
    finished_rows: int = 0
    records: int = 0
    #: Whether the run has ever finished, so that the rows of steps with `yield_output=False` were deleted.
    swept: bool = False
    #: (stream id, token) of the last durable result of a fleet, or of the epoch's anchor.
    position: tuple[str, str] | None = None
    #: The progress of a run that stops after a number of rows; None for other runs.
    accepted: AcceptedRows | None = None
    #: The root of the last accepted row, once it is certain. Its counts are kept in case more rows are wanted.
    cut: tuple[int, RootDone] | None = None
    #: Root that is incomplete, or after the last accepted row -> node -> its rows there; kept only with `accepted`.
    open_rows: dict[int, dict[str, NodeCounts]] = field(default_factory=dict)
    #: The records of the whole input, known at the end; None before that, and in logs of older versions.
    total: int | None = None
    #: Whether the log has a `run_finished`: rows that were kept only for resuming are deleted.
    ended: bool = False
    #: The offset of the last event in the log.
    last: int = 0
    #: The device and inode of the log; (0, 0) if the events have another source.
    log: tuple[int, int] = (0, 0)

    @property
    def run(self) -> RunCreated:
        """The first event.

        Raises:
            DamagedRun: the log does not begin with this event.
        """
        if self.created is None:
            raise DamagedRun(
                "events.jsonl holds no run: its first line is missing. If its input could not be read, repeat the command that "
                "began it; otherwise delete the directory and run again"
            )
        return self.created

    @property
    def parameters(self) -> dict[str, Any]:
        """The values of the parameters of the chain's factory."""
        return self.graph.parameters or {}

    def node(self, node: str) -> NodeCounts:
        """The counts of a node; for a node in a loop, over all rounds."""
        if (counts := self.nodes.get(node)) is None:
            counts = self.nodes.setdefault(declared_of(node), NodeCounts())
        return counts

    def apply(self, event: AnyEvent | Event, offset: int = 0) -> None:
        """Applies the next event, which is at `offset` in the log."""
        if event.epoch != self.epoch:
            self.roots.done_before = self.roots.done_count
        self.seq, self.epoch, self.last = event.seq, event.epoch, offset
        match event:
            case UnitCommitted():  # first, because nearly every event is one
                self._commit(event, offset)
            case RunCreated():
                self._create(event)
            case RunStarted():
                self.work_time.begin(event.at)
                self.started_at, self.expected, self.position = event.at, event.expected, event.anchor
                self._charge_at(event)
            case RunResumed():
                self.work_time.begin(event.at)
                self._resume(event)
            case InputRead():
                self.apply_read(Read(event.upto, event.digest))
            case UnitRetried():
                self.retries += 1
                self.node(event.node).retried += 1
            case AnswersDiscarded():
                self.node(event.node).discarded += event.usage
                self._charge(event.node, event.engine, event.usage)
            case EngineProbed():
                self.node(event.node).probes += event.usage
                self._charge(event.node, event.engine, event.usage)
            case BudgetUsed():
                self.reserved |= {"": event.used, **event.engines}
            case RowsTakenBack():
                self.taken_back += event.usage
                self._charge(event.node, event.engine, event.usage)
            case EngineLoaded():
                self.engines.load(event)
            case EngineAdapted():
                self.engines.adapt(event)
            case ShardSealed():
                self.shards.seal(event)
            case RunPaused():
                self.work_time.end(event.at)
                self.status, self.reason, self.ended_at = Status.PAUSED, event.reason, event.at
                self.flags = tuple(event.flags)
            case RunCancelledEvent():
                self.work_time.end(event.at)
                self.status, self.ended_at = Status.CANCELLED, event.at
            case RunFinished():
                self.work_time.end(event.at)
                self._finish(event)
            case WorkerJoined():
                self.workers.add(event.worker)
            case UnitSplit() | EngineReleased() | WorkerLeft() | WorkerLost() | WorkerRefused():
                pass
        self.work_time.at = event.at

    def _create(self, event: RunCreated) -> None:
        if self.created is not None:
            raise DamagedRun(f"events.jsonl: event {event.seq} begins a run in the middle of another; restore a backup")
        self.created, self.graph, self.input = event, event.graph, event.input
        self.roots.size, self.limit = int(event.settings.get("batch_size", 1)), event.settings.get("limit")
        if (wanted := event.settings.get("accept")) is not None:
            self.accepted = AcceptedRows(wanted)
        if redis := event.way.get("redis"):
            self.redis.add(redis)

    def _resume(self, event: RunResumed) -> None:
        self.status, self.expected, self.position = Status.RUNNING, event.expected, event.anchor
        self.graph, self.phase = event.graph or self.graph, event.phase
        self.input = event.input or self.input
        self._charge_at(event)
        if event.limit is not None:
            self._raise_limit(event.limit)
        if event.records is not None:
            self._begin_root(event.records)
        if event.accept is not None:
            self._accept_more(event.accept)
        self.order = max(self.order, event.order)
        if event.redis:
            self.redis.add(event.redis)

    def _charge_at(self, event: RunStarted | RunResumed) -> None:
        """Applies the rates and the limits of a session."""
        self.bill.take_rates(event.rates)
        self.budget, self.engine_budgets = tuple(event.budget), event.engine_budgets

    def _finish(self, event: RunFinished) -> None:
        """Marks the run as finished only if the rest of the log confirms it."""
        self.ended_at, self.input_digest, self.total, self.ended = event.at, event.input_digest, event.records, True
        gaps = self.gaps()
        self.status = Status.PAUSED if gaps else Status.FINISHED
        self.reason = f"not finished, although its log says so: {'; '.join(gaps)}" if gaps else ""
        if self.accepted is None:
            self.swept = True
            self.shards.drop_held()

    def _raise_limit(self, limit: int) -> None:
        if self.limit is not None and limit > self.limit:
            self._begin_root(self.limit)
            self.limit = limit

    def _begin_root(self, records: int) -> None:
        """Begins a new root after this number of records; the run is not at its end any more."""
        self.roots.begin_at(records)
        self.total, self.ended = None, False

    def _accept_more(self, wanted: int) -> None:
        """Raises the number of wanted rows: no row is surplus any more, and the root of the last accepted row is open again."""
        assert self.accepted is not None
        self.total, self.ended = None, False
        if self.cut is None:
            self.accepted.want_more(wanted, None)
            return
        root, done = self.cut
        self.cut = None
        for counts in self.nodes.values():
            counts.take_back()
        self.accepted.want_more(wanted, done)
        self._finish_root(root, done, -1)

    @property
    def records_to_come(self) -> int | None:
        """The records that will be complete at the end; None if unknown. With `accept`, an estimate from the yield so far."""
        return self.expected if self.accepted is None else self.accepted.records_to_come(self.expected)

    def boundary_at(self, row_id: str) -> Boundary:
        """The boundary after a row."""
        return Boundary(row_id, self.graph.expansions)

    @property
    def boundary(self) -> Boundary | None:
        """The boundary after the last accepted row; None if it is not certain yet, or if the run takes all rows."""
        return self.boundary_at(self.accepted.last) if self.accepted is not None and has_enough(self.accepted) else None

    def apply_read(self, read: Read) -> None:
        """Applies a position up to which the input was read, for rows that may be durable."""
        if self.read is None or read.upto > self.read.upto:
            self.read = read

    def _commit(self, event: UnitCommitted, offset: int) -> None:
        self.position = event.pos or self.position
        if event.node != CHAIN_INPUT:  # bad lines are counted when their root is complete
            self.node(event.node).take(event)
            if event.usage.requests:
                self._charge(event.node, event.engine, event.usage)
            if self.accepted is not None:
                self._count_open(event)
        self.shards.append(event)
        self.roots.take(event, offset, self.graph)
        if event.root_done is not None:
            self._finish_root(event.root, event.root_done)
            if event.root_done.last is UNSET:
                self.roots.forget(event.root)
                self.open_rows.pop(event.root, None)

    def used(self, engine: str = "") -> Amounts:
        """The amounts that count towards the budget of the run, or of an engine: those of all requests so far, including
        requests that a killed process may have sent."""
        return self.bill.amounts(engine).at_least(self.reserved.get(engine, Amounts()))

    def _charge(self, node: str, engine: str, usage: Usage) -> None:
        self.bill.charge(node, engine or self.graph.engine_of(node), usage)

    def _count_open(self, event: UnitCommitted) -> None:
        """Counts separately the rows that are, or may turn out to be, after the last accepted one."""
        name = declared_of(event.node)
        rows = NodeCounts(event.taken, event.given, event.rejected, len(event.dropped), reasons=event.reasons, ways=event.ways)
        self.open_rows.setdefault(event.root, {}).setdefault(name, NodeCounts()).add(rows)
        if has_enough(self.accepted):
            self.node(name).set_aside(rows)

    def _finish_root(self, root: int, done: RootDone, sign: int = 1) -> None:
        """Counts a complete root; with `sign` -1, the root is open again."""
        self.roots.mark(root, done=sign > 0)
        self.records += sign * done.records
        self.finished_rows += sign * done.accepted
        source = self.node(CHAIN_INPUT)
        source.taken += sign * done.records
        source.given += sign * (done.records - done.bad)
        source.rejected += sign * done.bad
        if done.bad:
            source.reasons[Reason.INVALID_INPUT] = source.rejected
        for fork, (taken, stopped) in done.forks.items():
            counts = self.node(fork)
            counts.taken += sign * taken
            counts.stopped += sign * stopped
            counts.given += sign * (taken - stopped)
        if self.accepted is not None and sign > 0:
            self._accept(root, done)

    def _accept(self, root: int, done: RootDone) -> None:
        """Accepts the rows of a root; with the last one, all rows after it are set aside."""
        assert self.accepted is not None
        self.accepted.take(done)
        if done.last is UNSET:
            return
        self.cut = (root, done)
        for name, beyond in done.last.beyond.items():
            self.node(name).set_aside(beyond)
        for other, nodes in self.open_rows.items():
            for name, counts in nodes.items() if other != root else ():
                self.node(name).set_aside(counts)

    def imbalances(self) -> list[str]:
        """Describes each wrong sum; [] if every row of every complete root is accounted for."""
        found = [f"{node}: {counts.plain()}" for node, counts in self.nodes.items() if not counts.balanced]
        return found + self.roots.faults(None if self.cut is None else self.cut[0])

    def gaps(self, records: int | None = None) -> list[str]:
        """The reasons why the run is not finished; [] if it is. `records` is the number of records in the whole input.

        Only this method decides that: every record is in a root that is complete in the log, and every step balances.
        """
        found = [] if has_enough(self.accepted) else self._missing_roots(self._known_records() if records is None else records)
        return found + [*self.shards.holes.values()][:SHOWN] + self.imbalances()

    def _missing_roots(self, records: int | None) -> list[str]:
        if missing := self.roots.missing(records or 0):
            return [missing]
        if records is not None and self.records != records:
            return [f"its roots have {counted(self.records, 'record')}, but the input has {records:,}"]
        return []

    def _known_records(self) -> int | None:
        """The number of records in the input; None if neither the end nor the start of the log has the exact number."""
        if self.total is not None:
            return self.total
        read = self.run.input
        exact = read.get("kind") == "parquet" or read.get("size", _COUNTED_BYTES + 1) <= _COUNTED_BYTES
        return self.expected if exact else None

    @property
    def answered(self) -> Usage:
        """Usage of all answers that were not discarded, including answers of rows that were recomputed."""
        return sum((counts.usage for counts in self.nodes.values()), self.taken_back)

    def rows_of(self, step: str, *, surplus: bool = False) -> int:
        """The number of rows of a step, `rejected` or `flattened`; unless `surplus` is set, without those after the last
        accepted one."""
        if surplus or self.boundary is None or step == "flattened":
            return self.shards.rows(self.graph.row_folders[step])
        if step == "rejected":
            return sum(counts.rejected for counts in self.nodes.values())
        return self.node(step).given
