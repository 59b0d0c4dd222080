"""Events of a run whose answers stream token by token: `chain.stream(row)`, `chainette run --stream`.

Per row and step: `Asked`, its `Piece`s, then `Passed`, `Unusable` (asked again) or a `Rejection`. Functions and
joins have events too. Events of concurrent rows are interleaved; (step_id, row_id) tells them apart.
"""

from __future__ import annotations

import msgspec

from chainette.records import Message, Rejection, Row

__all__ = ["Asked", "Dropped", "Finished", "Joined", "Passed", "Piece", "StreamEvent", "Unusable"]


class Asked(msgspec.Struct, frozen=True):
    """A step's question about a row went to its engine.

    It is repeated, with the same number, if an answer broke off and starts again: earlier pieces are void.
    """

    step_id: str
    row_id: str
    #: Which ask of the row this is, from 1.
    ask: int
    messages: tuple[Message, ...]


class Piece(msgspec.Struct, frozen=True):
    """The part of an answer that arrived since the last piece; not validated yet."""

    step_id: str
    row_id: str
    ask: int
    text: str
    reasoning: str


class Unusable(msgspec.Struct, frozen=True):
    """An answer was of no use, and the row is asked again: by the same engine, or by the next one of the step."""

    step_id: str
    row_id: str
    ask: int
    #: As in a rejection.
    reason: str
    message: str


class Passed(msgspec.Struct, frozen=True):
    """A step's answer is validated, or a function gave a row: `row[node_id]` is it as plain JSON values."""

    node_id: str
    row: Row


class Dropped(msgspec.Struct, frozen=True):
    """A function gave no row for this one."""

    node_id: str
    row_id: str


class Joined(msgspec.Struct, frozen=True):
    """Joined branches are merged: `row[branch]` is the branch's value."""

    aliases: tuple[str, ...]
    row: Row


class Finished(msgspec.Struct, frozen=True):
    """The row reached the end of the chain, and its root is complete; in a directory, it is on the disk."""

    row: Row


#: A `Rejection` is the record that goes to `rejected/`.
StreamEvent = Asked | Piece | Unusable | Passed | Dropped | Joined | Rejection | Finished
