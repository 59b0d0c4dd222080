"""A run as Redis has it at one moment, for people who look at it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from chainette.fleet.protocol.keys import RunKeys, engine_of, held
from chainette.fleet.protocol.states import RunInfo
from chainette.fleet.redis import census

if TYPE_CHECKING:
    import redis

__all__ = ["Load", "Snapshot", "as_number", "take_snapshot"]


@dataclass(frozen=True)
class Load:
    """What is in one queue of a run."""

    #: Units that wait to be claimed, those among them that must run alone.
    waiting: int = 0
    #: Units, and their rows, that workers hold.
    units: int = 0
    rows: int = 0


@dataclass(frozen=True)
class Snapshot:
    """One run, and everybody who lives."""

    info: RunInfo
    members: Mapping[str, Mapping[str, str]]
    #: RQ's name of a queue, `engine.node.run` -> what is in it.
    queues: Mapping[str, Load] = field(default_factory=dict)
    #: Results that the sink has not taken.
    results: int = 0
    #: Units that wait because their engine did not answer, and what it said last.
    delayed: int = 0
    trouble: str = ""

    @property
    def loads(self) -> dict[str, Load]:
        """By node."""
        end = f".{self.info.run}"
        return {name.removesuffix(end).partition(".")[2]: load for name, load in self.queues.items()}

    @property
    def barred(self) -> list[str]:
        """Engines whose units wait for a later phase."""
        return sorted({engine_of(name) for name in self.info.fields.get("barred", "").split()})

    @property
    def still(self) -> int:
        """Seconds since a row was admitted or became durable, as its sink said last."""
        return as_number(self.info.fields.get("still"))

    @property
    def live_rows(self) -> int:
        return as_number(self.info.fields.get("live_rows"))

    @property
    def window(self) -> int:
        return as_number(self.info.fields.get("window"))

    @property
    def live_bytes(self) -> int:
        return as_number(self.info.fields.get("live_bytes"))

    @property
    def window_bytes(self) -> int:
        return as_number(self.info.fields.get("window_bytes"))


def as_number(said: str | bytes | None) -> int:
    """A count that somebody wrote into Redis, for people to read; 0 if it is none."""
    try:
        return int(said or 0)
    except ValueError:
        return 0


def take_snapshot(connection: redis.Redis, info: RunInfo, members: Mapping[str, Mapping[str, str]] | None = None) -> Snapshot:
    """The run as it is now; not atomic, which people do not mind."""
    members = census.members(connection) if members is None else members
    if info.epoch < 0:
        return Snapshot(info, members)
    keys = RunKeys(info.run, info.epoch)
    names = info.queues
    with connection.pipeline(transaction=False) as pipe:
        for name in names:
            pipe.llen(f"rq:queue:{name}")
            pipe.llen(f"{keys.prefix}solo:{name}")
            pipe.zrange(f"rq:scheduled:{name}", 0, -1)
        pipe.xlen(keys.stream)
        *found, results = pipe.execute()
    waiting = {name: found[3 * index] + found[3 * index + 1] for index, name in enumerate(names)}
    delayed = [job.decode("utf-8", "replace") for jobs in found[2::3] for job in jobs]
    in_hand = _in_hand(connection, f"{info.run}_{info.epoch}_", members)
    queues = {name: Load(waiting[name], *in_hand.get(name, (0, 0))) for name in names}
    said = cast("bytes | None", connection.hget(f"rq:job:{delayed[-1]}", "exc_info")) if delayed else None
    return Snapshot(info, members, queues, max(0, results - 1), len(delayed), (said or b"").decode("utf-8", "replace"))


def _in_hand(connection: redis.Redis, prefix: str, members: Mapping[str, object]) -> dict[str, tuple[int, int]]:
    """Queue -> (units, rows) that workers hold of a run's epoch."""
    with connection.pipeline(transaction=False) as pipe:
        for name in members:
            pipe.smembers(held(name))
        jobs = [job.decode("utf-8", "replace") for found in pipe.execute() for job in found if job.startswith(prefix.encode())]
        for job in jobs:
            pipe.hmget(f"rq:job:{job}", "origin", "rows")
        found = pipe.execute() if jobs else []
    total: dict[str, tuple[int, int]] = {}
    for origin, rows in found:
        if origin is not None:
            queue = origin.decode("utf-8", "replace")
            units, sum_ = total.get(queue, (0, 0))
            total[queue] = (units + 1, sum_ + as_number(rows))
    return total
