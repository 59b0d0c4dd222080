"""The events of the log: one frozen record for each type, tagged by `type`.

Events are facts about a run, in the order in which they became durable. `RunState` folds them, which gives
graph.json and metadata.json; hooks see them live; `--json-logs` prints them.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, TypedDict

import msgspec
from msgspec import UNSET, UnsetType

from chainette.engine.base import Engine
from chainette.engine.budget import Amounts, BudgetLimits
from chainette.engine.config import EngineConfig
from chainette.engine.price import Rate
from chainette.io.rundir.graph import Graph, require_file
from chainette.records import Earlier, Usage

__all__ = [
    "AnswersDiscarded",
    "AnyEvent",
    "Beyond",
    "BudgetUsed",
    "EngineAdapted",
    "EngineLoaded",
    "EngineProbed",
    "EngineReleased",
    "Event",
    "InputRead",
    "LastAccepted",
    "Note",
    "RootDone",
    "RowsTakenBack",
    "RunCancelledEvent",
    "RunCreated",
    "RunFinished",
    "RunPaused",
    "RunResumed",
    "RunStarted",
    "ShardSealed",
    "UnitCommitted",
    "UnitRetried",
    "UnitSplit",
    "WorkerJoined",
    "WorkerLeft",
    "WorkerLost",
    "WorkerRefused",
    "timestamp",
]


def timestamp() -> str:
    """The current time in UTC, with microseconds: `2026-11-23T13:46:20.123456Z`."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


class Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", omit_defaults=True):
    """The common fields of events; the log sets seq, at and epoch when it appends an event."""

    #: The position in the log, from 0, without gaps.
    seq: int = -1
    at: str = ""
    #: Increases each time a run is resumed, and with each phase of a run in a fleet.
    epoch: int = 0


class RunCreated(Event, frozen=True, tag="run_created"):
    """The first line: the settings that all later sessions of this directory must share."""

    run_id: str
    chain: str
    #: The reference with which the chain is loaded again: "chain.py:name" below `chain_root`; "" for a chain built in
    #: Python.
    chain_ref: str
    chain_root: str
    #: The content of graph.json.
    graph: Graph
    #: Settings that the log fixes: seed, limit, batch_size, format, max_rows_per_file, flattened, key, ...
    settings: dict[str, Any]
    #: path (relative to the chain root or the run directory, according to `below`), kind, size, mtime_ns, sample digest,
    #: and sizes and times of its files.
    input: dict[str, Any]
    #: python, chainette, pydantic, ...; git commit of the chain root; platform.
    versions: dict[str, str]
    git: str | None = None
    #: The chain root relative to the run directory, for a project that was moved.
    way_to_chain: str = ""
    #: The command-line flags about the processes of the run: {"workers": "2"}, {"redis": URL without password}; {} if the
    #: run was in one process.
    way: dict[str, str] = {}
    #: A keyed digest of this line by which the user who began the run recognizes it (`origin.py`); "" without a key.
    seal: str = ""


class Charged(TypedDict):
    """The fields of a session's first event that set the charges for its answers."""

    rates: dict[str, Rate]
    budget: list[str]
    engine_budgets: dict[str, BudgetLimits]


class RunStarted(Event, frozen=True, tag="run_started"):
    """Work began in a new directory."""

    #: The expected number of records, after --limit; None if unknown.
    expected: int | None = None
    #: The start of this epoch's results in a fleet: (stream id, token).
    anchor: tuple[str, str] | None = None
    #: Engine -> the rate of its usage from here on.
    rates: dict[str, Rate] = {}
    #: The limits of the run, in the form of `--budget`; and engine -> its limits, in the order of `Amounts`.
    budget: list[str] = []
    engine_budgets: dict[str, BudgetLimits] = {}


class RunResumed(Event, frozen=True, tag="run_resumed"):
    """Work continued in a new epoch."""

    fingerprint: str
    expected: int | None = None
    #: Set if the chain changed on purpose (`--from`).
    graph: Graph | None = None
    anchor: tuple[str, str] | None = None
    #: The number of completed phases, if a run in a fleet uses phases, one engine after the other.
    phase: int = 0
    #: The URL of its Redis, without the password; "" if no Redis outlives the session.
    redis: str = ""
    #: The identity of the input, if it was moved or has other times.
    input: dict[str, Any] | None = None
    #: The limit of records, if it was raised.
    limit: int | None = None
    #: The number of records before appended input files, whose first record begins a new root.
    records: int | None = None
    #: The number of rows to accept, if it was raised.
    accept: int | None = None
    #: The number of the last order that a sink has carried out; it carries out no older order, and none twice.
    order: int = 0
    #: Engine -> the rate of its usage from here on, if it changed.
    rates: dict[str, Rate] = {}
    #: The limits of the run from here on, in the form of `--budget`; and engine -> its limits.
    budget: list[str] = []
    engine_budgets: dict[str, BudgetLimits] = {}


