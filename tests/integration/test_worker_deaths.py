"""A worker dies, or is told to end, at every point of a unit's life: no row is lost, and none is there twice."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
from chainette_workers.sink.redis_fleet import RedisFleet
from chainette_workers.worker.configuration import WorkerConfig
from redis import Redis

from chainette.fleet.protocol.queue_values import Claim
from chainette.fleet.redis.redis_queue import FleetQueue
from chainette.io.rundir.result import RunResult
from tests.integration.test_fleet_trouble import Background, Site
from tests.support.cli import REPOSITORY
from tests.support.doomed import POINTS
from tests.support.fleet import QueueRun, forked, opened, straight, work
from tests.support.patience import LONG
from tests.support.tools import some
from tests.support.valkey import Database


@pytest.fixture
def site(tmp_path: Path) -> Site:
    (tmp_path / "latency").write_text("0.01")
    return Site(tmp_path)


@contextmanager
def doomed(site: Site, url: str, point: str) -> Iterator[subprocess.Popen[bytes]]:
    """A worker that dies at the point. Units are claimed ahead only as long as the budget is not known."""
    config = WorkerConfig(url, ["writer", "judge"], str(site.path), None if "ahead" in point else 8)
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.doomed", point],
        stdin=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(REPOSITORY), *sys.path])},
        cwd=site.path,
    )
    assert process.stdin is not None
    with process:
        process.stdin.write(msgspec.json.encode(config) + b"\n")
        process.stdin.flush()
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.long
@pytest.mark.parametrize("point", some([*POINTS], 2))
def test_a_worker_that_dies_anywhere_costs_no_row(site: Site, database: Database, point: str) -> None:
    database.may_leave("chainette:lease", "chainette:worker*", "rq:worker*")  # until somebody reaps it
    run = Background(site, RedisFleet(database.url))
    with doomed(site, database.url, point) as process:
        assert process.wait(LONG) == -signal.SIGKILL
    with site.worker(database.url):
        result = run.end()
    assert isinstance(result, RunResult), result
    site.require_whole(result)
    assert {event.get("epoch", 0) for event in site.events("unit_committed")} == {0}
    lost = {event["worker"] for event in site.events("worker_lost")}
    assert lost <= set(result.metadata["workers"])
    if point != "while handing back":  # the run may be over before anybody misses that one
        assert len(result.metadata["workers"]) == len(lost) + 1


class Forgetful(FleetQueue):
    """Redis goes back to before the first commit, while nobody talks to it."""

    def __init__(self, connection: Redis) -> None:
        super().__init__(connection)
        self.forgotten: Claim | None = None

    def commit(self, claim: Claim, *arguments: Any) -> bool:
        if self.forgotten is None:
            self.forgotten = claim
            return True
        return super().commit(claim, *arguments)


def test_a_unit_whose_commit_redis_forgot_is_done_again_by_the_worker_that_lives(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chainette_workers.worker.engine_worker._AGREEMENT", 0.05)
    queue = Forgetful(database.client)
    with opened(database.client, straight()) as run:
        run.admit()
        work(run, lambda: bool(queue.forgotten) and not places(run), queue)
        assert [entry.root for entry in run.drain() if entry.done] == [0]


def places(run: QueueRun) -> dict[str, int]:
    """In how many queues each unit of the run is that is not done."""
    waiting = run.waiting()
    jobs = {key.decode().removeprefix("rq:job:") for key in cast("list[bytes]", run.client.keys("rq:job:*"))}
    return {job: waiting.count(job) for job in jobs | {*waiting}}


@pytest.mark.long
def test_a_worker_that_is_stopped_at_any_moment_leaves_every_unit_in_exactly_one_queue(database: Database) -> None:
    chance = random.Random(3)
    for trial in range(20):
        with opened(database.client, forked(), run=f"run-{trial}") as run:
            for _ in range(4):
                run.admit(["ab", "cX", "d", "ef"])
            enough = chance.randrange(1, 30)
            work(run, lambda: database.client.xlen(run.keys.stream) > enough)  # noqa: B023
            assert run.queue.workers() == {} and not run.held("worker")
            found = places(run)
            assert set(found.values()) <= {1}, found
            work(run, lambda: not run.queue.progress(run.keys).live or not places(run))
            run.drain()
            assert run.queue.progress(run.keys).live == set() and not run.queue.progress(run.keys).damaged
