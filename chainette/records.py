"""Rows, units of rows, and their outcomes.

All records are frozen and encode to msgpack with `encode`/`decode`. The value of a node for one
row is kept as the JSON of `model_dump_json(by_alias=True, round_trip=True)`, so that a row
reads the same in memory, on the wire and on disk.
"""

from __future__ import annotations

from collections.abc import Container
from enum import StrEnum
from typing import Any, Protocol, TypeVar, overload

import msgspec

__all__ = [
    "CHAIN_INPUT",
    "PYTHON",
    "Earlier",
    "Effects",
    "Message",
    "Outcome",
    "Output",
    "Partial",
    "Read",
    "Reason",
    "Rejection",
    "Row",
    "Scope",
    "Source",
    "Spent",
    "Unfinished",
    "Unit",
    "Usage",
    "child_id",
    "declared_of",
    "decode",
    "encode",
    "owner_of",
    "parent_of",
    "record_of",
    "row_order",
    "station_of",
    "step_of",
]

#: The id under which a row keeps the record it came from.
CHAIN_INPUT = "chain_input"

#: Separates a row's id from the number of its child. With "." the ids "0.1" and "0.10" would be the same
#: number to pandas, polars, duckdb and datasets.
_CHILD = "~"

#: The engine name of functions and joins, which no engine answers.
PYTHON = "python"

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Source(Protocol[T_co]):
    """A node whose value a row can hold."""

    @property
    def key(self) -> str:
        """The name under which a row keeps the value."""

    def decode(self, value: bytes) -> T_co:
        """The value of this node from its JSON."""


class Spent(msgspec.Struct, frozen=True, array_like=True):
    """The cost of all answers for one row; seconds as in `Usage`."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    queued: float = 0.0
    seconds: float = 0.0

    def __add__(self, other: Spent) -> Spent:
        return Spent(
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.queued + other.queued,
            self.seconds + other.seconds,
        )


class Earlier(msgspec.Struct, frozen=True, array_like=True):
    """The asks for a row before `--retry` reopened it, or before it went on to another engine of its step; the next ask
    continues their numbering."""

    asks: int
    spent: Spent = Spent()
    #: The engine that is asked next: its number among those of the step, from 0.
    engine: int = 0


class Read(msgspec.Struct, frozen=True, array_like=True):
    """A position in an input, and the digest of everything before it."""

    #: Bytes, over all files in reading order.
    upto: int
    #: sha256 of them.
    digest: str


#: Characters of each value in the text of a row.
_SHOWN = 200


class Row(msgspec.Struct, frozen=True, array_like=True):
    """One item with its history."""

    #: "17"; after an expanding Apply "17~0", "17~1", ...
    row_id: str
    #: JSON per name: `chain_input`, node ids, joined aliases, `<id>_reasoning`.
    values: dict[str, bytes]
    #: 1-based line (JSONL, CSV) or record number of the input; 0 if there is none.
    line: int = 0
    #: JSON of the column named by `--key`, carried into every shard as `_key`.
    key: bytes | None = None
    #: Set only while the row waits at the node that rejected it before, or at a later engine of a step.
    earlier: Earlier | None = None

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={value.decode()[:_SHOWN]}" for name, value in self.values.items())
        return f"Row({self.row_id!r}, {shown})"

    @overload
    def __getitem__(self, node: Source[T]) -> T: ...
    @overload
    def __getitem__(self, node: str) -> Any: ...
    def __getitem__(self, node: Source[Any] | str) -> Any:
        """`row[extract]` is a validated model; `row["extract"]` the plain JSON value.

        Raises:
            KeyError: the row holds no value of that node.
        """
        if isinstance(node, str):
            return msgspec.json.decode(self.values[node])
        return node.decode(self.values[node.key])

    @property
    def asks(self) -> int:
        """Number of asks for it before `--retry` reopened it."""
        return 0 if self.earlier is None else self.earlier.asks

    @property
    def engine(self) -> int:
        """The number, among those of its step, of the engine that is asked for it."""
        return 0 if self.earlier is None else self.earlier.engine

    def with_values(self, row_id: str, values: dict[str, bytes]) -> Row:
        """The row one node later."""
        return Row(row_id, {**self.values, **values}, self.line, self.key)


def child_id(row_id: str, index: int) -> str:
    """The id of a row that was made from another one."""
    return f"{row_id}{_CHILD}{index}"


def parent_of(row_id: str) -> str:
    """The id of the row this one was made from; "" for a record of the input."""
    return row_id.rpartition(_CHILD)[0]


def station_of(step: str, engine: int) -> str:
    """The name of the queue of a step's engine: `grade`, and `grade@2` for the second engine of an escalating step."""
    return f"{step}@{engine + 1}" if engine else step


