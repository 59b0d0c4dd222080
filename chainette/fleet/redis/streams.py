"""Entries of a run's streams as Redis gives them: results, and notes."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from typing import Any

from chainette.fleet.protocol.messages import Admission, Aside, BadMessage, PutAside, Result, open_message
from chainette.fleet.protocol.queue_values import Entry
from chainette.fleet.protocol.seals import Purpose, Seals, Unsealed
from chainette.io.rundir.event_log import parse_note
from chainette.io.rundir.event_types import Note, WorkerRefused

__all__ = ["SealedNotes", "entry_id", "lies_apart", "noted_event", "stream_entry"]

#: Bytes of the name of a sealed note, and the names a sink remembers: twice those of a stream of notes.
_NAME, _MOST_HEARD = 16, 20_000


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


class SealedNotes:
    """Seals notes under random names, and opens each name in one entry only: a copy of a sealed note is ignored."""

    def __init__(self, seals: Seals) -> None:
        self._seals = seals
        #: Name -> the entry under which it came first.
        self._heard: dict[bytes, str] = {}

    def seal(self, run: str, line: bytes) -> bytes:
        """The note as it goes to Redis."""
        name = secrets.token_hex(_NAME // 2) if self._seals.fingerprint else ""
        return name.encode() + self._seals.seal(run, 0, Purpose.NOTE, name, line)

    def read(self, run: str, item: Any) -> Note | None:
        """The event of an entry; None if it is no note of ours, or was read before."""

        def opened(_identity: str, text: bytes | None) -> bytes | None:
            if not self._seals.fingerprint or text is None:
                return text
            name, message = text[:_NAME], text[_NAME:]
            body = self._seals.open(run, 0, Purpose.NOTE, name.decode("latin-1"), message)
            return body if self._is_first(name, entry_id(item)) else None

        return noted_event(item[1], opened)

    def _is_first(self, name: bytes, entry: str) -> bool:
        first = self._heard.setdefault(name, entry)
        while len(self._heard) > _MOST_HEARD:
            del self._heard[next(iter(self._heard))]
        return first == entry


def entry_id(item: Any) -> str:
    return str(item[0].decode())


def lies_apart(item: Any) -> str | None:
    """The token of an entry whose body is not in the stream, since it is large."""
    return str(item[1].get(b"t", b"")[:_LONGEST_TOKEN].decode("utf-8", "replace")) if b"b" in item[1] else None


def stream_entry(item: Any, body: Any, opened: Open = _as_it_is) -> Entry:
    """An entry of a run's stream after its anchor, with its body.

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
        words = f"an entry of the stream is not Chainette's: {type(error).__name__}: {error}"[:400]
        raise PutAside([Aside(words, entry_id(item), str(fields)[:2000].encode())]) from error
    stage = fields.get(b"d")
    return Entry(entry_id(item), token, message, root, done=stage == b"1", suspended=stage == b"2")
