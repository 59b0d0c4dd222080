"""Units on RQ's keys: encodes them as the fields of a job's hash, and decodes them again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec

from chainette.core.plan import Plan
from chainette.fleet.protocol.keys import RunKeys
from chainette.fleet.protocol.messages import BadMessage, RootRecord, TooLarge, open_join, open_message
from chainette.fleet.protocol.queue_values import Claim
from chainette.fleet.protocol.seals import Purpose, Seals
from chainette.records import Effects, Row, Scope, Unfinished, Unit, encode

__all__ = [
    "ClaimedJob",
    "age",
    "begun_by",
    "begun_word",
    "claimed_unit",
    "halves",
    "moment",
    "open_unfinished",
    "require_part",
    "require_size",
    "set_apart",
    "stamp",
    "wire_effects",
    "wire_unfinished",
]

#: The one function a job may name. Workers never import it.
FUNCTION = "chainette.run.process"

#: Bytes that distinguish the sealed pieces of a fork.
_UNIQUE = 8
#: Bytes of bad answers a unit keeps for its rows.
_MOST_UNFINISHED = 1 << 20

_pack = msgspec.msgpack.Encoder().encode
_unfinished = msgspec.msgpack.Decoder(dict[str, Unfinished])

#: The field `data` of a job's hash: function, no instance, (run, epoch, node, root, part), no keywords.
_arguments = msgspec.json.Decoder(tuple[str, None, tuple[str, int, str, int, str], dict[str, None]])


def stamp() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def moment(stamp: str) -> float:
    """A timestamp in seconds since 1970; 0 if it does not parse."""
    try:
        return datetime.fromisoformat(stamp).timestamp()
    except ValueError:
        return 0.0


def age(since: float, now: float) -> float:
    """Seconds between two moments; 0 if the first is unknown, or if the clocks differ."""
    return max(0.0, now - since) if since else 0.0


def wire_effects(
    keys: RunKeys, plan: Plan, root: int, effects: Effects, seals: Seals, token: str, admitted: Sequence[Row] = ()
) -> dict[str, Any]:
    """Encodes effects for the scripts; `token` is that of the entry which they come with.

    A unit of all rows that are `admitted` with it is encoded without them: its worker takes them from the root's record.
    """
    at = stamp()

    def piece(scope: str, number: int, body: bytes) -> bytes:
        unique = hashlib.blake2b(f"{token} {number}".encode(), digest_size=_UNIQUE).digest() if seals.fingerprint else b""
        return seals.seal(keys.run, keys.epoch, Purpose.PIECE, f"{root}\0{scope}", unique + body)

    partials = enumerate(effects.partials)
    stopped = enumerate(effects.stopped, len(effects.partials))
    return {
        "units": [_unit(keys, plan, unit, at, seals, admitted) for unit in effects.units],
        "scopes": [_scope(keys, plan, root, scope, at, seals) for scope in effects.scopes],
        "partials": [[partial.scope, piece(partial.scope, number, encode(partial))] for number, partial in partials],
        "stopped": [[scope, piece(scope, number, _pack(row_ids))] for number, (scope, row_ids) in stopped],
    }


def _unit(keys: RunKeys, plan: Plan, unit: Unit, at: str, seals: Seals, admitted: Sequence[Row]) -> dict[str, Any]:
    job = _job(keys, plan, unit.node, unit.root, unit.part, len(unit.rows), at)
    as_admitted = bool(unit.rows) and unit.rows == admitted
    body = encode(msgspec.structs.replace(unit, rows=[]) if as_admitted else unit)
    payload = seals.seal(keys.run, keys.epoch, Purpose.UNIT, job["job"], body)
    return {**job, "scope": unit.scope, "as_admitted": as_admitted, "payload": payload}


def _scope(keys: RunKeys, plan: Plan, root: int, scope: Scope, at: str, seals: Seals) -> dict[str, Any]:
    job = _job(keys, plan, scope.fork, root, f"{scope.part}j", len(scope.base), at)
    base = seals.seal(keys.run, keys.epoch, Purpose.BASE, _base_of(job["job"], scope.scope, scope.parent), _pack(scope.base))
    return {**job, "scope": scope.scope, "parent": scope.parent, "base": base}


def _base_of(job: str, scope: str, parent: str) -> str:
    return f"{job}\0{scope}\0{parent}"


def _job(keys: RunKeys, plan: Plan, node: str, root: int, part: str, rows: int, at: str) -> dict[str, Any]:
    """A unit for RQ's tools: identifiers only, as JSON; its rows are stored separately."""
    arguments = [keys.run, keys.epoch, node, root, part]
    return {
        "job": keys.job(node, root, part),
        "queue": keys.queue(plan.engine_of(node), node),
        "data": json.dumps([FUNCTION, None, arguments, {}]),
        "description": f"{node} root {root}{f' part {part}' if part else ''}",
        "rows": rows,
        "at": at,
    }


