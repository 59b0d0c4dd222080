"""Traps by somebody who can write to Redis: never run, never in a loop, no row lost."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from chainette_workers.worker.engine_worker import EngineWorker

from chainette.fleet.protocol.queue_values import Claim
from chainette.fleet.redis.redis_queue import FleetQueue
from chainette.io.rundir.event_types import WorkerRefused
from chainette.records import CHAIN_INPUT, Row, Unit, encode
from tests.support.claims import claim_one
from tests.support.fleet import QueueRun, forked, opened, straight, work
from tests.support.valkey import Database

#: A JSON list in a list in a list, into which a careless decoder recurses.
DEEP = b"[" * 20_000 + b"]" * 20_000


class Bomb:
    """Runs a command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


@pytest.fixture
def run(database: Database) -> Iterator[QueueRun]:
    """A run of two Apply nodes whose first two roots wait."""
    with opened(database.client, straight()) as run:
        run.admit()
        run.admit()
        yield run


def is_idle(run: QueueRun) -> bool:
    """Whether no unit waits and none is in the worker's hands, at one moment."""
    at_once = run.client.pipeline()
    for queue in run.queues:
        at_once.llen(f"rq:queue:{queue}")
    at_once.scard("chainette:held:worker")
    return not any(at_once.execute())


def work_off(run: QueueRun, queue: FleetQueue | None = None) -> EngineWorker:
    """A real worker empties the queues."""
    worker = work(run, lambda: is_idle(run), queue)
    assert run.queue.workers() == {}, "the worker did not sign off"
    return worker


def node_rows(run: QueueRun) -> dict[str, list[str]]:
    """Row ids by node, out of the stream."""
    found: dict[str, list[str]] = {}
    for entry in run.entries:
        for output in getattr(entry.message, "outputs", []):
            found.setdefault(getattr(entry.message, "node", ""), []).append(output.row_id)
    return {node: sorted(ids) for node, ids in found.items()}


def forged(run: QueueRun, job: str, /, **fields: Any) -> bytes:
    """A job that says of itself all that one of the run does, but for `fields`."""
    told: dict[Any, Any] = {
        "run": run.keys.run,
        "epoch": "0",
        "root": "0",
        "scope": "",
        "fork": "",
        "rows": "1",
        "strikes": "0",
        "part": "0",
    }
    told |= {
        "origin": run.queues[-1],
        "status": "queued",
        "data": json.dumps(["chainette.run.process", None, [run.keys.run, 0, "first", 0, job], {}]),
    }
    run.client.hset(f"rq:job:{job}", mapping=told | fields)
    unit = Unit("first", 0, job, "", [Row("9", {CHAIN_INPUT: b'{"text": "x"}'})])
    run.client.set(f"{run.keys.prefix}u:{job}", encode(unit))
    return job.encode()


def plain_rq(run: QueueRun, job: str, **fields: Any) -> bytes:
    told: dict[Any, Any] = {"status": "queued", "origin": run.queues[-1], "created_at": "2026-11-23T00:00:00.000000Z"}
    run.client.hset(f"rq:job:{job}", mapping=told | fields)
    return job.encode()


def names(function: str, *arguments: str) -> str:
    return json.dumps([function, None, list(arguments), {}])


Make = Callable[[QueueRun, str], bytes]


def with_payload(value: bytes) -> Make:
    def make(run: QueueRun, touch: str) -> bytes:
        job = forged(run, "run-a_0_0_payload")
        run.client.set(f"{run.keys.prefix}u:{job.decode()}", value)
        return job

    return make


def payload_is_a_list(run: QueueRun, touch: str) -> bytes:
    job = forged(run, "run-a_0_0_list")
    key = f"{run.keys.prefix}u:{job.decode()}"
    run.client.delete(key)
    run.client.rpush(key, "x")
    return job


def payload_is_gone(run: QueueRun, touch: str) -> bytes:
    job = forged(run, "run-a_0_0_gone")
    run.client.delete(f"{run.keys.prefix}u:{job.decode()}")
    return job


def hash_is_a_string(run: QueueRun, touch: str) -> bytes:
    run.client.set("rq:job:text", "I am no hash", ex=3600)
    return b"text"


def fork_is_a_string(run: QueueRun, touch: str) -> bytes:
    run.client.set(f"{run.keys.prefix}f:0:forged", "I am no hash")
    return forged(run, "run-a_0_0_fork", fork="forged")


