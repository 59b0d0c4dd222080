"""The state of a queue as plain values: equal for the queue in memory and the one on Redis if they agree."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, cast

from redis import Redis

from chainette.fleet.memory.memory_queue import MemoryQueue
from chainette.fleet.memory.memory_run import Job, RunInMemory
from chainette.fleet.protocol.keys import LEASES, RunKeys, held

__all__ = ["Picture", "of_memory", "of_redis", "pass_time"]


@dataclass
class Picture:
    """Everything that later replies depend on."""

    #: Run -> epoch, state, owner, cursor, total, last, damaged, suspended, live rows, barred queues.
    runs: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    #: Job id -> claim token, holder, ahead, solo, strikes, deaths, parts, rows left.
    jobs: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    #: Queue -> ready, solo and broken job ids in order; delayed ones by the time they are due.
    queues: dict[str, tuple[list[str], ...]] = field(default_factory=dict)
    #: (run, root, scope) -> outstanding members.
    members: dict[tuple[str, int, str], set[str]] = field(default_factory=dict)
    #: (run, root, scope) -> number of entries the branches of an open fork gave.
    forks: dict[tuple[str, int, str], int] = field(default_factory=dict)
    #: Run -> live root -> its rows, those outstanding.
    roots: dict[str, dict[int, tuple[int, int]]] = field(default_factory=dict)
    #: Run -> tokens in the stream, with the root and its stage.
    streams: dict[str, list[tuple[str, int, str]]] = field(default_factory=dict)
    #: Worker -> job ids in its hands.
    held: dict[str, set[str]] = field(default_factory=dict)
    #: (run, worker) -> the cost of its lost leases.
    struck: dict[tuple[str, str], dict[str, str]] = field(default_factory=dict)


# -- in memory


def of_memory(queue: MemoryQueue) -> Picture:
    found = Picture()
    for name, run in queue._runs.items():
        _add_run(found, name, run)
    for me, worker in queue._workers.items():
        found.held[me] = {_id_of(job) for job in worker.held}
    return found


def _id_of(name: str) -> str:
    """A job's id on Redis."""
    if name[:2] in ("S:", "P:"):
        return name[:2] + (_id_of(name[2:]) if name.startswith("P:") else name[2:])
    run, epoch, root, rest = name.split("_", 3)
    node, _, part = rest.rpartition("_")
    return RunKeys(run, int(epoch)).job(node, int(root), part)


def _add_run(found: Picture, name: str, run: RunInMemory) -> None:
    barred = sorted(run.barred)
    about = (run.keys.epoch, run.state, run.owner, run.cursor, run.total, run.last)
    found.runs[name] = (*about, bool(run.damaged), run.suspended, run.live_rows, barred)
    found.jobs |= {_id_of(job.name): _about(job) for job in run.jobs.values()}
    for queue, waiting in run.queues.items():
        delayed = [job for _, _, job in sorted(waiting.delayed) if job in run.jobs and run.jobs[job].delayed]
        lists = (waiting.ready, waiting.solo, waiting.broken, delayed)
        if any(lists):
            found.queues[queue] = tuple([_id_of(job) for job in one] for one in lists)
    found.roots[name] = {root: (len(live.record.rows), live.outstanding) for root, live in run.roots.items()}
    for root, live in run.roots.items():
        found.members |= {(name, root, scope): {*map(_id_of, all_)} for scope, all_ in live.members.items() if all_}
        found.forks |= {(name, root, scope): len(fork.partials) for scope, fork in live.forks.items()}
    found.streams[name] = [
        (entry.token, entry.root, "1" if entry.done else "2" if entry.suspended else "0") for entry in run.stream._entries
    ]
    found.struck |= {(name, me): {_id_of(job): counter for job, counter in all_} for me, all_ in run.struck.items()}


def _about(job: Job) -> tuple[Any, ...]:
    holder = job.holder if job.token else ""
    return (job.token, holder, job.ahead and bool(job.token), job.solo, job.strikes, job.deaths, job.part, len(job.unit.rows))


# -- on Redis


def of_redis(client: Redis) -> Picture:
    found, values = Picture(), _values(client)
    for key, value in values.items():
        if key.startswith("chainette:run:") and key.count(":") == 2 and "epoch" in value:
            _add_run_of_redis(found, key.removeprefix("chainette:run:"), value, values)
    for me in values.get(LEASES, {}):
        found.held[me] = values.get(held(me), set())
    return found