class InputRead(Event, frozen=True, tag="input_read"):
    """The position in the input when the units after this line were read."""

    #: Bytes of all files, in reading order.
    upto: int
    #: The sha256 of these bytes.
    digest: str


class Beyond(msgspec.Struct, frozen=True, omit_defaults=True):
    """The rows of one node after the last accepted row, within its root."""

    taken: int = 0
    given: int = 0
    rejected: int = 0
    dropped: int = 0
    #: Rows that stopped at a join.
    stopped: int = 0
    reasons: dict[str, int] = {}
    ways: dict[str, int] = {}


class LastAccepted(msgspec.Struct, frozen=True):
    """The boundary of a run with `accept`: all rows after this one are surplus."""

    row_id: str
    #: The finished rows of its root up to this one; with those of earlier roots, they add up to the wanted number.
    rows: int
    #: Node or fork -> its rows after this row, in the same root.
    beyond: dict[str, Beyond] = {}


class RootDone(msgspec.Struct, frozen=True):
    """The counts of a complete root."""

    #: Records of the input in this root, including bad ones.
    records: int
    #: Records that do not fit the input model.
    bad: int
    #: Rows that reached the end of the main flow.
    finished: int
    #: Fork -> rows in, rows stopped at its join.
    forks: dict[str, tuple[int, int]] = {}
    #: Set if the last accepted row is in this root.
    last: LastAccepted | UnsetType = UNSET

    @property
    def accepted(self) -> int:
        """Its finished rows, without those after the last accepted one."""
        return self.finished if self.last is UNSET else self.last.rows


class UnitCommitted(Event, frozen=True, tag="unit_committed"):
    """The rows of a unit are in the shards. Logged after they are fsynced."""

    node: str
    root: int
    #: The engine that was asked, if the step escalates; otherwise "".
    engine: str = ""
    #: The unit's part; for people, `RunState` does not need it.
    unit: str = ""
    #: File (`<folder>/<n>`) -> the span of the rows in the journal: start byte, start row, end byte, end row.
    off: dict[str, tuple[int, int, int, int]] = {}
    #: File -> CRC-32 of the journal up to the end of that span; {} in logs of older versions.
    sums: dict[str, int] = {}
    #: Rows that went in, that came out, that were rejected, and that expansion added.
    taken: int = 0
    given: int = 0
    rejected: int = 0
    added: int = 0
    #: Incoming rows that were taken from an earlier run.
    reused: int = 0
    #: Incoming rows that took the answer of another row with the same request.
    shared: int = 0
    #: The keys of the rows that came out (`core/answer_key.py`), 16 bytes each, in the order of the shard; b"" if they have
    #: none, as in logs of older versions.
    keys: bytes = b""
    #: Rows that wait for the next engine of the step; they count as taken once that engine has answered.
    escalated: int = 0
    #: Ids of rows that an Apply dropped.
    dropped: list[str] = []
    #: Ids of rows that passed a choice among candidates unchanged, with all candidates kept.
    passed: list[str] = []
    #: Given candidates without a valid answer.
    invalid: int = 0
    #: Rejections by reason.
    reasons: dict[str, int] = {}
    #: Way -> rows that take it, for a node that decides.
    ways: dict[str, int] = {}
    #: Row id -> its attempts so far, for rows that wait for the next engine, and for rejections that `--retry` took back.
    earlier: dict[str, Earlier] = {}
    usage: Usage = Usage()
    root_done: RootDone | None = None
    #: The position (id, token) in the stream of a fleet.
    pos: tuple[str, str] | None = None

    def __post_init__(self) -> None:
        for file in self.off:
            require_file(file)


class UnitRetried(Event, frozen=True, tag="unit_retried"):
    """A unit is retried because its engine did not answer."""

    node: str
    root: int
    unit: str
    message: str
    #: Seconds until the next try.
    delay: float
    #: Whether only requests of some rows failed, so that the engine may answer other rows.
    alone: bool = False
    #: Whether the engine refuses the step as it is declared, so that no worker can process it.
    refused: bool = False
    #: The engine, if it is one of several of the step.
    engine: str = ""