def _identity(data: bytes) -> tuple[str, str]:
    """(node, part) from a job's arguments.

    Raises:
        BadMessage: the job names another function, or does not decode.
    """
    try:
        name, _, (_, _, node, _, part), _ = _arguments.decode(data)
    except ValueError as error:
        raise BadMessage(f"a job in Redis does not say which unit it is: {data[:80]!r}") from error
    if name != FUNCTION:
        raise BadMessage(f"a job in Redis names the function {name[:80]!r}; jobs may name {FUNCTION!r} only")
    return node, part


@dataclass(frozen=True)
class ClaimedJob:
    """A job as `claim.lua` gives it."""

    keys: RunKeys
    job: str
    taken: Sequence[bytes]
    root: bytes
    scope: bytes
    fork: bytes
    left: bytes
    data: bytes
    #: With the root's record behind it if the unit has all rows of that.
    payload: list[bytes]
    #: Jobs that became one with it, whose payloads follow its own.
    also: bytes = b""

    def opened(self, seals: Seals, kind: Purpose, identity: str, message: bytes) -> bytes | None:
        return seals.open(self.keys.run, self.keys.epoch, kind, identity, message)


def claimed_unit(claimed: ClaimedJob, seals: Seals) -> Unit:
    """The unit of a claimed job, with its rows except those taken by parts. It may have several payloads.

    Raises:
        BadMessage: it cannot be read, carries no seal, or is not the unit the job names.
    """
    root, scope, left = claimed.root, claimed.scope, claimed.left
    node, part = _identity(claimed.data)
    try:
        number, where = int(root), scope.decode()
    except ValueError as error:
        raise BadMessage(f"a job in Redis has the root {root[:80]!r} and the scope {scope[:80]!r}") from error
    if seals.fingerprint and claimed.keys.job(node, number, part) != claimed.job:
        raise BadMessage(f"job {claimed.job} in Redis says that it is {node[:80]!r}, root {number}")
    if claimed.fork:
        return _join(claimed, seals, Unit(node, number, part, where, []))
    names = [claimed.job, *claimed.also.decode("utf-8", "replace").split()]
    blobs, record = claimed.payload[: len(names)], claimed.payload[len(names) :]
    first, *others = (
        open_message(claimed.opened(seals, Purpose.UNIT, name, blob), Unit) for name, blob in zip(names, blobs, strict=True)
    )
    if record:
        if first.rows or others:
            raise BadMessage(f"a job in Redis names {node!r}, root {number}, and has rows besides those of its root")
        admitted = open_message(claimed.opened(seals, Purpose.ROOT, str(number), record[0]), RootRecord)
        first = msgspec.structs.replace(first, rows=admitted.rows)
    if first.part != part or any((unit.node, unit.root, unit.scope) != (node, number, where) for unit in (first, *others)):
        raise BadMessage(f"a job in Redis names {node!r}, root {number}; its payload: {first.node[:80]!r}, root {first.root}")
    ended = set(claimed.taken)
    rows = [row for unit in (first, *others) for row in unit.rows if row.row_id.encode() not in ended]
    if str(len(rows)).encode() != left:
        raise BadMessage(f"a job in Redis has {left[:20]!r} rows left; by its payload and the parts before, {len(rows)}")
    return msgspec.structs.replace(first, rows=rows)


