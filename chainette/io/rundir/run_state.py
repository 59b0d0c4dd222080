"""The state of a run, folded from its events.

It takes in every event once, during recovery and in the live writer alike, and depends on events only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import msgspec
from msgspec import UNSET

from chainette.engine.budget import Amounts, BudgetLimits, limit_words
from chainette.errors import DamagedRun
from chainette.io.rundir.accepted_rows import AcceptedRows, Boundary, has_enough
from chainette.io.rundir.accounting import EngineCounts, NodeCounts, RowCounts, imbalance, plain_usage, ranges
from chainette.io.rundir.costs import Bill, plain_cost
from chainette.io.rundir.events import (
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
from chainette.records import CHAIN_INPUT, Read, Reason, Usage, declared_of

__all__ = ["RunState", "Status"]

#: Versions that did not log the final number of records counted Parquet, and inputs up to this size, exactly.
_COUNTED_BYTES = 8 << 20


#: How many roots that do not add up are named.
_SHOWN = 5


#: The log's prefix for folders of steps with `yield_output=False`.
_HELD = ".held/"


#: Fields of an engine the log itself counts; no description replaces it.
_OF_ENGINES = frozenset({"loads", "load_seconds", "identity"})


class Status(StrEnum):
    """The status of a run."""

    #: a process works on it, or was killed while it did
    RUNNING = "running"
    #: it stopped before the end and can be resumed
    PAUSED = "paused"
    #: it was cancelled
    CANCELLED = "cancelled"
    #: every record of the input is in a complete root, and every step balances
    FINISHED = "finished"


@dataclass
class RunState:
    """The fold of a log up to its last event."""

    created: RunCreated | None = None
    status: Status = Status.RUNNING
    reason: str = ""
    epoch: int = 0
    seq: int = -1
    graph: Graph = field(default_factory=Graph)
    expected: int | None = None
    started_at: str = ""
    #: Phases a fleet has gone through.
    phase: int = 0
    ended_at: str = ""
    input_digest: str = ""
    #: The input as the last session found it; see `RunCreated.input`.
    input: dict[str, Any] = field(default_factory=dict)
    #: The position the input was read to for all durable rows.
    read: Read | None = None
    #: Records to take from the input; None: all.
    limit: int | None = None
    #: (root, record) pairs from which roots are counted; a raised limit begins a new root.
    starts: tuple[tuple[int, int], ...] = ((0, 0),)
    nodes: dict[str, NodeCounts] = field(default_factory=dict)
    bill: Bill = field(default_factory=Bill)
    #: Usage of answers whose rows were computed anew; in the bill, and in no count of a node.
    taken_back: Usage = field(default_factory=Usage)
    #: The limits of the last session, and the part of them it knew to be spent or reserved.
    budget: tuple[str, ...] = ()
    reserved: dict[str, Amounts] = field(default_factory=dict)
    engine_budgets: dict[str, BudgetLimits] = field(default_factory=dict)
    #: Folder -> journal number -> (bytes, rows).
    ends: dict[str, dict[int, tuple[int, int]]] = field(default_factory=dict)
    sealed: dict[str, dict[int, int]] = field(default_factory=dict)
    #: Journal -> CRC-32 of its bytes; of the shard once that is sealed. Versions that did not log it left none.
    sums: dict[str, int] = field(default_factory=dict)
    engines: dict[str, dict[str, Any]] = field(default_factory=dict)
    workers: set[str] = field(default_factory=set)
    #: URLs without passwords of every Redis the run used.
    redis: set[str] = field(default_factory=set)
    #: The number of the last order that a sink has followed.
    order: int = 0
    retries: int = 0
    finished_rows: int = 0
    records: int = 0
    #: Whether the run finished once, so that the rows of steps with `yield_output=False` are gone.
    swept: bool = False
    #: (stream id, token) of the last durable result of a fleet, or of the epoch's anchor.
    position: tuple[str, str] | None = None
    #: One byte per root, 1 once it is complete.
    done: bytearray = field(default_factory=bytearray)
    done_count: int = 0
    #: Set if the run stops after a number of rows.
    accepted: AcceptedRows | None = None
    #: The root of the last accepted row, once that is certain. What is known of it stays, in case more rows are wanted.
    cut: tuple[int, RootDone] | None = None
    #: Root that is incomplete, or behind the last accepted row -> node -> its rows there; kept only with `accepted`.
    open_rows: dict[int, dict[str, NodeCounts]] = field(default_factory=dict)
    #: Incomplete root -> log offsets of its lines.
    lines: dict[int, list[int]] = field(default_factory=dict)
    #: Incomplete root -> node -> its rows there.
    passed: dict[int, dict[str, RowCounts]] = field(default_factory=dict)
    #: Complete root -> description of the place where its rows do not add up.
    broken: dict[int, str] = field(default_factory=dict)
    #: Journal -> description of its rows that no line of the log covers.
    holes: dict[str, str] = field(default_factory=dict)
    #: Records of the whole input, known at the end; None before, and in logs of older versions.
    total: int | None = None
    #: Whether the log has a `run_finished`: rows kept only for resuming are gone.
    ended: bool = False
    #: Roots that were complete when the current epoch began.
    done_before: int = 0
    #: Offset of the last event in the log.
    last: int = 0
    #: Device and inode of the log; (0, 0) if the events came from elsewhere.
    log: tuple[int, int] = (0, 0)

    @property
    def run(self) -> RunCreated:
        """The first event.

        Raises:
            DamagedRun: the log does not begin with it.
        """
        if self.created is None:
            raise DamagedRun("events.jsonl holds no run: its first line is missing; delete the directory and run again")
        return self.created

    @property
    def parameters(self) -> dict[str, Any]:
        """Values of the parameters of the chain's factory."""
        return self.graph.parameters or {}

    def is_done(self, root: int) -> bool:
        """Whether a root is complete."""
        return root < len(self.done) and bool(self.done[root])

    def node(self, node: str) -> NodeCounts:
        """The counts of a node, those of a loop's node over all rounds."""
        if (counts := self.nodes.get(node)) is None:
            counts = self.nodes.setdefault(declared_of(node), NodeCounts())
        return counts

    def apply(self, event: AnyEvent | Event, offset: int = 0) -> None:
        """Takes in the next event, which is at `offset` in the log."""
        if event.epoch != self.epoch:
            self.done_before = self.done_count
        self.seq, self.epoch, self.last = event.seq, event.epoch, offset
        match event:
            case UnitCommitted():  # first, since nearly every event is one
                self._commit(event, offset)
            case RunCreated():
                if self.created is not None:
                    raise DamagedRun(f"events.jsonl: event {event.seq} begins a run in the middle of another; restore a backup")
                self.created, self.graph, self.input = event, event.graph, event.input
                self.limit = event.settings.get("limit")
                if (wanted := event.settings.get("accept")) is not None:
                    self.accepted = AcceptedRows(wanted)
                self._note_redis(event.way.get("redis", ""))
            case RunStarted():
                self.started_at, self.expected, self.position = event.at, event.expected, event.anchor
                self.bill.take_rates(event.rates)
                self.budget, self.engine_budgets = tuple(event.budget), event.engine_budgets
            case RunResumed():
                self.status, self.expected, self.position = Status.RUNNING, event.expected, event.anchor
                self.graph, self.phase = event.graph or self.graph, event.phase
                self.input = event.input or self.input
                self.bill.take_rates(event.rates)
                self.budget, self.engine_budgets = tuple(event.budget), event.engine_budgets
                if event.limit is not None:
                    self._raise_limit(event.limit)
                if event.records is not None:
                    self._begin_root(event.records)
                if event.accept is not None:
                    self._accept_more(event.accept)
                self.order = max(self.order, event.order)
                self._note_redis(event.redis)
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
                self._load(event)
            case EngineAdapted():
                self.engines.setdefault(event.engine, {"loads": 0, "load_seconds": 0.0})["adapted"] = event.changes
            case ShardSealed():
                folder, _, number = event.file.rpartition("/")
                self.sealed.setdefault(folder, {})[int(number)] = event.bytes
                self.sums.pop(event.file, None)
                if event.sum is not None:
                    self.sums[event.file] = event.sum
                _, known = self.ends.get(folder, {}).get(int(number), (0, 0))
                if event.rows != known:
                    self.holes[event.file] = f"{event.file} has {event.rows:,} rows, and the log speaks of {known:,}"
            case RunPaused():
                self.status, self.reason, self.ended_at = Status.PAUSED, event.reason, event.at
            case RunCancelledEvent():
                self.status, self.ended_at = Status.CANCELLED, event.at
            case RunFinished():
                self._finish(event)
            case WorkerJoined():
                self.workers.add(event.worker)
            case UnitSplit() | EngineReleased() | WorkerLeft() | WorkerLost() | WorkerRefused():
                pass

    def _finish(self, event: RunFinished) -> None:
        """Marks the run as finished only if the rest of the log confirms it."""
        self.ended_at, self.input_digest, self.total, self.ended = event.at, event.input_digest, event.records, True
        gaps = self.gaps()
        self.status = Status.PAUSED if gaps else Status.FINISHED
        self.reason = f"not finished, although its log says so: {'; '.join(gaps)}" if gaps else ""
        if self.accepted is None:
            self.swept = True
            self.ends = {folder: ends for folder, ends in self.ends.items() if not folder.startswith(_HELD)}

    def _raise_limit(self, limit: int) -> None:
        if self.limit is not None and limit > self.limit:
            self._begin_root(self.limit)
            self.limit = limit

    def _begin_root(self, records: int) -> None:
        """The record after so many is the first of a root, and the run is not at its end."""
        self.starts += ((self._roots_of(records), records),)
        self.total, self.ended = None, False

    def _accept_more(self, wanted: int) -> None:
        """More rows are wanted: nothing is surplus any more, and the root of the last accepted row is open again."""
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
        """The records that will be complete at the end; None if unknown. With `accept` an estimate at the yield so far."""
        if self.accepted is None:
            return self.expected
        if self.accepted.reached:
            return self.records
        if not self.accepted.certain:
            return None
        needed = round(self.accepted.wanted * self.records / self.accepted.certain)
        return needed if self.expected is None else min(self.expected, needed)

    def boundary_at(self, row_id: str) -> Boundary:
        """The boundary behind a row."""
        return Boundary(row_id, self.graph.expansions)

    @property
    def boundary(self) -> Boundary | None:
        """The boundary behind the last accepted row; None if it is not certain yet, or if the run takes all rows."""
        return self.boundary_at(self.accepted.last) if self.accepted is not None and has_enough(self.accepted) else None

    def _roots_of(self, records: int) -> int:
        """The number of roots for this number of records."""
        root, first = next(start for start in reversed(self.starts) if start[1] < records or start[1] == 0)
        return root + -(-(records - first) // int(self.run.settings["batch_size"]))

    def root_of(self, record: int) -> int:
        """The root that holds a record of the input."""
        return self._roots_of(record + 1) - 1

    def apply_read(self, read: Read) -> None:
        """Takes in a position the input was read to, for rows that may be durable."""
        if self.read is None or read.upto > self.read.upto:
            self.read = read

    def _note_redis(self, address: str) -> None:
        if address:
            self.redis.add(address)

    def _commit(self, event: UnitCommitted, offset: int) -> None:
        self.position = event.pos or self.position
        if event.node != CHAIN_INPUT:  # bad lines are counted when their root is complete
            self._count(event)
            if self.accepted is not None:
                self._count_open(event)
            self.passed.setdefault(event.root, {}).setdefault(event.node, RowCounts()).add(event)
        self.sums |= event.sums
        for file, (_, first, size, rows) in event.off.items():
            folder, _, number = file.rpartition("/")
            ends = self.ends.setdefault(folder, {})
            _, known = ends.get(int(number), (0, 0))
            if first != known:
                self.holes[file] = f"the log does not speak of rows {known:,} to {first - 1:,} of {file}"
            ends[int(number)] = (size, rows)
        if event.root_done is None:
            self.lines.setdefault(event.root, []).append(offset)
            return
        if self.is_done(event.root):
            self.broken[event.root] = "it was completed twice"
        elif words := imbalance(self.graph, self.passed.get(event.root, {}), event.root_done):
            self.broken[event.root] = words
        self._finish_root(event.root, event.root_done)
        if event.root_done.last is UNSET:
            for kept in (self.lines, self.passed, self.open_rows):
                kept.pop(event.root, None)

    def _count(self, event: UnitCommitted) -> None:
        counts = self.node(event.node)
        counts.taken += event.taken
        counts.given += event.given
        counts.rejected += event.rejected
        counts.dropped += len(event.dropped)
        counts.expanded += event.added
        counts.reused += event.reused
        counts.shared += event.shared
        counts.invalid += event.invalid
        if event.usage.requests:
            counts.usage += event.usage
            self._charge(event.node, event.engine, event.usage)
        for way, rows in event.ways.items():
            counts.ways[way] = counts.ways.get(way, 0) + rows
        if event.engine:
            asked = counts.engines.setdefault(event.engine, EngineCounts())
            asked.given += event.given
            asked.rejected += event.rejected
            asked.escalated += event.escalated
            asked.shared += event.shared
            asked.usage += event.usage
        for reason, count in event.reasons.items():
            counts.reasons[reason] = counts.reasons.get(reason, 0) + count

    def used(self, engine: str = "") -> Amounts:
        """What counts towards the budget of the run, or of an engine: all that was asked, and requests a killed process
        may have sent."""
        return self.bill.amounts(engine).at_least(self.reserved.get(engine, Amounts()))

    def _charge(self, node: str, engine: str, usage: Usage) -> None:
        self.bill.charge(node, engine or self.engine_of(node), usage)

    def engine_of(self, node: str) -> str:
        """The (first) engine of a step; "" if the chain has no such step."""
        found = self.graph.by_id.get(node)
        return "" if found is None else found.engine

    def _count_open(self, event: UnitCommitted) -> None:
        """Counts rows apart that may turn out to be behind the last accepted one, or that are."""
        name = declared_of(event.node)
        rows = NodeCounts(event.taken, event.given, event.rejected, len(event.dropped), reasons=event.reasons, ways=event.ways)
        self.open_rows.setdefault(event.root, {}).setdefault(name, NodeCounts()).add(rows)
        if has_enough(self.accepted):
            self.node(name).set_aside(rows)

    def _finish_root(self, root: int, done: RootDone, sign: int = 1) -> None:
        """A root is complete; or open again, with `sign` -1."""
        self.done.extend(bytes(max(0, root + 1 - len(self.done))))
        self.done[root] = sign > 0
        self.done_count += sign
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
        """A root's rows are accepted; with the last one, all that lies behind it is set aside."""
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

    def _load(self, event: EngineLoaded) -> None:
        known = self.engines.setdefault(event.engine, {"loads": 0, "load_seconds": 0.0})
        known |= {name: value for name, value in event.details.items() if name not in _OF_ENGINES}
        known |= {"backend": event.backend, "model": event.model, "deterministic": event.deterministic}
        known["identity"] = event.identity or known.get("identity", {})
        known["loads"] += 1
        known["load_seconds"] = round(known["load_seconds"] + event.seconds, 3)

    def loaded_from(self, engine: str) -> Mapping[str, str]:
        """The origin of the engine that answered the existing rows; {} if unknown."""
        identity: dict[str, str] = self.engines.get(engine, {}).get("identity", {})
        return identity

    def imbalances(self) -> list[str]:
        """Describes each sum that is wrong; [] if every row of every complete root is accounted for."""
        found = [f"{node}: {counts.plain()}" for node, counts in self.nodes.items() if not counts.balanced]
        cut = -1 if self.cut is None else self.cut[0]
        late = {root: "rows came after it was complete" for root in self.lines if self.is_done(root) and root != cut}
        return found + [f"root {root:,}: {words}" for root, words in sorted((self.broken | late).items())[:_SHOWN]]

    def gaps(self, records: int | None = None) -> list[str]:
        """Says why the run is not finished; [] if it is. `records`: the number of records in the whole input.

        The only place that decides this: every record is in a root that is complete in the log, and every step balances.
        """
        found = [] if has_enough(self.accepted) else self._missing_roots(self._known_records() if records is None else records)
        return found + [*self.holes.values()][:_SHOWN] + self.imbalances()

    def _missing_roots(self, records: int | None) -> list[str]:
        size = self.run.settings["batch_size"]
        count = max([self._roots_of(records or 0), len(self.done), *(root + 1 for root in self.lines)])
        missing = [root for root in range(count) if not self.is_done(root)]
        if missing:
            roots = f"root{'s' * (len(missing) > 1)} {ranges(missing)}"
            return [f"{roots} of {count:,} (each of {size:,} records) not complete"]
        if records is not None and self.records != records:
            return [f"its roots have {self.records:,} records, and the input {records:,}"]
        return []

    def _known_records(self) -> int | None:
        """The number of records in the input; None if neither the end nor the beginning of the log has it exactly."""
        if self.total is not None:
            return self.total
        read = self.run.input
        exact = read.get("kind") == "parquet" or read.get("size", _COUNTED_BYTES + 1) <= _COUNTED_BYTES
        return self.expected if exact else None

    @property
    def answered(self) -> Usage:
        """Usage of all answers that were not discarded, those of rows that were computed anew included."""
        return sum((counts.usage for counts in self.nodes.values()), self.taken_back)

    def metadata(self) -> dict[str, Any]:
        """metadata.json."""
        run = self.run
        order = [CHAIN_INPUT, *(node.id for node in self.graph.steps)]
        order += [node for node in self.nodes if node not in order]
        usage = sum((counts.usage for counts in self.nodes.values()), Usage())
        discarded = sum((counts.discarded for counts in self.nodes.values()), Usage())
        probes = sum((counts.probes for counts in self.nodes.values()), Usage())
        reused = sum(counts.reused for counts in self.nodes.values())
        shared = sum(counts.shared for counts in self.nodes.values())
        imbalances = self.imbalances()
        return {
            "run_id": run.run_id,
            "chain": run.chain,
            "status": self.status,
            "reason": self.reason if self.status is Status.PAUSED else "",
            "created_at": run.at,
            "started_at": self.started_at,
            "ended_at": self.ended_at,
            "epoch": self.epoch,
            "seed": run.settings.get("seed", 0),
            "settings": run.settings | {"limit": self.limit} | ({"accept": self.accepted.wanted} if self.accepted else {}),
            "chain_ref": run.chain_ref,
            "parameters": self.parameters,
            "fingerprint": self.graph.fingerprint,
            "git": run.git,
            "versions": run.versions,
            "input": self.input | {"digest": self.input_digest},
            "records": self.records - self.node(CHAIN_INPUT).surplus.taken,
            "rows_finished": self.finished_rows,
            **({"rows_reused": reused} if reused else {}),
            **({"rows_shared": shared} if shared else {}),
            **({"accept": self._acceptance()} if self.accepted else {}),
            "rows_rejected": sum(counts.rejected for counts in self.nodes.values()),
            "balanced": not imbalances,
            **({"imbalances": imbalances} if imbalances else {}),
            "simulated": any(engine.get("simulated") for engine in self.engines.values()),
            "usage": plain_usage(usage),
            **self._costs(),
            **({"discarded": plain_usage(discarded)} if discarded.requests else {}),
            **({"probes": plain_usage(probes)} if probes.requests else {}),
            **({"taken_back": plain_usage(self.taken_back)} if self.taken_back.requests else {}),
            "units_retried": self.retries,
            "engines": self.engines,
            "workers": sorted(self.workers),
            "steps": {node: self.node(node).plain() | self._cost_of(node) for node in order},
        }

    def _costs(self) -> dict[str, Any]:
        """The cost of the run, if any engine has a rate."""
        rates = self.bill.rates
        costs = {"cost": plain_cost(self.bill.cost()), "rates": msgspec.to_builtins(rates)} if rates else {}
        of_run = [text for text in self.budget if "=" not in text]
        of_engines = [f"{name}={text}" for name, limits in self.engine_budgets.items() for text in limit_words(limits)]
        return costs | ({"budget": of_run + of_engines} if of_run or of_engines else {})

    def _cost_of(self, step: str) -> dict[str, Any]:
        """The cost of a step, if one of its engines has a rate."""
        engines = {engine for name, engine, _ in self.bill.lines() if name == step}
        return {"cost": plain_cost(self.bill.cost([step]))} if engines & self.bill.rates.keys() else {}

    def _acceptance(self) -> dict[str, Any]:
        """The number of rows that are wanted, of those that are accepted, and the id of the last one once that is certain."""
        assert self.accepted is not None
        return {"wanted": self.accepted.wanted, "certain": self.accepted.certain, "last": self.accepted.last or None}

    def rows_of(self, step: str, *, surplus: bool = False) -> int:
        """The number of rows a step, `rejected` or `flattened` has; unless `surplus` is set, without those behind the last
        accepted one."""
        if surplus or self.boundary is None or step == "flattened":
            folder = self.graph.row_folders[step]
            return sum(rows for _, rows in self.ends.get(folder, {}).values())
        if step == "rejected":
            return sum(counts.rejected for counts in self.nodes.values())
        return self.node(step).given
