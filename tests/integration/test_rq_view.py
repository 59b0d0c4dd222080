"""Our keys as RQ's own classes and cleanups see them: waiting, started, scheduled and failed jobs, and workers."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from rq import Queue, Worker
from rq.job import Job
from rq.registry import FailedJobRegistry, StartedJobRegistry, clean_registries
from rq.serializers import JSONSerializer
from rq.worker import BaseWorker
from rq.worker_registration import clean_worker_registry

from chainette.fleet.protocol.queue_values import Claim
from tests.support.claims import claim_one
from tests.support.fleet import QueueRun, forked, opened, snapshot, straight
from tests.support.valkey import Database


@pytest.fixture
def run(database: Database) -> Iterator[QueueRun]:
    """A run of two Apply nodes whose first two roots wait."""
    with opened(database.client, straight()) as run:
        run.admit()
        run.admit()
        yield run


def queue_of(run: QueueRun) -> Queue:
    return Queue(run.queues[-1], connection=run.client, serializer=JSONSerializer)


def workers_of(run: QueueRun, queue: Queue | None = None) -> dict[str, BaseWorker]:
    found = Worker.all(run.client, queue=queue, serializer=JSONSerializer)
    return {worker.name: worker for worker in found}


def test_rq_reads_our_queues_and_jobs(run: QueueRun) -> None:
    claim = run.take("w1")
    queue = queue_of(run)
    [waiting] = run.waiting()
    assert (queue.count, queue.job_ids) == (1, [waiting])
    assert {found.name for found in Queue.all(connection=run.client)} == set(run.queues)
    job = Job.fetch(waiting, connection=run.client, serializer=JSONSerializer)
    assert (job.func_name, job.args, job.kwargs) == ("chainette.run.process", ["run-a", 0, "first", 1, ""], {})
    assert (job.origin, job.get_status(), job.description) == (run.queues[-1], "queued", "first root 1")
    assert job.created_at is not None and job.enqueued_at is not None
    started = Job.fetch(claim.job, connection=run.client, serializer=JSONSerializer)
    assert (started.get_status(), started.worker_name) == ("started", "w1") and started.started_at is not None
    with pytest.raises(TypeError, match="not callable"):
        job.perform()  # RQ's own worker can do nothing with it


def test_rq_shows_what_workers_hold_as_started_until_it_is_out_of_their_hands(run: QueueRun) -> None:
    registry = StartedJobRegistry(run.queues[-1], run.client, serializer=JSONSerializer)
    ends: dict[str, Callable[[Claim], object]] = {
        "commit": lambda claim: run.commit(claim),
        "release": lambda claim: run.queue.release(claim, "w1"),
        "fail": lambda claim: run.queue.fail(claim, "w1", 0.0, "away"),
        "reconcile": lambda claim: run.queue.reconcile("w1"),
        "death": lambda claim: run.lose("w1"),
    }
    for end in ("release", "fail", "reconcile", "death", "commit"):
        claim = run.take("w1")
        assert registry.get_job_ids() == [claim.job] and claim.job in registry, end
        ends[end](claim)
        assert registry.count == 0, end
    ahead = claim_one(run.queue, "w1", "t", run.pairs[1:], ahead=True)
    assert ahead is not None and registry.count == 1


def test_rq_shows_the_halves_of_a_cut_unit_and_not_the_unit(run: QueueRun) -> None:
    for me in ("d1", "d2", "d3"):
        run.take(me)
        run.lose(me)
    claim = run.take("w1")
    assert run.queue.split(claim, "w1", run.plan)
    assert StartedJobRegistry(run.queues[-1], run.client, serializer=JSONSerializer).count == 0
    assert run.client.llen(f"{run.keys.prefix}solo:{run.queues[-1]}") == 2


def test_rq_shows_a_unit_that_was_put_off_and_when_it_is_due(run: QueueRun) -> None:
    claim = run.take("w1")
    run.queue.fail(claim, "w1", 600.0, "the engine is away")
    registry = queue_of(run).scheduled_job_registry
    assert registry.get_job_ids() == [claim.job]
    due = registry.get_scheduled_time(claim.job)
    assert timedelta(minutes=9) < due - datetime.now(UTC) <= timedelta(minutes=10)
    assert Job.fetch(claim.job, connection=run.client, serializer=JSONSerializer).get_status() == "scheduled"
    run.client.zadd(registry.key, {claim.job: 1})
    while (again := run.take("w1")).job != claim.job:
        pass
    assert registry.count == 0 and again.job == claim.job


def test_rq_shows_a_buried_job_with_its_reason(run: QueueRun) -> None:
    told: dict[Any, Any] = {"status": "queued", "origin": run.queues[-1], "data": json.dumps(["os.system", None, ["true"], {}])}
    run.client.hset("rq:job:evil", mapping=told)
    run.client.lpush(f"rq:queue:{run.queues[-1]}", "evil")
    run.take()
    assert FailedJobRegistry(run.queues[-1], run.client, serializer=JSONSerializer).get_job_ids() == ["evil"]
    job = Job.fetch("evil", connection=run.client, serializer=JSONSerializer)
    assert job.get_status() == "failed" and run.client.hget("rq:job:evil", "exc_info") == b"it is not of run run-a"


def test_rq_shows_workers_with_what_they_serve_and_do(run: QueueRun) -> None:
    run.queue.beat("w1", {}, 3600)
    [worker] = workers_of(run).values()
    assert (worker.name, worker.pid, worker.hostname) == ("w1", os.getpid(), socket.gethostname())
    assert (worker.get_state(), worker.queue_names()) == ("idle", [])
    claim = run.take("w1")
    run.queue.beat("w1", {}, 3600, queues=run.pairs)
    worker = workers_of(run)["w1"]
    assert worker.get_state() == "busy" and worker.queue_names() == run.queues
    assert worker.birth_date is not None and worker.last_heartbeat is not None
    assert timedelta(0) <= datetime.now(UTC) - worker.last_heartbeat < timedelta(minutes=1)
    assert worker.birth_date <= worker.last_heartbeat
    assert set(workers_of(run, queue_of(run))) == {"w1"} and Worker.count(queue=queue_of(run)) == 1
    assert 60 < run.client.ttl("rq:worker:w1") <= 480
    run.commit(claim)
    run.queue.beat("w1", {}, 3600, queues=run.pairs)
    assert workers_of(run)["w1"].get_state() == "idle"
    assert workers_of(run)["w1"].birth_date == worker.birth_date


@pytest.mark.parametrize("end", ["leave", "death"])
def test_a_worker_that_is_gone_is_gone_for_rq_too(run: QueueRun, end: str) -> None:
    claim = run.take("w1")
    run.queue.beat("w1", {}, 3600, queues=run.pairs)
    if end == "death":
        run.lose("w1")
    else:
        run.queue.release(claim, "w1")
        assert run.queue.leave("w1")
    assert workers_of(run) == {}
    assert list(run.client.scan_iter("rq:worker*")) == []


def test_a_worker_is_shown_at_the_queues_of_live_runs_only(run: QueueRun) -> None:
    with opened(run.client, forked(), run="run-b") as other:
        run.queue.beat("w1", {}, 3600, queues=[*run.pairs, *other.pairs])
        assert workers_of(run)["w1"].queue_names() == [*run.queues, *other.queues]
        run.queue.beat("w1", {}, 3600, queues=other.pairs)
        assert workers_of(run)["w1"].queue_names() == other.queues and Worker.count(queue=queue_of(run)) == 0
    run.queue.beat("w1", {}, 3600)
    assert list(run.client.scan_iter("rq:workers:*")) == []


def test_a_closed_run_leaves_no_queue_of_rq_behind_while_its_workers_beat_on(run: QueueRun) -> None:
    run.take("w1")
    run.queue.beat("w1", {}, 3600, queues=run.pairs)
    run.close()
    run.queue.beat("w1", {}, 3600, queues=run.pairs)  # it has not seen yet that the run is gone
    left = set(run.client.scan_iter("rq:*"))
    assert left == {b"rq:workers", b"rq:worker:w1"}
    assert workers_of(run)["w1"].queue_names() == []


def test_queues_that_a_changed_chain_has_no_more_go_with_the_epoch(run: QueueRun) -> None:
    run.queue.fail(run.take(), "w1", 3600.0, "away")
    fields: dict[str, str | int] = {"window": 10}
    run.queue.install(run.keys.run, 1, run.owner, "anchor-1", ["python.other.run-a"], fields)
    assert {queue.name for queue in Queue.all(connection=run.client)} == {"python.other.run-a"}
    left = [key for name in run.queues for key in run.client.scan_iter(f"rq:*:{name}")]
    assert [key for key in left if not key.startswith(b"rq:workers:")] == []
    run.queue.close(run.keys.run, 1, run.owner, ["python.other.run-a"])


def test_rqs_cleanups_touch_nothing_of_ours(run: QueueRun) -> None:
    run.queue.beat("w1", {}, 3600)
    run.take("w1")
    run.queue.fail(run.take("w1"), "w1", 3600.0, "away")
    run.admit()
    run.queue.beat("w1", {}, 3600)
    before = snapshot(run.client)
    far = int(datetime.now(UTC).timestamp()) + 10**9
    for name in run.queues:
        queue = Queue(name, connection=run.client, serializer=JSONSerializer)
        clean_registries(queue)
        clean_worker_registry(queue)
        StartedJobRegistry(queue=queue).cleanup(timestamp=far)  # whatever its clock says
        for registry in (queue.started_job_registry, queue.scheduled_job_registry, queue.failed_job_registry):
            registry.get_job_ids()
        queue.intermediate_queue.cleanup(Worker([queue], connection=run.client, serializer=JSONSerializer), queue)
    workers_of(run)
    assert snapshot(run.client) == before
