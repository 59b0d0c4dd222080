"""Messages between a worker and the processes that run its functions: msgpack after four bytes of length."""

from __future__ import annotations

from typing import Any

import msgspec

from chainette.records import Output, Rejection, Unit
from chainette_workers.worker.enqueued_chains import Reference

__all__ = [
    "HEAD",
    "Began",
    "Call",
    "Differs",
    "Failed",
    "PartialAnswer",
    "Reply",
    "UnitAnswer",
    "frame",
    "length_of",
    "open_call",
    "open_reply",
]

#: Bytes of a frame's length.
HEAD = 4


class Call(msgspec.Struct, frozen=True, array_like=True):
    """A unit of a function, with the chain that declares it."""

    chain: Reference
    unit: Unit


class Began(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """The chain is loaded; from here on, the unit's rows are to blame for an end of the process."""


class UnitAnswer(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """The outcome of the rows that no part was about."""

    outputs: list[Output]
    rejected: list[Rejection]
    dropped: list[str]


class PartialAnswer(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """The outcome of rows that have finished while others go on."""

    answer: UnitAnswer


class Differs(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """The chain's files are no longer those that the worker read."""

    words: str


class Failed(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """The unit cannot be run, by anybody."""

    words: str


Reply = UnitAnswer | Differs | Failed

_encode = msgspec.msgpack.Encoder().encode
_call = msgspec.msgpack.Decoder(Call)
_reply: msgspec.msgpack.Decoder[Began | PartialAnswer | Reply] = msgspec.msgpack.Decoder(Began | PartialAnswer | Reply)


def frame(message: Any) -> bytes:
    """A message as it goes through a pipe."""
    body = _encode(message)
    return len(body).to_bytes(HEAD, "big") + body


def length_of(head: bytes) -> int:
    """Bytes that follow."""
    return int.from_bytes(head, "big")


def open_call(body: bytes) -> Call:
    return _call.decode(body)


def open_reply(body: bytes) -> Began | PartialAnswer | Reply:
    """Raises:
    msgspec.MsgspecError: it is none.
    """
    return _reply.decode(body)