def step_of(station: str) -> str:
    """The id of the node (or fork) whose units wait at a station."""
    return station.partition("@")[0]


def record_of(row_id: str) -> str:
    """The id of the record of the input the row descends from."""
    return row_id.partition(_CHILD)[0]


def declared_of(node: str) -> str:
    """The id of a node as the chain declares it: `draft` for `draft#3`, which is its third round in a loop."""
    return node.partition("#")[0]


def row_order(row_id: str) -> tuple[int, ...]:
    """The sort key of row ids: by number along the path, so "2" < "10" and "10" < "10~0"."""
    return tuple(map(int, row_id.split(_CHILD)))


def owner_of(row_id: str, ids: Container[str]) -> str | None:
    """The id in `ids` the row has or descends from; None if there is none."""
    candidate = row_id
    while candidate and candidate not in ids:
        candidate = parent_of(candidate)
    return candidate or None


class Reason(StrEnum):
    """Why a row was rejected."""

    #: the line of the input does not fit the chain's input model
    INVALID_INPUT = "invalid_input"
    #: the prompt could not be rendered for this row
    TEMPLATE_ERROR = "template_error"
    #: the prompt does not fit the model's context
    PROMPT_TOO_LONG = "prompt_too_long"
    #: the last answer was cut by max_tokens
    TRUNCATED = "truncated"
    #: the last answer is not JSON
    NOT_JSON = "not_json"
    #: the last answer does not pass the output model
    INVALID_OUTPUT = "invalid_output"
    #: the model or its provider declined to answer
    REFUSED = "refused"
    #: the engine answered this request, and only this one, with an error
    ENGINE_ERROR = "engine_error"
    #: the Python function raised, or returned another type than it declared
    APPLY_ERROR = "apply_error"
    #: the value by which a route chooses is none of its cases
    NO_CASE = "no_case"
    #: no round of a loop satisfied its condition
    EXHAUSTED = "exhausted"
    #: fewer of the row's candidates are valid than its step needs
    TOO_FEW = "too_few"
    #: the outcome of the row is larger than a unit can carry
    TOO_LARGE = "too_large"
    #: the row killed the workers that took it
    POISON = "poison"


