"""A fleet as Redis shows it at this moment: its only reader, for commands, metrics, services and workers alike.

Nothing is read as one transaction: numbers of one look may be a few milliseconds apart. A key of
another type, and a field that does not decode, are as good as lost: they cost at most the line of their run or process.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from chainette.fleet.protocol.keys import LEASES, RUNS, RunKeys, engine_of, held, rq_job, rq_queue, rq_scheduled, worker
from chainette.fleet.protocol.member_fields import Member
from chainette.fleet.protocol.rq_jobs import age, moment
from chainette.fleet.protocol.run_fields import RunInfo
from chainette.io.rundir.accounting import NodeCounts
from chainette.io.rundir.run_state import RunState
from chainette.records import Usage

if TYPE_CHECKING:
    import redis
    from redis.client import Pipeline

__all__ = ["Fleet", "LiveRun", "Queue", "known_runs", "live_members", "look", "run_info"]

_log = logging.getLogger("chainette")

#: The most bytes of a run's or a process's name, and the most names at once.
_LONGEST_NAME, _MOST_NAMES = 200, 10_000


@dataclass(frozen=True)
class Queue:
    """The units of one node of a run."""

    node: str
    engine: str
    #: Units that wait to be claimed, and seconds the oldest of them has waited.
    waiting: int = 0
    age: float = 0.0
    #: Units that are put off because their engine did not answer.
    delayed: int = 0
    #: Units, and their rows, that workers hold.
    units: int = 0
    rows: int = 0


@dataclass(frozen=True)
class LiveRun:
    """One run that is not closed, and all live processes."""

    info: RunInfo
    members: Mapping[str, Member]
    #: Every node of the run, also those that nothing has reached.
    queues: tuple[Queue, ...] = ()
    #: Results that are not durable yet: entries, the rows that went into them, seconds since the oldest came.
    results: int = 0
    lag_rows: int = 0
    lag_seconds: float = 0.0
    #: Roots that are admitted and not acknowledged.
    live_roots: int = 0
    #: The last words of an engine that did not answer.
    trouble: str = ""

    @property
    def delayed(self) -> int:
        return sum(queue.delayed for queue in self.queues)

    @property
    def barred(self) -> list[str]:
        """Engines whose units wait for a later phase."""
        return sorted({engine_of(name) for name in self.info.barred})

    @property
    def expected(self) -> int | None:
        """Records of the whole input; None until it is known."""
        if self.info.expected >= 0 or self.info.total is None:
            return self.info.expected if self.info.expected >= 0 else None
        return self.info.records_before + self.info.total * self._batch

    @property
    def done(self) -> int:
        """Records whose root is durable and acknowledged, those of earlier epochs included."""
        roots = max(0, self.info.cursor - self.live_roots - self.info.suspended)
        done = self.info.records_before + roots * self._batch
        return done if self.expected is None else min(done, self.expected)

    def state(self) -> RunState:
        """The run as the log of its directory would give it, as far as its sink has reported."""
        counts = self.info.counts
        nodes = {
            name: NodeCounts(taken, given, rejected, usage=Usage(completion_tokens=tokens))
            for name, (taken, given, rejected, tokens) in counts.nodes.items()
        }
        return RunState(seq=0, graph=self.info.outline, nodes=nodes, records=counts.records, expected=counts.expected)

    @property
    def _batch(self) -> int:
        return self.info.batch_size or 1


@dataclass(frozen=True)
class Fleet:
    """Every run and all live processes, at one moment."""

    runs: tuple[LiveRun, ...]
    members: Mapping[str, Member]
    memory_used: int = 0
    #: 0 if Redis has no limit.
    memory_max: int = 0


def look(connection: redis.Redis, run: str | None = None) -> Fleet:
    """The whole fleet, or one run of it, in four round trips for any number of rows.

    Raises (as every function here):
        redis.RedisError: Redis does not answer.
    """
    with connection.pipeline(transaction=False) as pipe:
        pipe.info("memory")
        pipe.smembers(RUNS)
        pipe.zrange(LEASES, 0, -1, withscores=True)
        pipe.time()
        memory, names, leases, clock = _replies(pipe)
    now, memory = clock[0] + clock[1] / 1e6, memory or {}
    alive = _named(name for name, end in leases or () if end > now)
    wanted = sorted(_named(names or ())) if run is None else [run]
    infos, members = _records(connection, wanted, alive)
    runs = _live_runs(connection, [info for info in infos if info is not None], members, now)
    return Fleet(tuple(runs), members, memory.get("used_memory", 0), memory.get("maxmemory", 0))


def known_runs(connection: redis.Redis) -> list[RunInfo]:
    """Runs that are not closed, by name, also those that no sink has begun. Forgets names whose record is gone, and names
    that no run has, if this process may."""
    with connection.pipeline(transaction=False) as pipe:
        pipe.smembers(RUNS)
        found = _replies(pipe)[0] or set()
    names = sorted(_named(found))
    infos, _ = _records(connection, names, ())
    gone = [name.encode() for name, info in zip(names, infos, strict=True) if info is None]
    if gone or (garbage := [name for name in found if not _is_name(name)]):
        _forget(connection, gone or garbage)
    return [info for info in infos if info is not None]


def _forget(connection: redis.Redis, names: Sequence[bytes]) -> None:
    """Forgets runs that were cancelled a week ago, and garbage; a live run's sink puts its name back."""
    from redis.exceptions import NoPermissionError

    if not _is_name(names[0]):
        _log.warning("%d names of runs in Redis cannot be names; they are removed", len(names))
    with suppress(NoPermissionError):  # workers may not
        connection.srem(RUNS, *names)


