"""Everything somebody who may write to Redis can put there in place of ours: every kind of key, every field."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec
from redis import Redis

from chainette.fleet.protocol.keys import LEASES, RUNS, WORKERS, RunKeys, held, rq_job, rq_queue, rq_scheduled, stop, worker
from chainette.fleet.protocol.member_fields import Member
from chainette.fleet.protocol.run_fields import RunInfo

__all__ = ["VALUES", "Put", "does", "global_garbage", "names", "run_garbage"]

Put = Callable[[Redis], object]

#: Values of a field.
VALUES: dict[str, bytes] = {
    "not UTF-8": b"\xff\xfe\x00",
    "empty": b"",
    "text": b"abc",
    "negative": b"-1",
    "a fraction": b"1.5",
    "hexadecimal": b"0x1F",
    "beyond a double": b"9" * 400,
    "the last whole double": b"9007199254740993",
    "infinite": b"inf",
    "no number": b"nan",
    "null": b"null",
    "a list": b"[]",
    "an object": b'{"a": [{}, null]}',
    "deep": b"[" * 20_000 + b"]" * 20_000,
    "deep objects": b'{"a":' * 20_000,
    "escapes": b"\x1b[2J\x1b]0;x\x07",
    "long": b"x" * 200_000,
    "huge": b"9" * (5 << 20),
}


def does(method: str, *arguments: Any, **keys: Any) -> Put:
    """Calls a method of the client."""
    return lambda client: getattr(client, method)(*arguments, **keys)


def _as(kind: str, key: str) -> Put:
    """Makes a key of another type than ours."""

    def put(client: Redis) -> object:
        client.delete(key)
        match kind:
            case "string":
                return client.set(key, b"\xff")
            case "list":
                return client.rpush(key, b"\xff", "1")
            case "set":
                return client.sadd(key, b"\xff", "1")
            case "zset":
                return client.zadd(key, {b"\xff": 1.0})
            case "hash":
                return client.hset(key, b"\xff", b"\xff")
            case _:
                return client.xadd(key, {b"\xff": b"\xff"})

    return put


def names(model: type[msgspec.Struct]) -> list[str]:
    return [field.encode_name for field in msgspec.structs.fields(model)]


def _other_types(what: str, key: str, ours: str) -> Iterator[tuple[str, Put]]:
    for kind in ("string", "list", "set", "zset", "hash", "stream"):
        if kind != ours:
            yield f"{what} is a {kind}", _as(kind, key)
    yield f"{what} is gone", does("delete", key)


def _fields(what: str, key: str, fields: Sequence[str]) -> Iterator[tuple[str, Put]]:
    for field in fields:
        for name, value in VALUES.items():
            yield f"{what}: {field} is {name}", does("hset", key, field, value)
        yield f"{what}: {field} is gone", does("hdel", key, field)


def global_garbage() -> Iterator[tuple[str, Put]]:
    """Keys that belong to no run."""
    for name in (b"\xff\xfe", b"x" * 5000, b"", b"a b", b"a\nb", b"\x1b[2J", b"../../etc"):
        yield f"a run's name is {name[:8]!r}", does("sadd", RUNS, name)
        yield f"a lease is of {name[:8]!r}", does("zadd", LEASES, {name: 9e12})
        yield f"a lease that is over is of {name[:8]!r}", does("zadd", LEASES, {name: 1.0})
    yield "a lease never ends", does("zadd", LEASES, {"zz": "inf"})
    yield from _other_types("a member", worker("zz"), "hash")
    for field in names(Member):
        for what, value in VALUES.items():

            def put(client: Redis, field: str = field, value: bytes = value) -> object:
                client.hset(worker("zz"), mapping={"kind": "worker", "engines": "python", field: value})
                return client.zadd(LEASES, {"zz": 9e12})

            yield f"a member's {field} is {what}", put
    yield from _other_types("what a member holds", held("zz"), "set")
    yield "a member holds what is none", does("sadd", held("zz"), b"\xff", b"", b"x" * 5000, b"run-a_0_0_0")
    yield "a word to stop is garbage", does("set", stop("zz"), b"\xff")
    for key, ours in ((RUNS, "set"), (LEASES, "zset"), (WORKERS, "set")):
        for kind in ("string", "list", "hash"):
            yield f"{key} is a {kind}", _as(kind, key)
        del ours


def run_garbage(keys: RunKeys, queues: Sequence[str], jobs: Sequence[str]) -> Iterator[tuple[str, Put]]:
    """Keys of one run."""
    prefix = keys.prefix
    yield from _other_types("a run", keys.state, "hash")
    yield from _fields(
        "a run", keys.state, [*names(RunInfo), "total", "last", "queues", "barred", "refused:w-1", "refused:\x1b[2J"]
    )
    yield from _other_types("an order", keys.order, "string")
    for what, value in VALUES.items():
        yield f"an order is {what}", does("set", keys.order, value)
    yield from _other_types("notes", keys.notes, "stream")
    yield from _other_types("the stream", keys.stream, "stream")
    for what, value in VALUES.items():
        for field in ("t", "k", "r", "d", "n", "e", "b"):
            entry = {"t": "tok", "k": "unit", "r": "0", "d": "0", "n": "1", "e": b"\x90", field: value}
            yield f"an entry's {field} is {what}", does("xadd", keys.stream, entry)
        for field in ("kind", "text"):
            note = {"kind": "event", "text": "{}", field: value}
            yield f"a note's {field} is {what}", does("xadd", keys.notes, note)
        for part in ("live", "out"):
            yield f"{part} has the root {what}", does("hset", f"{prefix}{part}", value, "1")
            yield f"{part} of a root is {what}", does("hset", f"{prefix}{part}", "0", value)
        yield f"a root is {what}", does("set", keys.root(0), value)
        for job in jobs[:1]:
            yield f"a payload is {what}", does("set", f"{prefix}u:{job}", value)
        for queue in queues[:1]:
            yield f"a queue has the job {what}", does("lpush", rq_queue(queue), value)
            yield f"a queue is to have the job {what}", does("zadd", rq_scheduled(queue), {value: 1.0})
    for queue in queues[:1]:
        yield from _other_types("a queue", rq_queue(queue), "list")
        for part in ("solo", "broken"):
            yield from _other_types(f"{part} units", f"{prefix}{part}:{queue}", "list")
        yield from _other_types("put-off units", rq_scheduled(queue), "zset")
        yield from _other_types("a turn", f"{prefix}turn:{queue}", "string")
    for job in jobs[:1]:
        yield from _other_types("a job", rq_job(job), "hash")
        yield from _fields(
            "a job", rq_job(job), ["data", "run", "epoch", "root", "scope", "fork", "rows", "part", "status", "also"]
        )
        yield from _other_types("a payload", f"{prefix}u:{job}", "string")
        yield from _other_types("taken rows", f"{prefix}t:{job}", "set")
    yield from _other_types("members of a scope", f"{prefix}s:0:", "set")
    yield from _other_types("a root's rows", keys.root(0), "string")
    for part, ours in (("live", "hash"), ("out", "hash"), ("parked", "list"), ("apart", "list")):
        yield from _other_types(part, f"{prefix}{part}", ours)