def _values(client: Redis) -> dict[str, Any]:
    """Everything in the database, decoded."""
    names = cast("list[bytes]", client.keys("*"))
    with client.pipeline(transaction=False) as pipe:
        for name in names:
            pipe.type(name)
        kinds = pipe.execute()
    with client.pipeline(transaction=False) as pipe:
        for name, kind in zip(names, kinds, strict=True):
            match kind:
                case b"hash":
                    pipe.hgetall(name)
                case b"set":
                    pipe.smembers(name)
                case b"zset":
                    pipe.zrange(name, 0, -1, withscores=True)
                case b"list":
                    pipe.lrange(name, 0, -1)
                case b"stream":
                    pipe.xrange(name)
                case _:
                    pipe.strlen(name)
        return {_text(name): _decoded(kind, value) for name, kind, value in zip(names, kinds, pipe.execute(), strict=True)}


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")


def _decoded(kind: bytes, value: Any) -> Any:
    match kind:
        case b"hash":
            return {_text(name): _text(word) for name, word in value.items()}
        case b"set":
            return {*map(_text, value)}
        case b"list":
            return [*map(_text, value)]
        case b"zset":
            return {_text(name): score for name, score in value}
        case b"stream":
            return [{_text(name): word for name, word in fields.items()} for _, fields in value]
        case _:
            return value


def _add_run_of_redis(found: Picture, name: str, fields: dict[str, str], values: dict[str, Any]) -> None:
    keys = RunKeys(name, int(fields["epoch"]))
    numbers = (int(fields["cursor"]), int(fields["total"]) if "total" in fields else None, int(fields.get("last", -1)))
    more = ("damaged" in fields, int(fields.get("suspended", 0)), int(fields["live_rows"]))
    found.runs[name] = (keys.epoch, fields["state"], fields["owner"], *numbers, *more, sorted(fields.get("barred", "").split()))
    mine = f"rq:job:{name}_{keys.epoch}_"
    jobs = {key.removeprefix("rq:job:"): job for key, job in values.items() if key.startswith(mine)}
    found.jobs |= {job: _about_hash(hash_) for job, hash_ in jobs.items()}
    for queue in fields["queues"].split():
        plain = [values.get(key, []) for key in (f"rq:queue:{queue}", keys.solo(queue), f"{keys.prefix}broken:{queue}")]
        scheduled = values.get(f"rq:scheduled:{queue}", {})
        lists = (*plain, [job for job in scheduled if job in jobs])
        if any(lists):
            found.queues[queue] = lists
    live, out = (values.get(f"{keys.prefix}{kind}", {}) for kind in ("live", "out"))
    found.roots[name] = {int(root): (int(rows), int(out.get(root, 0))) for root, rows in live.items()}
    _add_scopes(found, keys, values)
    entries = values.get(keys.stream, [])
    found.streams[name] = [(_text(entry["t"]), int(entry.get("r", -1)), _text(entry.get("d", b"0"))) for entry in entries]
    mark = f"{keys.prefix}struck:"
    found.struck |= {(name, key.removeprefix(mark)): value for key, value in values.items() if key.startswith(mark)}


def _about_hash(job: dict[str, str]) -> tuple[Any, ...]:
    claim = job.get("claim", "")
    flags = (bool(claim) and job.get("ahead") == "1", job.get("solo") == "1")
    counters = (int(job.get(name, 0)) for name in ("strikes", "deaths", "part", "rows"))
    return (claim, job.get("worker_name", "") if claim else "", *flags, *counters)


def _add_scopes(found: Picture, keys: RunKeys, values: dict[str, Any]) -> None:
    for key, value in values.items():
        kind, _, place = key.removeprefix(keys.prefix).partition(":")
        if not key.startswith(keys.prefix) or kind not in ("s", "f"):
            continue
        root, _, scope = place.partition(":")
        if kind == "s":
            found.members[keys.run, int(root), scope] = value
        elif f"S:{scope}" in values.get(f"{keys.prefix}s:{root}:{value['parent']}", ()):  # else its join is queued already
            found.forks[keys.run, int(root), scope] = sum(name.startswith("p:") for name in value)


def pass_time(client: Redis, seconds: float, queues: Iterable[str]) -> None:
    """As if so much time had passed on the server: leases, delays and turns are nearer to their end."""
    for key in (LEASES, *(f"rq:scheduled:{queue}" for queue in queues)):
        for name, score in cast("list[tuple[bytes, float]]", client.zrange(key, 0, -1, withscores=True)):
            client.zadd(key, {name: score - seconds})
    for key in client.scan_iter("chainette:*:turn:*"):
        left = client.pttl(key) - int(1000 * seconds)
        client.pexpire(key, left) if left > 0 else client.delete(key)