def run_info(connection: redis.Redis, run: str) -> RunInfo | None:
    """The record of a run; None if it is closed."""
    return _records(connection, [run], ())[0][0]


def live_members(connection: redis.Redis) -> dict[str, Member]:
    """The members whose lease holds: workers, services and `enqueue`."""
    with connection.pipeline(transaction=False) as pipe:
        pipe.zrange(LEASES, 0, -1, withscores=True)
        pipe.time()
        leases, clock = _replies(pipe)
    now = clock[0] + clock[1] / 1e6
    return _records(connection, (), _named(name for name, end in leases or () if end > now))[1]


def _records(
    connection: redis.Redis, runs: Sequence[str], members: Sequence[str]
) -> tuple[list[RunInfo | None], dict[str, Member]]:
    with connection.pipeline(transaction=False) as pipe:
        for run in runs:
            pipe.hgetall(RunKeys(run, 0).state)
            pipe.get(RunKeys(run, 0).order)
        for name in members:
            pipe.hgetall(worker(name))
        found = _replies(pipe)
    pairs, said = zip(found[: 2 * len(runs) : 2], found[1 : 2 * len(runs) : 2], strict=True), found[2 * len(runs) :]
    infos = [RunInfo.of(run, fields or {}, order) for run, (fields, order) in zip(runs, pairs, strict=True)]
    return infos, {name: Member.read(fields or {}) for name, fields in zip(members, said, strict=True)}


def _replies(pipe: Pipeline) -> list[Any]:
    """The replies of a pipeline; None for a key of another type, and for INFO if the user may not call it."""
    found = pipe.execute(raise_on_error=False)
    for reply in found:
        if isinstance(reply, Exception) and not any(word in str(reply) for word in ("WRONGTYPE", "'info'")):
            raise reply
    return [None if isinstance(reply, Exception) else reply for reply in found]


# -- the queues of runs


def _live_runs(
    connection: redis.Redis, infos: Sequence[RunInfo], members: Mapping[str, Member], now: float
) -> Iterator[LiveRun]:
    with connection.pipeline(transaction=False) as pipe:
        for info in infos:
            keys = RunKeys(info.run, info.epoch)
            pipe.hlen(keys.live)
            pipe.xlen(keys.stream)
            pipe.xrange(keys.stream, count=2)
            for name in info.queues:
                for queue in (rq_queue(name), keys.solo(name)):
                    pipe.llen(queue)
                    pipe.lindex(queue, 0)
                pipe.zcard(rq_scheduled(name))
                pipe.zrange(rq_scheduled(name), -1, -1)
        for member in members:
            pipe.smembers(held(member))
        replies = iter(_replies(pipe))
    raws = [_Raw(*(next(replies) for _ in range(3 + 6 * len(info.queues)))) for info in infos]
    jobs = _Jobs(connection, {job for raw in raws for job in raw.named}, {job for found in replies for job in found or ()})
    for info, raw in zip(infos, raws, strict=True):
        yield _live_run(info, raw, jobs, members, now)


