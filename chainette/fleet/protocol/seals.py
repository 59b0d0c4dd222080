"""Seals: with CHAINETTE_FLEET_KEY, every message through Redis carries a keyed BLAKE2b tag, which nobody can make without the
key.

A tag covers run, epoch, kind, logical identity and body, never the Redis key under which the message lies. So a message
cannot be moved to another run, epoch, unit or purpose. Without a key, messages travel as they are.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

import msgspec

from chainette.errors import RunError
from chainette.fleet.protocol.messages import BadMessage
from chainette.utils.plurals import counted

__all__ = ["VARIABLE", "FleetKey", "NoKey", "Purpose", "Seals", "Unsealed", "seals_of"]

#: The environment variable that holds the key.
VARIABLE = "CHAINETTE_FLEET_KEY"

#: Bytes of a tag, and the fewest characters of a key.
_TAG, _SHORTEST = 16, 16


class Purpose(StrEnum):
    """The purpose of a sealed message; its identity is in brackets."""

    #: the rows of a unit (job)
    UNIT = "unit"
    #: the work already spent on the rows of a unit (job)
    UNFINISHED = "unfinished"
    #: the message that a worker begins a row that runs alone (job, row)
    BEGUN = "begun"
    #: the base rows of a fork, its join unit's (job, scope)
    BASE = "base"
    #: rows that a branch of a fork gave or ended (scope, entry token, number)
    PIECE = "piece"
    #: a root as it was admitted (root)
    ROOT = "root"
    #: an entry of the stream (root, token)
    ENTRY = "entry"
    #: a question for the answers of earlier runs ()
    ASKED = "asked"
    #: the reply to one (its token)
    FOUND = "found"
    #: an event for the sink (a random name, which counts once)
    NOTE = "note"
    #: the answer to a question that rows share (question)
    ANSWER = "answer"
    #: a run's record ()
    RECORD = "record"
    #: a run handed over to services (the order's own id)
    ORDER = "order"
    #: the message that a run is cancelled ()
    CANCEL = "cancel"
    #: the message that a worker is to end (incarnation)
    STOP = "stop"
    #: the address of a process's metrics (address)
    METRICS = "metrics"


class Unsealed(BadMessage):
    """A message carries no tag of this fleet's key."""

    def __init__(self, kind: Purpose) -> None:
        super().__init__(f"a message ({kind}) carries no seal of this fleet's key")


class Seals(Protocol):
    """Seals messages, and opens them."""

    @property
    def fingerprint(self) -> str:
        """Identifies the key without revealing it; "" without a key."""
        ...

    def seal(self, run: str, epoch: int, kind: Purpose, identity: str, body: bytes) -> bytes:
        """The message as it goes to Redis."""
        ...

    def open(self, run: str, epoch: int, kind: Purpose, identity: str, message: bytes | None) -> bytes | None:
        """The body of a message from Redis; None if there is none.

        Raises:
            Unsealed: it has no valid tag.
        """
        ...


class NoKey:
    """Messages as they are."""

    fingerprint = ""

    def seal(self, _run: str, _epoch: int, _kind: Purpose, _identity: str, body: bytes) -> bytes:
        return body

    def open(self, _run: str, _epoch: int, _kind: Purpose, _identity: str, message: bytes | None) -> bytes | None:
        return message


@dataclass(frozen=True)
class FleetKey:
    """Messages with a tag in front."""

    secret: str = field(repr=False)
    _keyed: hashlib.blake2b = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Raises RunError if the secret is too short to be one."""
        if len(self.secret) < _SHORTEST:
            raise RunError(
                f"{VARIABLE} has {counted(len(self.secret), 'character')}; at least {_SHORTEST} are needed. "
                "Make one with deploy/redis/make_users.py or `openssl rand -base64 32`"
            )
        key = hashlib.blake2b(self.secret.encode("utf-8", "surrogateescape")).digest()
        object.__setattr__(self, "_keyed", hashlib.blake2b(key=key, digest_size=_TAG, person=b"chainette"))

    @property
    def fingerprint(self) -> str:
        return self._tag("", 0, Purpose.RECORD, "fingerprint", b"").hex()[:12]

    def seal(self, run: str, epoch: int, kind: Purpose, identity: str, body: bytes) -> bytes:
        return self._tag(run, epoch, kind, identity, body) + body

    def open(self, run: str, epoch: int, kind: Purpose, identity: str, message: bytes | None) -> bytes | None:
        if message is None:
            return None
        tag, body = message[:_TAG], message[_TAG:]
        if not hmac.compare_digest(tag, self._tag(run, epoch, kind, identity, body)):
            raise Unsealed(kind)
        return body

    def _tag(self, run: str, epoch: int, kind: Purpose, identity: str, body: bytes) -> bytes:
        keyed = self._keyed.copy()
        keyed.update(_pack((run, epoch, kind.value, identity)))
        keyed.update(body)
        return keyed.digest()


_pack = msgspec.msgpack.Encoder().encode


def seals_of(environment: Mapping[str, str] = os.environ) -> Seals:
    """The seals of a process.

    Raises:
        RunError: the key is too short.
    """
    secret = environment.get(VARIABLE, "")
    return FleetKey(secret) if secret else NoKey()