def fork_of_garbage(run: QueueRun, touch: str) -> bytes:
    run.client.hset(f"{run.keys.prefix}f:0:garbage", mapping={"base": b"\xc1\xc1", "p:1": b"\x81\xa3abc"})
    return forged(run, "run-a_0_0_fork", fork="garbage")


def taken_is_a_string(run: QueueRun, touch: str) -> bytes:
    run.client.set(f"{run.keys.prefix}t:run-a_0_0_taken", "I am no set")
    return forged(run, "run-a_0_0_taken", part="1", rows="0")


HOSTILE: dict[str, Make] = {
    "a counter of parts that is no number": lambda run, touch: forged(run, "run-a_0_0_count", part="x"),
    "a counter of parts that is a fraction": lambda run, touch: forged(run, "run-a_0_0_count", part="1.5"),
    "rows taken by parts, of another type": taken_is_a_string,
    "fewer rows than its parts left": lambda run, touch: forged(run, "run-a_0_0_rows", part="1", rows="3"),
    "os.system": lambda run, touch: plain_rq(run, "evil", data=names("os.system", touch)),
    "subprocess": lambda run, touch: plain_rq(run, "evil", data=names("subprocess.getoutput", touch)),
    "eval": lambda run, touch: plain_rq(run, "evil", data=names("eval", f"__import__('os').system({touch!r})")),
    "pickle": lambda run, touch: plain_rq(run, "evil", data=pickle.dumps(Bomb(touch))),
    "a callback": lambda run, touch: plain_rq(run, "evil", data=names("print"), success_callback_name="os.system"),
    "os.system in a job of the run": lambda run, touch: forged(run, "run-a_0_0_x", data=names("os.system", touch)),
    "os.system with our arguments": lambda run, touch: forged(
        run, "run-a_0_0_x", data=json.dumps(["os.system", None, [touch, 0, "first", 0, "x"], {}])
    ),
    "a pickle in a job of the run": lambda run, touch: forged(run, "run-a_0_0_x", data=pickle.dumps(Bomb(touch))),
    "a pickled instance": lambda run, touch: forged(
        run, "run-a_0_0_x", data=json.dumps(["chainette.run.process", "instance", ["run-a", 0, "first", 0, ""], {}])
    ),
    "keywords": lambda run, touch: forged(
        run, "run-a_0_0_x", data=json.dumps(["chainette.run.process", None, ["run-a", 0, "first", 0, ""], {"shell": touch}])
    ),
    "deep JSON": lambda run, touch: forged(run, "run-a_0_0_x", data=DEEP),
    "long JSON": lambda run, touch: forged(run, "run-a_0_0_x", data=names("chainette.run.process", "x" * 1_000_000)),
    "no data": lambda run, touch: forged(run, "run-a_0_0_x", data=b""),
    "garbage": lambda run, touch: forged(run, "run-a_0_0_x", data=b"\xff\x00\xfe"),
    "no hash": lambda run, touch: b"nowhere",
    "an empty id": lambda run, touch: b"",
    "an id of bytes": lambda run, touch: b"\xff\xfe\n*[id]",
    "a string for a hash": hash_is_a_string,
    "another run's job": lambda run, touch: forged(run, "run-b_0_0_x", run="run-b"),
    "another queue's job": lambda run, touch: forged(run, "run-a_0_0_x", origin="elsewhere"),
    "no root": lambda run, touch: forged(run, "run-a_0_0_x", root="none"),
    "a root that is no number": lambda run, touch: forged(run, "run-a_0_0_x", root="nan"),
    "a scope of bytes": lambda run, touch: forged(run, "run-a_0_0_x", scope=b"\xff"),
    "a payload of garbage": with_payload(b"\xc1\xc1\xc1"),
    "a payload of pickle": with_payload(pickle.dumps([1, 2, 3])),
    "a payload of bad text": with_payload(b"\x97\xa3a\xff\xff\x00\xa0\xa0\x90\x80\x90"),
    "a payload of another unit": with_payload(encode(Unit("second", 0, "", "", []))),
    "a deep payload": with_payload(b"\x91" * 5_000),
    "a payload that is a list": payload_is_a_list,
    "no payload": payload_is_gone,
    "a huge payload": with_payload(b"\x00" * 200_000),
    "a fork that is a string": fork_is_a_string,
    "a fork of garbage": fork_of_garbage,
    "a fork that is not there": lambda run, touch: forged(run, "run-a_0_0_x", fork="nowhere"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_job_is_buried_and_costs_nothing(run: QueueRun, tmp_path: Path, name: str) -> None:
    victim = tmp_path / "owned"
    job = HOSTILE[name](run, f"touch {victim}")
    run.client.lpush(f"rq:queue:{run.queues[-1]}", job)
    work_off(run, FleetQueue(run.client, max_bytes=100_000))
    assert not victim.exists()
    run.drain()
    assert sorted(node_rows(run).values()) == [[str(index) for index in range(8)]] * 2
    assert run.client.zscore(f"rq:failed:{run.queues[-1]}", job) is not None
    assert run.queue.progress(run.keys).live == set() and not run.queue.progress(run.keys).damaged
    _, events = run.queue.notes(run.keys.run, "0-0")
    [said] = [event for event in events if isinstance(event, WorkerRefused)]
    assert said.worker == "worker" and "buried" in said.reason and said.reason.isprintable()


def test_a_forged_unit_of_a_node_that_the_chain_has_not_is_buried(run: QueueRun) -> None:
    unit = Unit("nowhere", 0, "x", "", [Row("9", {CHAIN_INPUT: b"{}"})])
    job = forged(run, "run-a_0_0_x", data=json.dumps(["chainette.run.process", None, ["run-a", 0, "nowhere", 0, "x"], {}]))
    run.client.set(f"{run.keys.prefix}u:{job.decode()}", encode(unit))
    run.client.lpush(f"rq:queue:{run.queues[-1]}", job)
    work_off(run)
    run.drain()
    assert run.queue.progress(run.keys).live == set()
    assert run.client.hget("rq:job:run-a_0_0_x", "exc_info") == b"nowhere root 0: processing it failed: KeyError: 'nowhere'"


def test_many_hostile_jobs_in_front_do_not_stop_a_worker_nor_another_run(run: QueueRun, database: Database) -> None:
    for number in range(300):
        run.client.lpush(f"rq:queue:{run.queues[-1]}", plain_rq(run, f"evil-{number}", data=names("os.system", "true")))
    with opened(database.client, run.plan, run="run-b") as other:
        other.admit()
        work_off(run)
        work_off(other)
        run.drain()
        other.drain()
        assert not run.queue.progress(run.keys).live and not other.queue.progress(other.keys).live
    assert run.client.zcard(f"rq:failed:{run.queues[-1]}") == 300


@pytest.mark.parametrize("loss", ["payload", "payload of garbage", "hash", "huge"])
def test_a_unit_of_the_run_that_is_gone_is_said_and_not_waited_for(run: QueueRun, loss: str) -> None:
    first, _ = run.waiting()
    queue = FleetQueue(run.client, max_bytes=10) if loss == "huge" else run.queue
    match loss:
        case "payload":
            run.client.delete(f"{run.keys.prefix}u:{first}")
        case "payload of garbage":
            run.client.set(f"{run.keys.prefix}u:{first}", b"\xc1")
        case "hash":
            run.client.delete(f"rq:job:{first}")
    run.queue.beat("w1", {}, 3600)
    found = claim_one(queue, "w1", "t", run.pairs)
    assert found is None if loss == "huge" else isinstance(found, Claim)
    assert run.queue.progress(run.keys).damaged
    with pytest.raises(Exception, match="attach"):
        run.queue.attach(run.keys.run, 0, run.owner, run.anchor)  # its rows come back with a new epoch only
    run.raise_epoch()
    assert not run.queue.progress(run.keys).damaged


def test_a_join_that_nobody_can_read_is_said_and_not_waited_for(database: Database) -> None:
    with opened(database.client, forked()) as run:
        run.admit(["ab"])
        while not (joins := [job for job in run.waiting() if run.client.hget(f"rq:job:{job}", "fork")]):
            assert run.commit(run.take())
        fork = run.client.hget(f"rq:job:{joins[0]}", "fork")
        assert isinstance(fork, bytes)
        run.client.hset(f"{run.keys.prefix}f:0:{fork.decode()}", "base", b"\xc1")
        while claim := run.claim():
            assert run.commit(claim)
        assert "does not decode" in run.queue.progress(run.keys).damaged