class Usage(msgspec.Struct, frozen=True):
    """The cost of a unit's requests."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    #: Seconds that requests spent inside the engine, summed over requests.
    seconds: float = 0.0
    #: Of these, seconds before the engine began on them; 0 if unknown.
    queued: float = 0.0
    #: Of the prompts' tokens, those that the server had in its cache.
    cached_tokens: int = 0
    #: Seconds of the engine: each second in which it has requests is divided evenly among them.
    busy: float = 0.0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.requests + other.requests,
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.seconds + other.seconds,
            self.queued + other.queued,
            self.cached_tokens + other.cached_tokens,
            self.busy + other.busy,
        )

    def busy_for(self, seconds: float) -> Usage:
        """With so many seconds of the engine more."""
        return Usage(
            self.requests,
            self.prompt_tokens,
            self.completion_tokens,
            self.seconds,
            self.queued,
            self.cached_tokens,
            self.busy + seconds,
        )

    @property
    def spent(self) -> Spent:
        """The part of it that rows keep."""
        return Spent(self.prompt_tokens, self.completion_tokens, self.queued, self.seconds)


class Unfinished(msgspec.Struct, frozen=True, array_like=True):
    """The work already spent on a row that has not finished. It travels with the row when its unit is handed back."""

    #: Asks that were answered, unusably, since the row was opened.
    asks: int = 0
    #: Failures of the next ask, as far as they count.
    failures: int = 0
    usage: Usage = Usage()
    #: (bad answer, complaint) of these asks, which the next one repeats.
    corrections: tuple[tuple[str, str], ...] = ()
    #: All failures of the next ask, and the endpoint of the last one.
    tries: int = 0
    by: str = ""


class Rejection(msgspec.Struct, frozen=True):
    """One line of `rejected/`. A row appears there once, at the node that rejected it."""

    row_id: str
    step_id: str
    reason: str
    message: str
    #: Answers asked for before giving up, those before a `--retry` included; 0 if no engine was involved.
    attempts: int
    #: The last answer, or the bad input line; cut at 64 KiB.
    raw: str | None
    line: int
    key: bytes | None = None
    #: The cost of those answers.
    spent: Spent = Spent()
    #: The engine that gave the last of them; "" unless the step escalates.
    engine: str = ""


class Message(msgspec.Struct, frozen=True):
    """One chat message."""

    #: "system", "user" or "assistant"
    role: str
    content: str


class Output(msgspec.Struct, frozen=True, array_like=True):
    """One output row of a node, as written to the node's shard."""

    row_id: str
    value: bytes
    #: Answers asked for, the good one and those before a `--retry` included; 0 for Apply.
    attempts: int = 0
    reasoning: str | None = None
    #: The cost of those answers.
    spent: Spent = Spent()
    #: The digest of everything that decides the row (`core/answer_key.py`); b"" if it was decided anew by a route or loop.
    key: bytes = b""
    #: `<run id>/<row id>` of the row of an earlier run it was taken from; "" if it was computed.
    reused_from: str = ""


class Partial(msgspec.Struct, frozen=True, array_like=True):
    """Rows that reached the end of a joined branch and wait for its siblings."""

    scope: str
    branch: str
    rows: list[Row]


class Scope(msgspec.Struct, frozen=True, array_like=True):
    """An executed fork with joins: outstanding until every unit below it is gone (docs/protocol.md, 2)."""

    scope: str
    fork: str
    #: The scope the fork itself is a member of; "" is the root.
    parent: str
    #: The part of the unit that opened it; its join unit is `part + "j"`.
    part: str
    #: The rows before the branches.
    base: list[Row]


class Unit(msgspec.Struct, frozen=True, array_like=True):
    """Rows that travel together through one node; one queue job carries one unit.

    (node, root, part) identifies a unit within an epoch. A join unit carries the base rows, the
    branches' partials and the ids a branch rejected.
    """

    node: str
    root: int
    #: A path: "/" chunk, "j" join, "<" and ">" split, "^" and the queue from which rows went on to the next engine,
    #: "r." re-admission.
    part: str
    scope: str
    rows: list[Row]
    partials: dict[str, list[Row]] = {}
    stopped: list[str] = []


class Effects(msgspec.Struct, array_like=True):
    """The work an admission or a commit adds to a root."""

    units: list[Unit] = []
    scopes: list[Scope] = []
    partials: list[Partial] = []
    #: (scope, ids of rows that leave the main flow at its join).
    stopped: list[tuple[str, list[str]]] = []


class Outcome(msgspec.Struct, frozen=True, array_like=True):
    """The result of a unit. Every row that went in is an output, a rejection or a drop, or goes on to another engine."""

    outputs: list[Output]
    rejected: list[Rejection]
    dropped: list[str]
    usage: Usage
    effects: Effects
    #: Row id -> its asks, for rows the next engine of the step is asked for.
    escalated: dict[str, Earlier] = {}
    #: Rows, among its outputs and rejections, that took the answer of another row with the same request.
    shared: int = 0


_encoder = msgspec.msgpack.Encoder()


def encode(record: msgspec.Struct) -> bytes:
    """The record as msgpack."""
    return _encoder.encode(record)


def decode(data: bytes, kind: type[T]) -> T:
    """The record from msgpack.

    Raises:
        msgspec.ValidationError: the bytes are not a `kind`.
    """
    return msgspec.msgpack.decode(data, type=kind)