class _Raw:
    """A run's replies."""

    def __init__(self, live: int | None, entries: int | None, oldest: Any, *queues: Any) -> None:
        self.live, self.entries, self.oldest = live or 0, max(0, (entries or 0) - 1), oldest or []
        #: Per queue: (units, first job) of those that wait, and of those that must run alone; (units, last job) put off.
        self.queues = [queues[start : start + 6] for start in range(0, len(queues), 6)]

    @property
    def named(self) -> Iterator[bytes]:
        for _, first, _, alone, _, last in self.queues:
            yield from (job for job in (first, alone, *(last or ())) if job)


class _Jobs:
    """The jobs that matter: when they were queued, the last words of their engine, and their owners."""

    def __init__(self, connection: redis.Redis, named: Iterable[bytes], in_hand: Iterable[bytes]) -> None:
        named, in_hand = [*named], [*in_hand]
        with connection.pipeline(transaction=False) as pipe:
            for job in named:
                pipe.hmget(rq_job(_text(job)), "enqueued_at", "exc_info")
            for job in in_hand:
                pipe.hmget(rq_job(_text(job)), "origin", "rows")
            found = [reply or (None, None) for reply in _replies(pipe)]
        self._said = dict(zip(named, found, strict=False))
        #: (run and epoch, RQ's name of a queue) -> units and rows in the hands of workers.
        self.in_hand: defaultdict[tuple[str, str], tuple[int, int]] = defaultdict(lambda: (0, 0))
        for job, (origin, rows) in zip(in_hand, found[len(named) :], strict=True):
            key = (_text(job).rpartition("_")[0].rpartition("_")[0], _text(origin))
            self.in_hand[key] = (self.in_hand[key][0] + 1, self.in_hand[key][1] + _whole(rows))

    def age(self, job: bytes | None, now: float) -> float:
        return age(moment(_text(self._said[job][0])), now) if job else 0.0

    def words(self, job: bytes) -> str:
        return _text(self._said[job][1]) if job else ""


def _live_run(info: RunInfo, raw: _Raw, jobs: _Jobs, members: Mapping[str, Member], now: float) -> LiveRun:
    queues, trouble = [], ""
    for name, (waiting, first, solo, alone, delayed, last) in zip(info.queues, raw.queues, strict=True):
        node = name.removesuffix(f".{info.run}").partition(".")[2]
        oldest = max(jobs.age(first, now), jobs.age(alone, now))
        units, rows = jobs.in_hand.get((f"{info.run}_{info.epoch}", name), (0, 0))
        queues.append(Queue(node, engine_of(name), (waiting or 0) + (solo or 0), oldest, delayed or 0, units, rows))
        trouble = jobs.words(last[0]) if last else trouble
    lag_rows = lag_seconds = 0.0
    if len(raw.oldest) > 1:
        lag_rows = max(0, info.results - _whole(raw.oldest[0][1].get(b"n")))
        lag_seconds = max(0.0, now - int(raw.oldest[1][0].partition(b"-")[0]) / 1000)
    return LiveRun(info, members, tuple(queues), raw.entries, int(lag_rows), lag_seconds, raw.live, trouble)


def _named(raw: Iterable[bytes]) -> list[str]:
    """Names in the form that our processes give them, no more than there can be."""
    return [name.decode() for name in raw if _is_name(name)][:_MOST_NAMES]


def _is_name(raw: bytes) -> bool:
    return 0 < len(raw) <= _LONGEST_NAME and raw.isascii() and raw.decode().isprintable()


def _text(raw: bytes | None) -> str:
    return (raw or b"").decode("utf-8", "replace")


def _whole(raw: bytes | None) -> int:
    """A count; 0 if it is none."""
    return int(raw) if raw and raw.isdigit() and len(raw) < 16 else 0