def _join(claimed: ClaimedJob, seals: Seals, unit: Unit) -> Unit:
    """A join unit out of its fork's hash: base rows, partials in order, stopped ids."""
    fields = dict(zip(claimed.payload[::2], claimed.payload[1::2], strict=True))
    fork, seen = claimed.fork.decode("utf-8", "replace"), set[bytes]()
    for name, blob in fields.items():
        if name[:2] in (b"p:", b"x:"):
            body = claimed.opened(seals, Purpose.PIECE, f"{unit.root}\0{fork}", blob) or b""
            if seals.fingerprint:
                unique, body = body[:_UNIQUE], body[_UNIQUE:]
                if unique in seen:
                    raise BadMessage(f"a piece of fork {fork[:80]!r} is in Redis twice")
                seen.add(unique)
            fields[name] = body
        elif name == b"base":
            fields[name] = claimed.opened(seals, Purpose.BASE, _base_of(claimed.job, fork, unit.scope), blob) or b""
    return open_join(unit.node, unit.root, unit.part, unit.scope, fields)


def wire_unfinished(claim: Claim | None, seals: Seals) -> bytes:
    """Encodes the work already spent on the rows of a claim; b"" if there is none. Too long answers are left out."""
    if claim is None or not claim.unfinished:
        return b""
    encoded = _pack(claim.unfinished)
    if len(encoded) > _MOST_UNFINISHED:
        encoded = _pack({row: msgspec.structs.replace(each, corrections=()) for row, each in claim.unfinished.items()})
    return seals.seal(claim.run, claim.epoch, Purpose.UNFINISHED, claim.job, encoded)


def open_unfinished(claimed: ClaimedJob, seals: Seals, data: bytes) -> dict[str, Unfinished]:
    """Decodes it; {} if it does not decode or carries no seal: then failures are counted anew, and answers asked for again."""
    try:
        return _unfinished.decode(claimed.opened(seals, Purpose.UNFINISHED, claimed.job, data) or b"") if data else {}
    except (BadMessage, ValueError):
        return {}


def begun_word(claim: Claim, incarnation: str, seals: Seals) -> str:
    """The message that a worker begins a row that runs alone; "" without a key, or if there are several rows."""
    if not seals.fingerprint or len(claim.unit.rows) != 1:
        return ""
    return seals.seal(claim.run, claim.epoch, Purpose.BEGUN, _alone(claim), incarnation.encode()).hex()


def begun_by(claim: Claim, words: bytes, seals: Seals) -> set[str]:
    """The workers that began a row alone, by their sealed words; anything else there is left out."""
    workers = set[str]()
    for word in words.split():
        with suppress(BadMessage, ValueError):
            body = seals.open(claim.run, claim.epoch, Purpose.BEGUN, _alone(claim), bytes.fromhex(word.decode()))
            workers.add((body or b"").decode())
    return workers


def _alone(claim: Claim) -> str:
    return f"{claim.job}\0{claim.unit.rows[0].row_id}"


def require_part(piece: Unit, plan: Plan) -> None:
    """Raises ValueError if this cannot be a part of a unit."""
    if not piece.rows or piece.node in plan.forks:
        raise ValueError(f"{piece.node}, root {piece.root}: a part has rows, and a join has no parts")


def halves(unit: Unit) -> list[Unit]:
    """A unit cut in two."""
    middle = len(unit.rows) // 2
    parts = (("<", unit.rows[:middle]), (">", unit.rows[middle:]))
    return [Unit(unit.node, unit.root, unit.part + mark, unit.scope, rows) for mark, rows in parts]


def require_size(what: str, most: int, first: bytes, effects: dict[str, Any], rows: int = 0) -> None:
    """Checks the size of one commit, or of the admission of a root with these `rows`.

    Raises:
        TooLarge: it has more bytes than `most`.
    """
    found = len(first) + sum(_weights(effects))
    if found > most:
        raise TooLarge(what, found, most, rows)


def _weights(value: Any) -> Iterator[int]:
    """Lengths of all `bytes` in it."""
    if isinstance(value, bytes):
        yield len(value)
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _weights(part)


def set_apart(commit: dict[str, Any], most: int) -> tuple[dict[str, Any], list[bytes]]:
    """The commit with its large bodies replaced by indexes, and those bodies."""
    parts: list[bytes] = []

    def light(body: bytes) -> Any:
        if len(body) <= most:
            return body
        parts.append(body)
        return {"staged": len(parts) - 1}

    units = [unit | {"payload": light(unit["payload"])} for unit in commit["effects"]["units"]]
    return {"entry": light(commit["entry"]), "effects": commit["effects"] | {"units": units}}, parts
