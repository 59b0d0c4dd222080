"""The progress of a run's admission, as its record in Redis has it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from chainette.engine.budget import Amounts
from chainette.fleet.protocol.keys import RunKeys
from chainette.fleet.protocol.messages import Missing
from chainette.fleet.protocol.queue_values import AdmissionProgress

if TYPE_CHECKING:
    import redis

__all__ = ["count", "progress_of"]

#: Fields of a run's record from which its progress is known.
_OF_PROGRESS = (
    "cursor",
    "total",
    "state",
    "last",
    "damaged",
    "suspended",
    "epoch",
    "used",
    "exhausted",
    "exhausted_by",
    "needed",
)


def progress_of(connection: redis.Redis, keys: RunKeys, engines: Sequence[str]) -> AdmissionProgress:
    """The progress, with the amounts that the run has spent of these engines' budgets.

    Raises:
        Missing: the record does not decode.
    """
    with connection.pipeline(transaction=False) as pipe:
        pipe.hmget(keys.state, (*_OF_PROGRESS, *(f"used:{engine}" for engine in engines)))
        pipe.hkeys(keys.live)
        found, live = pipe.execute()
    try:
        return _decoded(keys, [(value or b"").decode("utf-8", "replace") for value in found], live, engines)
    except ValueError as error:
        raise Missing(f"the record of run {keys.run} in Redis does not decode: {error}") from error


def _decoded(keys: RunKeys, found: Sequence[str], live: Sequence[bytes], engines: Sequence[str]) -> AdmissionProgress:
    cursor, total, state, last, damaged, suspended, epoch, used, exhausted, exhausted_by, needed, *own = found
    by, _, of_all = exhausted_by.partition(" ")
    return AdmissionProgress(
        count(cursor or "0"),
        count(total) if total else None,
        state,
        {count(root.decode()) for root in live},
        count(last) if last else -1,
        damaged,
        count(suspended or "0"),
        Amounts.read(used or Amounts().words),
        bool(exhausted),
        {engine: Amounts.read(words) for engine, words in zip(engines, own, strict=True) if words},
        by,
        Amounts.read(of_all) if of_all else Amounts(),
        is_current=epoch in ("", str(keys.epoch)),
        needed=Amounts.read(needed or Amounts().words),
    )


def count(text: str) -> int:
    """A count, as Lua has it.

    Raises:
        ValueError: it is not a count.
    """
    if not (text.isascii() and text.isdigit() and len(text) < 16):
        raise ValueError(f"{text[:40]!r} is not a count")
    return int(text)
