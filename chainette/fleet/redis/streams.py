"""Entries of a run's streams as Redis gives them: results, and notes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chainette.fleet.protocol.messages import Admission, BadMessage, Result, open_message
from chainette.fleet.protocol.states import Entry
from chainette.io.rundir.events import AnyEvent, WorkerRefused
from chainette.io.rundir.log import parse_line

__all__ = ["entry_id", "lies_apart", "noted_event", "stream_entry"]


def noted_event(fields: Mapping[bytes, bytes]) -> AnyEvent | None:
    match fields.get(b"kind"):
        case b"event":
            return parse_line(fields.get(b"text", b"").rstrip(b"\n"))
        case b"buried":
            text = fields.get(b"text", b"").decode("utf-8", "replace")
            return WorkerRefused(worker=text.partition(" ")[0], reason=text)
        case _:
            return None


def entry_id(item: Any) -> str:
    return str(item[0].decode())


def lies_apart(item: Any) -> str | None:
    """The token of an entry whose body is not in the stream, since it is large."""
    return str(item[1].get(b"t", b"").decode()) if b"b" in item[1] else None


def stream_entry(item: Any, body: Any) -> Entry:
    """An entry of a run's stream behind its anchor, with the body that it has.

    Raises:
        BadMessage: it is none of ours.
    """
    fields = item[1]
    try:
        kind, token, root = fields[b"k"], fields[b"t"].decode(), int(fields[b"r"])
    except (KeyError, ValueError) as error:
        raise BadMessage(f"entry {entry_id(item)} of a run's stream in Redis is none of ours: {str(fields)[:80]}") from error
    message: Result | Admission = Admission([])
    if kind == b"unit":
        message = open_message(body, Result)
    elif body:
        message = open_message(body, Admission)
    stage = fields.get(b"d")
    return Entry(entry_id(item), token, message, root, done=stage == b"1", suspended=stage == b"2")
