"""Which runs and workers a Redis knows, and sweeping up after an epoch."""

from __future__ import annotations

import os
import platform
import re
import socket
from importlib import metadata
from typing import TYPE_CHECKING, cast

from chainette.fleet.protocol.keys import LEASES, RUNS, RunKeys, served, worker
from chainette.fleet.protocol.messages import BadMessage
from chainette.fleet.protocol.states import Progress, RunInfo

if TYPE_CHECKING:
    from collections.abc import Sequence

    import redis
    from redis.client import Pipeline

__all__ = [
    "all_runs",
    "ask_to_stop",
    "give_up",
    "known_runs",
    "known_workers",
    "members",
    "progress_of",
    "run_info",
    "sweep",
    "this_process",
    "with_units",
]

#: Seconds that a cancelled run is remembered where its sink does not come back.
_WEEK = 7 * 86400

#: What a worker is called among those that hold leases.
WORKER = "worker"


def known_runs(connection: redis.Redis) -> list[RunInfo]:
    """Runs that a sink has begun and that are not closed, by name."""
    return [info for info in all_runs(connection) if info.epoch >= 0]


def all_runs(connection: redis.Redis) -> list[RunInfo]:
    """Runs that are not closed, by name, those among them that no sink has begun."""
    found = []
    for name in sorted(name.decode("utf-8", "replace") for name in cast("set[bytes]", connection.smembers(RUNS))):
        info = run_info(connection, name)
        if info is not None:
            found.append(info)
        else:
            connection.srem(RUNS, name)  # cancelled, and its week is over
    return found


def run_info(connection: redis.Redis, run: str) -> RunInfo | None:
    """What Redis says of a run; None where it is closed."""
    with connection.pipeline(transaction=False) as pipe:
        pipe.hgetall(RunKeys(run, 0).state)
        (plain,) = _hashes(pipe)
    if "state" not in plain or not plain.get("epoch", "0").isdecimal():
        return None
    return RunInfo(run, int(plain.get("epoch", -1)), plain["state"], plain)


def members(connection: redis.Redis) -> dict[str, dict[str, str]]:
    """What everybody says about itself whose lease holds: workers, and services."""
    seconds, micros = connection.time()
    found = cast("list[bytes]", connection.zrangebyscore(LEASES, seconds + micros / 1e6, "+inf"))
    names = [name.decode("utf-8", "replace") for name in found]
    with connection.pipeline(transaction=False) as pipe:
        for name in names:
            pipe.hgetall(worker(name))
        return dict(zip(names, _hashes(pipe), strict=True))


def _hashes(pipe: Pipeline) -> list[dict[str, str]]:
    """The hashes that a pipeline asks for. A key of another type is as good as lost: its place is empty.

    Raises:
        redis.RedisError: Redis did not answer.
    """
    found = pipe.execute(raise_on_error=False)
    for reply in found:
        if isinstance(reply, Exception) and "WRONGTYPE" not in str(reply):
            raise reply
    return [{} if isinstance(reply, Exception) else _words(reply) for reply in found]


def _words(said: dict[bytes, bytes]) -> dict[str, str]:
    return {key.decode("utf-8", "replace"): value.decode("utf-8", "replace") for key, value in said.items()}


def known_workers(connection: redis.Redis) -> dict[str, dict[str, str]]:
    """What live workers say about themselves."""
    return {name: words for name, words in members(connection).items() if words.get("kind", WORKER) == WORKER}


def this_process() -> dict[str, str | int]:
    """What RQ shows of a worker."""
    return {
        "hostname": socket.gethostname(),
        "pid": os.getpid(),
        "ip_address": "",
        "version": metadata.version("chainette"),
        "python_version": platform.python_version(),
    }


def ask_to_stop(connection: redis.Redis, engine: str | None) -> list[str]:
    """Leaves the wish where the workers of an engine, or all, look; returns whom."""
    workers = known_workers(connection)
    asked = [name for name, words in workers.items() if engine is None or engine in served(words)]
    for name in asked:
        connection.hset(worker(name), "stop", "1")
    return asked


def with_units(connection: redis.Redis, queues: Sequence[str]) -> dict[str, int]:
    """Those of the queues in which units wait, and how many."""
    with connection.pipeline(transaction=False) as pipe:
        for queue in queues:
            pipe.llen(f"rq:queue:{queue}")
        return {queue: length for queue, length in zip(queues, pipe.execute(), strict=True) if length}


def progress_of(connection: redis.Redis, keys: RunKeys) -> Progress:
    """How far a run's admission is.

    Raises:
        BadMessage: what Redis says of it is no number.
    """
    try:
        return _progress_of(connection, keys)
    except ValueError as error:
        raise BadMessage(f"the record of run {keys.run} in Redis does not decode: {error}") from error


def _progress_of(connection: redis.Redis, keys: RunKeys) -> Progress:
    names = ["cursor", "total", "state", "last", "damaged", "suspended", "epoch"]
    found = cast("list[bytes | None]", connection.hmget(keys.state, names))
    cursor, total, state, last, damaged, suspended, epoch = ((value or b"").decode() for value in found)
    live = {int(root) for root in cast("list[bytes]", connection.hkeys(f"{keys.prefix}live"))}
    return Progress(
        int(cursor or 0),
        int(total) if total else None,
        state,
        live,
        int(last or -1),
        damaged,
        int(suspended or 0),
        is_current=epoch in ("", str(keys.epoch)),
    )


def give_up(connection: redis.Redis, run: str) -> None:
    """Deletes the units of a run that was cancelled. What its sink may still read goes by itself, within a week."""
    for name in connection.scan_iter(f"rq:job:{run}_[0-9]*", count=1000):
        connection.unlink(name)
    kept = re.compile(rf"chainette:{re.escape(run)}:\d+:(stream|live|out|r:|e:|apart|parked)".encode())
    for name in connection.scan_iter(f"chainette:{run}:[0-9]*", count=1000):
        if kept.match(name):
            connection.expire(name, _WEEK)
        else:
            connection.unlink(name)


def sweep(connection: redis.Redis, run: str, before: int) -> None:
    """Deletes what older epochs of a run left: nothing refers to it any more."""
    for pattern, end in ((f"chainette:{run}:", ":"), (f"rq:job:{run}_", "_")):
        epoch_of = re.compile(re.escape(pattern).encode() + rb"(\d+)" + end.encode())
        found = connection.scan_iter(f"{pattern}[0-9]*", count=1000)
        names = [name for name in found if (match := epoch_of.match(name)) and int(match[1]) < before]
        for start in range(0, len(names), 500):
            connection.unlink(*names[start : start + 500])
