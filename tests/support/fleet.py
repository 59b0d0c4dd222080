"""One run on a real Redis, a transition at a time: every call goes through `FleetQueue`, as the processes' calls do."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import anyio
from chainette_workers.worker.engine_pool import EnginePool
from chainette_workers.worker.engine_worker import EngineWorker
from chainette_workers.worker.served_runs import ServedRuns
from redis import Redis

from chainette import Branch, Chain, apply
from chainette.core.compile import compile_chain
from chainette.core.flow import frontier
from chainette.core.plan import Plan
from chainette.engine.config import EngineRegistry, using_registry
from chainette.fleet.protocol.keys import RunKeys
from chainette.fleet.protocol.messages import RootRecord
from chainette.fleet.protocol.queue_values import ANCHOR, AdmissionResult, Claim, Entry
from chainette.fleet.protocol.run_fields import RunInfo
from chainette.fleet.protocol.seals import Seals
from chainette.fleet.redis.redis_queue import FleetQueue
from chainette.records import CHAIN_INPUT, Outcome, Rejection, Row
from tests.support.chains import Text, Word
from tests.support.claims import claim_one
from tests.support.outcomes import process
from tests.support.patience import LONG

__all__ = ["QueueRun", "forked", "opened", "record", "snapshot", "straight", "work", "workers_gone"]


#: The facts that workers need about a run.
_NEEDED = {
    "chain_ref": "chain.py:chain",
    "digest": "d",
    "batch_size": "4",
    "simulate": "0",
    "seed": "0",
    "engines": "{}",
    "reuse": "0",
}


def record(run: str, **fields: str) -> RunInfo:
    """A run whose hash in Redis has these fields beside all that it needs."""
    found = dict.fromkeys(("epoch", "cursor", "live_rows", "live_bytes", "results"), "0")
    found |= {"state": "running", "owner": "o", "queues": "", "parameters": "{}", "marks": "{}", **_NEEDED, **fields}
    raw = {name.encode(): value.encode() for name, value in found.items()}
    info = RunInfo.of(run, raw, raw.get(b"order"))
    assert info is not None
    return info


def first(item: Text) -> Word:
    return Word(word=item.text)


def second(item: Word) -> Word:
    return Word(word=item.word.upper())


def letters(item: Word) -> list[Word]:
    return [Word(word=letter) for letter in item.word]


def no_x(item: Word) -> Word:
    if "X" in item.word:
        raise ValueError("no x, please")
    return item


def _chain(name: str, steps: list[Any]) -> Chain:
    with using_registry(EngineRegistry()):
        return Chain(name=name, batch_size=4, steps=steps)


def straight() -> Plan:
    """first -> second"""
    return compile_chain(_chain("straight", [apply(first), apply(second)]))


def forked() -> Plan:
    """first -> (letters | (letters | no_x)) -> second; the inner fork is joined inside its branch."""
    inner = [
        Branch("deep", [apply(no_x)]).join("clean"),
        Branch("wide", [apply(letters, id="letters_too")]).join("all"),
    ]
    outer = [
        Branch("split", [apply(letters)]).join("pieces"),
        Branch("nested", [apply(second, id="loud"), inner, apply(second, id="louder")]).join("nest"),
    ]
    return compile_chain(_chain("forked", [apply(first), outer, apply(second)]))


def snapshot(client: Redis) -> dict[bytes, object]:
    """Everything in the database but how long keys live; two are equal where nothing was written in between."""
    found: dict[bytes, object] = {}
    for key in client.scan_iter(count=1000):
        found[key] = _value(client, key)
    return found


def _value(client: Redis, key: bytes) -> object:
    match client.type(key):
        case b"hash":
            return client.hgetall(key)
        case b"set":
            return client.smembers(key)
        case b"zset":
            return client.zrange(key, 0, -1, withscores=True)
        case b"list":
            return client.lrange(key, 0, -1)
        case b"stream":
            return client.xrange(key)
        case _:
            return client.get(key)


def workers_gone(queue: FleetQueue) -> None:
    """Every worker hands back its units, and signs off."""
    for name in queue.workers():
        queue.reconcile(name)
        assert queue.leave(name)


def work(run: QueueRun, until: Callable[[], bool], queue: FleetQueue | None = None, **keys: Any) -> EngineWorker:
    """A real worker works for the run until a condition holds."""
    source = queue or run.queue

    def plan_of(info: RunInfo) -> Plan | None:
        return run.plan

    names = {run.plan.engine_of(name) for name in run.plan.nodes} | {"python"}
    worker = EngineWorker(source, ServedRuns(source, names, plan_of), EnginePool(), incarnation="worker", **keys)

    async def go() -> None:
        with anyio.fail_after(LONG):
            await worker.run(until)

    anyio.run(go)
    return worker


class QueueRun:
    """A run's epoch, with its coordinator, its sink and any number of workers."""

    def __init__(
        self, client: Redis, plan: Plan, *, run: str = "run-a", window: int = 1000, seals: Seals | None = None
    ) -> None:
        self.client, self.queue, self.plan = client, FleetQueue(client, seals=seals), plan
        self.keys = RunKeys(run, 0)
        self.owner = "owner-1"
        self.anchor = (ANCHOR, "anchor-0")
        self.position = self.anchor
        self.window = window
        self.entries: list[Entry] = []
        self._claims = 0
        self.install()

    # -- the sink

    @property
    def queues(self) -> list[str]:
        """RQ's names, deepest first."""
        depth = self.plan.depths
        names = sorted(depth, key=lambda name: -depth[name])
        return [self.keys.queue(self.plan.engine_of(name), name) for name in names]

    def install(self, queue: FleetQueue | None = None) -> None:
        fields: dict[str, str | int] = {"window": self.window, "chain_ref": "none", "digest": "none"}
        fields |= {"batch_size": 4, "expected": 12, "records_before": 0}
        (queue or self.queue).install(self.keys.run, self.keys.epoch, self.owner, self.anchor[1], self.queues, fields)

    def raise_epoch(self) -> None:
        self.keys = RunKeys(self.keys.run, self.keys.epoch + 1)
        self.anchor = self.position = (ANCHOR, f"anchor-{self.keys.epoch}")
        self.entries = []
        self.install()

    def drain(self) -> list[Entry]:
        """Reads new entries, and acknowledges them."""
        found = self.queue.read(self.keys, self.position)
        if found:
            self.entries += found
            self.position = (found[-1].id, found[-1].token)
            self.queue.ack(self.keys, self.owner, self.position, [entry.root for entry in found if entry.done])
        return found

    def close(self) -> None:
        self.queue.close(self.keys.run, self.keys.epoch, self.owner, self.queues)

    # -- the coordinator

    def admit(
        self,
        texts: Sequence[str] = ("a", "b", "c", "d"),
        *,
        root: int | None = None,
        k: int | None = None,
        bad: Sequence[Rejection] = (),
        queue: FleetQueue | None = None,
    ) -> AdmissionResult:
        cursor = self.queue.progress(self.keys).cursor if k is None else k
        number = cursor if root is None else root
        rows = [
            Row(str(4 * number + index), {CHAIN_INPUT: json.dumps({"text": text}).encode()}, index)
            for index, text in enumerate(texts)
        ]
        effects = frontier(self.plan, number, rows)
        record = RootRecord(rows, len(rows) + len(bad))
        token = secrets.token_hex(4)
        return (queue or self.queue).admit(self.keys, self.plan, cursor, number, record, list(bad), effects, token)

    # -- workers

    def claim(self, me: str = "w1", *, token: str = "", queue: FleetQueue | None = None) -> Claim | None:
        """The next unit; the worker's lease is renewed before."""
        self.queue.beat(me, {}, 3600)
        self._claims += 1
        found = claim_one(queue or self.queue, me, token or f"{me}-{self._claims}", self.pairs, alone=True)
        assert found is None or isinstance(found, Claim)
        return found

    def take(self, me: str = "w1") -> Claim:
        """A unit that must be there."""
        found = self.claim(me)
        assert found is not None
        return found

    @property
    def pairs(self) -> list[tuple[str, str]]:
        return [(self.keys.run, name) for name in self.queues]

    def outcome(self, claim: Claim) -> Outcome:
        return anyio.run(process, self.plan, claim.unit, None)

    def commit(self, claim: Claim, me: str = "w1", *, token: str = "", queue: FleetQueue | None = None) -> bool:
        return (queue or self.queue).commit(claim, me, self.plan, self.outcome(claim), token or secrets.token_hex(4))

    def work_off(self, me: str = "w1") -> None:
        """Claims and commits until no unit is left."""
        while claim := self.claim(me):
            assert self.commit(claim, me)

    def lose(self, me: str) -> None:
        """The worker's lease is over, and somebody has seen it."""
        self.client.zadd("chainette:lease", {me: 1})
        assert self.queue.reap() == [me]

    # -- the state

    def state(self, name: str) -> str:
        found = self.client.hget(self.keys.state, name)
        assert found is None or isinstance(found, bytes)
        return (found or b"").decode()

    def waiting(self) -> list[str]:
        """Job ids in the queues, deepest node first."""
        return [
            job.decode(errors="replace")
            for queue in self.queues
            for job in cast("list[bytes]", self.client.lrange(f"rq:queue:{queue}", 0, -1))
        ]

    def held(self, me: str) -> set[str]:
        return {job.decode() for job in cast("set[bytes]", self.client.smembers(f"chainette:held:{me}"))}

    def notes(self) -> str:
        return str(self.client.xrange(self.keys.notes))


@contextmanager
def opened(client: Redis, plan: Plan, **keys: Any) -> Iterator[QueueRun]:
    """A run that is closed at the end, its workers gone."""
    run = QueueRun(client, plan, **keys)
    yield run
    run.queue.close(run.keys.run, int(run.state("epoch") or 0), run.state("owner"), run.queues)
    workers_gone(run.queue)
