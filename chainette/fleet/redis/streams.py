"""Entries of a run's streams as Redis gives them: results, and notes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from chainette.fleet.protocol.messages import Admission, Aside, BadMessage, PutAside, Result, open_message
from chainette.fleet.protocol.queue_values import Entry
from chainette.fleet.protocol.seals import Unsealed
from chainette.io.rundir.events import Note, WorkerRefused
from chainette.io.rundir.log import parse_note

__all__ = ["entry_id", "lies_apart", "noted_event", "stream_entry"]


#: The most characters of an entry's token.
_LONGEST_TOKEN = 100

#: The most bytes of a note; an engine's description takes a few thousand.
_LONGEST_NOTE = 1 << 16


#: Opens the body of an entry with this identity, or raises Unsealed.
Open = Callable[[str, bytes | None], bytes | None]


def _as_it_is(_identity: str, body: bytes | None) -> bytes | None:
    return body


def noted_event(fields: Mapping[bytes, bytes], opened: Open = _as_it_is) -> Note | None:
    """The event of a note; None if it is no note of ours."""
    text = fields.get(b"text", b"")[: _LONGEST_NOTE + 1]
    match fields.get(b"kind"):
        case b"event" if len(text) <= _LONGEST_NOTE:
            try:
                return parse_note((opened("", text) or b"").rstrip(b"\n"))
            except Unsealed:
                return None
        case b"buried":
            words = text[:4000].decode("utf-8", "replace")
            return WorkerRefused(worker=words.partition(" ")[0], reason=words)
        case _:
            return None


def entry_id(item: Any) -> str:
    return str(item[0].decode())


def lies_apart(item: Any) -> str | None:
    """The token of an entry whose body is not in the stream, since it is large."""
    return str(item[1].get(b"t", b"")[:_LONGEST_TOKEN].decode("utf-8", "replace")) if b"b" in item[1] else None


def stream_entry(item: Any, body: Any, opened: Open = _as_it_is) -> Entry:
    """An entry of a run's stream behind its anchor, with the body that it has.

    Raises:
        PutAside: it is none of ours.
    """
    fields = item[1]
    message: Result | Admission = Admission([])
    try:
        kind, token, root = fields[b"k"], fields[b"t"].decode(), int(fields[b"r"][:16])
        if len(token) > _LONGEST_TOKEN:
            raise BadMessage(f"its token has {len(token):,} characters")
        body = opened(f"{root}\0{token}", body)
        if kind == b"unit":
            message = open_message(body, Result)
        elif body:
            message = open_message(body, Admission)
    except (KeyError, ValueError, BadMessage) as error:
        words = f"an entry of the stream is none of ours: {type(error).__name__}: {error}"[:400]
        raise PutAside([Aside(words, entry_id(item), str(fields)[:2000].encode())]) from error
    stage = fields.get(b"d")
    return Entry(entry_id(item), token, message, root, done=stage == b"1", suspended=stage == b"2")
