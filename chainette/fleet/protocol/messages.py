"""The messages between the fleet's processes through Redis: typed, msgpack, sizes checked before decoding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec

from chainette.errors import ChainetteError
from chainette.records import Earlier, Outcome, Output, Partial, Read, Rejection, Row, Unit, Usage

__all__ = [
    "MAX_BYTES",
    "MAX_COMMIT",
    "Admission",
    "Aside",
    "BadMessage",
    "Missing",
    "PutAside",
    "Result",
    "RootRecord",
    "TooLarge",
    "open_message",
]

#: The most bytes of one message that a process decodes.
MAX_BYTES = 256 << 20

#: The most bytes that one admission or commit puts into the queue: a result and its successors.
MAX_COMMIT = 128 << 20

T = TypeVar("T")


class BadMessage(ChainetteError):
    """Malformed bytes in Redis; none of them were used."""


class Missing(BadMessage):
    """Redis lacks something that must be there; its rows come back with a new epoch."""


class PutAside(BadMessage):
    """Invalid messages of a run; nothing of them was written.

    `strays` have no seal of the fleet's key, so they stand in place of nothing. Any other message may stand in place of a
    result, whose rows come back with a new epoch.
    """

    def __init__(self, asides: Sequence[Aside], *, strays: bool = False) -> None:
        super().__init__("; ".join(dict.fromkeys(aside.why for aside in asides)))
        self.asides = asides
        self.strays = strays


class Aside(msgspec.Struct, frozen=True):
    """A message that was put aside, as the list in Redis keeps it."""

    why: str
    #: Its id in the stream; "" if it was elsewhere.
    entry: str = ""
    #: Its beginning.
    body: bytes = b""


class TooLarge(ChainetteError):
    """One admission or commit has more bytes than the queue takes; it had no effect.

    Only an admission has `rows`, those of its root: it cannot go in parts.
    """

    def __init__(self, what: str, found: int, most: int, rows: int = 0) -> None:
        fitting = rows * most // found
        smaller = f"; or begin a new run with `--batch-size {1 << fitting.bit_length() - 1}`" if fitting else ""
        advice = f". `chainette resume DIR --local` continues without a queue{smaller}" if rows else ""
        super().__init__(f"{what}: {found:,} bytes with its successors; a queue takes {most:,} at once{advice}")


class RootRecord(msgspec.Struct, frozen=True, array_like=True):
    """A root as it was admitted; the sink reads it when the root's first result comes."""

    rows: list[Row]
    records: int
    #: The position the input was read to.
    read: Read | None = None


class Admission(msgspec.Struct, frozen=True, array_like=True):
    """The stream entry of an admission: the bad lines of the root."""

    rejected: list[Rejection]


class Result(msgspec.Struct, frozen=True, array_like=True):
    """The stream entry of a commit: the outcome without its successors, which are queued already."""

    node: str
    root: int
    part: str
    taken: int
    outputs: list[Output]
    rejected: list[Rejection]
    dropped: list[str]
    usage: Usage
    worker: str
    #: The change in the rows in flight of units that were committed in part.
    opened: int = 0
    #: Row id -> its asks, for rows the next engine of the step is asked for.
    escalated: dict[str, Earlier] = {}
    #: The digest of the values that joins gave to its rows (`core.join_digests`); b"" if there are none.
    given: bytes = b""
    #: Rows that took the answer of another row.
    shared: int = 0

    @classmethod
    def of(cls, unit: Unit, outcome: Outcome, worker: str, opened: int, given: bytes) -> Result:
        """The part of a unit's outcome the sink must write."""
        return cls(
            unit.node,
            unit.root,
            unit.part,
            len(unit.rows),
            outcome.outputs,
            outcome.rejected,
            outcome.dropped,
            outcome.usage,
            worker,
            opened,
            outcome.escalated,
            given,
            outcome.shared,
        )


def open_message(data: Any, kind: type[T]) -> T:
    """Decodes a message from bytes that anyone may have written.

    Raises:
        Missing: there is nothing.
        BadMessage: not bytes, too large, or not a `kind`.
    """
    if data is None:
        raise Missing(f"a {kind.__name__} is gone from Redis")
    if not isinstance(data, bytes) or len(data) > MAX_BYTES:
        found = f"{len(data):,} bytes" if isinstance(data, bytes) else type(data).__name__
        raise BadMessage(f"a {kind.__name__} in Redis is {found}; at most {MAX_BYTES:,} bytes are decoded")
    try:
        return msgspec.msgpack.decode(data, type=kind)
    except (ValueError, RecursionError) as error:  # msgspec's errors, text that is not UTF-8, and nesting
        raise BadMessage(f"a {kind.__name__} in Redis does not decode: {error}") from error


def open_join(node: str, root: int, part: str, scope: str, fields: dict[bytes, bytes]) -> Unit:
    """Decodes a join unit from a fork's hash: base rows, partials in order, stopped ids.

    Raises:
        BadMessage: a part is malformed.
    """
    partials: dict[str, list[Row]] = {}
    stopped: list[str] = []
    for name, blob in sorted(fields.items()):
        if name.startswith(b"p:"):
            partial = open_message(blob, Partial)
            partials.setdefault(partial.branch, []).extend(partial.rows)
        elif name.startswith(b"x:"):
            stopped += open_message(blob, list[str])
    return Unit(node, root, part, scope, open_message(fields.get(b"base"), list[Row]), partials, stopped)
