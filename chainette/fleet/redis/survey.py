"""What a fleet looks like at this moment, read from Redis in five round trips whatever the number of rows.

Nothing is written, and nothing is read as one transaction: numbers of one survey may be a few milliseconds apart.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from chainette.fleet.protocol.jobs import age, moment
from chainette.fleet.protocol.keys import LEASES, RUNS, RunKeys, engine_of, rq_job, rq_queue, rq_scheduled, worker

if TYPE_CHECKING:
    import redis

__all__ = ["Lookout", "RunSurvey", "Survey", "Waiting", "survey"]

Fields = dict[str, str]

#: Seconds that a survey is good for.
_FRESH = 1.0


@dataclass(frozen=True)
class Waiting:
    """The units of one node that no worker has."""

    step: str
    engine: str
    units: int
    #: Seconds that the oldest of them has waited; 0 where there is none.
    age: float
    #: Units that wait because their engine did not answer.
    delayed: int = 0


@dataclass(frozen=True)
class RunSurvey:
    """One run that is not closed."""

    run: str
    state: str
    fields: Mapping[str, str]
    #: Every node of the run, also those that nothing has reached.
    waiting: tuple[Waiting, ...]
    #: Results that are not durable yet: entries, the rows that went into them, seconds since the oldest came.
    lag_units: int
    lag_rows: int
    lag_seconds: float
    #: Roots that are admitted and not acknowledged.
    live_roots: int

    @property
    def window(self) -> int:
        return _whole(self.fields, "window")

    @property
    def live_rows(self) -> int:
        return _whole(self.fields, "live_rows")

    @property
    def expected(self) -> int | None:
        """Records of the whole input; None until it is known."""
        said = _whole(self.fields, "expected", -1)
        if said >= 0:
            return said
        if "total" not in self.fields:
            return None
        return self._before + _whole(self.fields, "total") * self._batch

    @property
    def done(self) -> int:
        """Records whose root is durable and acknowledged, those of earlier epochs included."""
        left = self.live_roots + _whole(self.fields, "suspended")
        done = self._before + max(0, _whole(self.fields, "cursor") - left) * self._batch
        return done if self.expected is None else min(done, self.expected)

    @property
    def _before(self) -> int:
        return _whole(self.fields, "records_before")

    @property
    def _batch(self) -> int:
        return _whole(self.fields, "batch_size", 1)


@dataclass(frozen=True)
class Survey:
    """A fleet at one moment."""

    runs: tuple[RunSurvey, ...]
    #: What processes with a lease that holds say about themselves, by name.
    processes: Mapping[str, Mapping[str, str]]
    memory_used: int
    #: 0 where Redis has no limit.
    memory_max: int


def survey(connection: redis.Redis) -> Survey:
    """Looks at every run and every process.

    Raises:
        redis.RedisError: Redis does not answer.
    """
    with connection.pipeline(transaction=False) as pipe:
        pipe.smembers(RUNS)
        pipe.zrange(LEASES, 0, -1, withscores=True)
        pipe.time()
        pipe.info("memory")
        names, leases, (seconds, micros), memory = pipe.execute()
    now = seconds + micros / 1e6
    alive = [name.decode() for name, end in leases if end > now]
    with connection.pipeline(transaction=False) as pipe:
        runs = sorted(name.decode() for name in names)
        for name in runs:
            pipe.hgetall(RunKeys(name, 0).state)
        for name in alive:
            pipe.hgetall(worker(name))
        hashes = [_plain(fields) for fields in pipe.execute()]
    known = [(run, fields) for run, fields in zip(runs, hashes, strict=False) if "epoch" in fields]
    processes = dict(zip(alive, hashes[len(runs) :], strict=True))
    return Survey(_runs(connection, known, now), processes, memory["used_memory"], memory["maxmemory"])


def _runs(connection: redis.Redis, known: Sequence[tuple[str, Fields]], now: float) -> tuple[RunSurvey, ...]:
    with connection.pipeline(transaction=False) as pipe:
        for run, fields in known:
            keys = RunKeys(run, int(fields["epoch"]))
            pipe.hlen(keys.live)
            pipe.xlen(keys.stream)
            pipe.xrange(keys.stream, count=2)
            for queue in _queues(fields):
                for name in (rq_queue(queue), keys.solo(queue)):
                    pipe.llen(name)
                    pipe.lindex(name, 0)
                pipe.zcard(rq_scheduled(queue))
        replies = iter(pipe.execute())
        found = [_raw(fields, replies) for _, fields in known]
        for raw in found:
            for job in raw.fronts:
                pipe.hget(rq_job(job), "enqueued_at")
        stamps = iter(pipe.execute())
    return tuple(_run(run, fields, raw, stamps, now) for (run, fields), raw in zip(known, found, strict=True))


@dataclass(frozen=True)
class _Raw:
    """A run's replies."""

    live: int
    entries: int
    oldest: list[Any]
    #: Per queue: units that wait, ids of those at its two heads, units that are put off.
    queues: list[tuple[int, list[str], int]]

    @property
    def fronts(self) -> list[str]:
        return [job for _, jobs, _ in self.queues for job in jobs]


def _raw(fields: Fields, replies: Iterator[Any]) -> _Raw:
    live, entries, oldest = (next(replies) for _ in range(3))
    queues = []
    for _ in _queues(fields):
        units, front, alone, alone_front, delayed = (next(replies) for _ in range(5))
        queues.append((units + alone, [job.decode() for job in (front, alone_front) if job], delayed))
    return _Raw(live, entries, oldest, queues)


def _run(run: str, fields: Fields, raw: _Raw, stamps: Iterator[bytes | None], now: float) -> RunSurvey:
    waiting = []
    for name, (units, jobs, delayed) in zip(_queues(fields), raw.queues, strict=True):
        step = name.removesuffix(f".{run}").partition(".")[2]
        oldest = max((age(moment((next(stamps) or b"").decode()), now) for _ in jobs), default=0.0)
        waiting.append(Waiting(step, engine_of(name), units, oldest, delayed))
    lag_rows = lag_seconds = 0.0
    if len(raw.oldest) > 1:
        durable = int(raw.oldest[0][1].get(b"n", 0))
        lag_rows = max(0, _whole(fields, "results") - durable)
        lag_seconds = max(0.0, now - int(raw.oldest[1][0].partition(b"-")[0]) / 1000)
    entries = max(0, raw.entries - 1)
    return RunSurvey(run, fields["state"], fields, tuple(waiting), entries, int(lag_rows), lag_seconds, raw.live)


def _queues(fields: Fields) -> list[str]:
    return fields.get("queues", "").split()


def _plain(fields: dict[bytes, bytes]) -> Fields:
    return {key.decode(): value.decode("utf-8", "replace") for key, value in fields.items()}


def _whole(fields: Mapping[str, str], name: str, default: int = 0) -> int:
    return int(fields.get(name) or default)


class Lookout:
    """Surveys a fleet for anybody who asks, once a second at most. Thread-safe."""

    def __init__(self, connection: redis.Redis, clock: Callable[[], float] = time.monotonic) -> None:
        self._redis = connection
        self._clock = clock
        self._lock = threading.Lock()
        self._seen: Survey | None = None
        self._seen_at = -math.inf

    def look(self) -> Survey | None:
        """The fleet as it is now, or was a second ago; None where Redis does not answer."""
        with self._lock:
            if self._clock() >= self._seen_at + _FRESH:
                self._seen, self._seen_at = self._try(), self._clock()
            return self._seen

    def _try(self) -> Survey | None:
        import redis

        try:
            return survey(self._redis)
        except redis.RedisError:
            return None
