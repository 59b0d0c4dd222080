"""Units on RQ's keys: encodes them as the fields of a job's hash, and decodes them again."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from chainette.core.plan import Plan
from chainette.fleet.protocol.keys import RunKeys
from chainette.fleet.protocol.messages import BadMessage, TooLarge, open_join, open_message
from chainette.records import Effects, Scope, Unit, encode

__all__ = ["age", "claimed_unit", "halves", "moment", "require_part", "require_size", "set_apart", "stamp", "wire_effects"]

#: The one function that a job may name. Workers never import it.
FUNCTION = "chainette.run.process"

_pack = msgspec.msgpack.Encoder().encode

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


def wire_effects(keys: RunKeys, plan: Plan, root: int, effects: Effects) -> dict[str, Any]:
    """Encodes effects for the scripts."""
    at = stamp()
    return {
        "units": [_unit(keys, plan, unit, at) for unit in effects.units],
        "scopes": [_scope(keys, plan, root, scope, at) for scope in effects.scopes],
        "partials": [[partial.scope, encode(partial)] for partial in effects.partials],
        "stopped": [[scope, _pack(row_ids)] for scope, row_ids in effects.stopped],
    }


def _unit(keys: RunKeys, plan: Plan, unit: Unit, at: str) -> dict[str, Any]:
    return {
        **_job(keys, plan, unit.node, unit.root, unit.part, len(unit.rows), at),
        "scope": unit.scope,
        "payload": encode(unit),
    }


def _scope(keys: RunKeys, plan: Plan, root: int, scope: Scope, at: str) -> dict[str, Any]:
    part = f"{scope.part}j"
    return {
        **_job(keys, plan, scope.fork, root, part, len(scope.base), at),
        "scope": scope.scope,
        "parent": scope.parent,
        "base": _pack(scope.base),
    }


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


def claimed_unit(
    taken: Sequence[bytes], root: bytes, scope: bytes, fork: bytes, left: bytes, data: bytes, payload: list[bytes]
) -> Unit:
    """The unit of a claimed job, with its rows except those `taken`. It may have several payloads.

    Raises:
        BadMessage: it cannot be read, or is not the unit that the job names.
    """
    node, part = _identity(data)
    try:
        number, where = int(root), scope.decode()
    except ValueError as error:
        raise BadMessage(f"a job in Redis has the root {root[:80]!r} and the scope {scope[:80]!r}") from error
    if fork:
        return open_join(node, number, part, where, dict(zip(payload[::2], payload[1::2], strict=True)))
    first, *others = (open_message(blob, Unit) for blob in payload)
    if first.part != part or any((unit.node, unit.root, unit.scope) != (node, number, where) for unit in (first, *others)):
        raise BadMessage(f"a job in Redis names {node!r}, root {number}; its payload: {first.node[:80]!r}, root {first.root}")
    ended = set(taken)
    rows = [row for unit in (first, *others) for row in unit.rows if row.row_id.encode() not in ended]
    if str(len(rows)).encode() != left:
        raise BadMessage(f"a job in Redis has {left[:20]!r} rows left; by its payload and the parts before, {len(rows)}")
    return msgspec.structs.replace(first, rows=rows)


def require_part(piece: Unit, plan: Plan) -> None:
    """Raises ValueError if this cannot be a part of a unit."""
    if not piece.rows or piece.node in plan.forks:
        raise ValueError(f"{piece.node}, root {piece.root}: a part has rows, and a join has no parts")


def halves(unit: Unit) -> list[Unit]:
    """A unit cut in two."""
    middle = len(unit.rows) // 2
    parts = (("<", unit.rows[:middle]), (">", unit.rows[middle:]))
    return [Unit(unit.node, unit.root, unit.part + mark, unit.scope, rows) for mark, rows in parts]


def require_size(what: str, most: int, first: bytes, effects: dict[str, Any]) -> None:
    """Checks the size of one admission or commit.

    Raises:
        TooLarge: it has more bytes than `most`.
    """
    found = len(first) + sum(_weights(effects))
    if found > most:
        raise TooLarge(what, found, most)


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