class EngineAdapted(Event, frozen=True, tag="engine_adapted"):
    """Requests to an engine differ from its declaration: its server refuses a parameter that does not affect the meaning."""

    engine: str
    #: Name of the change -> its description.
    changes: dict[str, str]


class EngineProbed(Event, frozen=True, tag="engine_probed"):
    """An engine was asked fixed questions in the form of a step's requests, to find out whether the rows or the engine are
    at fault."""

    node: str
    usage: Usage
    #: The engine, if it is one of several of the step.
    engine: str = ""


class AnswersDiscarded(Event, frozen=True, tag="answers_discarded"):
    """Answers of a step led to no row, because their unit was stopped or taken over. The count is a lower bound: a killed
    process reports none."""

    node: str
    #: Requests that were cancelled count as requests without tokens.
    usage: Usage
    #: The engine, if it is one of several of the step.
    engine: str = ""


class RowsTakenBack(Event, frozen=True, tag="rows_taken_back"):
    """Rows of a step were taken back, to be recomputed; the cost of their answers stays on the bill."""

    node: str
    engine: str
    usage: Usage


class UnitSplit(Event, frozen=True, tag="unit_split"):
    """A unit that killed workers was cut in two."""

    node: str
    root: int
    unit: str


class EngineLoaded(Event, frozen=True, tag="engine_loaded"):
    """An engine became ready."""

    engine: str
    backend: str
    model: str
    #: Seconds from opening to readiness.
    seconds: float
    deterministic: bool = False
    details: dict[str, Any] = {}
    #: The origin of the model (`Engine.identity`).
    identity: dict[str, str] = {}

    @classmethod
    def of(cls, config: EngineConfig, engine: Engine, seconds: float) -> EngineLoaded:
        """The event for an engine that has just become ready."""
        return cls(
            engine=config.name,
            backend=config.backend,
            model=config.model,
            seconds=round(seconds, 3),
            deterministic=engine.deterministic,
            details=engine.describe(),
            identity=dict(engine.identity),
        )


class EngineReleased(Event, frozen=True, tag="engine_released"):
    """An engine released its memory."""

    engine: str


class WorkerJoined(Event, frozen=True, tag="worker_joined"):
    """A process began to claim units."""

    worker: str


class WorkerRefused(Event, frozen=True, tag="worker_refused"):
    """A process may not serve the run, because its copy of the chain differs."""

    worker: str
    reason: str


class WorkerLeft(Event, frozen=True, tag="worker_left"):
    """A process exited cleanly."""

    worker: str


class WorkerLost(Event, frozen=True, tag="worker_lost"):
    """A process stopped renewing its lease."""

    worker: str


class ShardSealed(Event, frozen=True, tag="shard_sealed"):
    """A shard is complete and in its final format."""

    #: `<folder>/<n>`
    file: str
    rows: int
    bytes: int
    #: CRC-32 of the shard; None in logs of older versions.
    sum: int | None = None

    def __post_init__(self) -> None:
        require_file(self.file)


class BudgetUsed(Event, frozen=True, tag="budget_used"):
    """The part of a run's budget that is spent or reserved. A process that is killed after this line may have sent the
    reserved requests, so they count as spent."""

    used: Amounts
    #: Engine with a budget -> the part of it that the run has spent or reserved.
    engines: dict[str, Amounts] = {}


class RunPaused(Event, frozen=True, tag="run_paused"):
    """Work stopped before the end; `chainette resume` continues it."""

    reason: str
    #: Flags without which the run would stop again at once (a larger budget).
    flags: list[str] = []


class RunCancelledEvent(Event, frozen=True, tag="run_cancelled"):
    """Work stopped for good."""


class RunFinished(Event, frozen=True, tag="run_finished"):
    """Every root is complete and every shard sealed."""

    #: The sha256 of the whole input.
    input_digest: str = ""
    #: The records of the whole input; None in logs of older versions.
    records: int | None = None


#: The events that workers send to the sink of a run. No row, shard, or end of a run depends on them.
Note = (
    UnitRetried
    | AnswersDiscarded
    | EngineAdapted
    | EngineProbed
    | UnitSplit
    | EngineLoaded
    | EngineReleased
    | WorkerJoined
    | WorkerLeft
    | WorkerLost
    | WorkerRefused
)

AnyEvent = (
    RunCreated
    | RunStarted
    | RunResumed
    | InputRead
    | UnitCommitted
    | Note
    | ShardSealed
    | RowsTakenBack
    | BudgetUsed
    | RunPaused
    | RunCancelledEvent
    | RunFinished
)
