"""Garbage in any key costs at most its run: whoever reads Redis goes on, and other runs end whole."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import redis.exceptions
from chainette_workers.metrics.endpoint import targets
from chainette_workers.metrics.overview import Overview
from chainette_workers.service.service import Handed, Places, Service
from chainette_workers.worker.enqueued_chains import Chains

from chainette.cli.screen.fleet_screen import FleetView, RunView
from chainette.fleet.protocol.messages import BadMessage
from chainette.fleet.protocol.queue_values import Cancelled, Lost
from chainette.fleet.protocol.seals import NoKey
from chainette.fleet.redis.connect import is_damage
from chainette.fleet.redis.redis_queue import FleetQueue
from chainette.fleet.redis.run_registry import Board, Role
from chainette.fleet.redis.stall_reasons import reasons
from tests.support.fleet import QueueRun, opened, straight, work
from tests.support.garbage import Put, global_garbage, run_garbage
from tests.support.tools import many
from tests.support.valkey import Database


@dataclass(frozen=True)
class NoDuty:
    """Looks at every run, and takes none."""

    places: Places
    role: ClassVar[Role] = Role.SINK

    def wants(self, handed: Handed) -> bool:
        str(handed.order)
        return False

    def serve(self, handed: Handed, queue: FleetQueue, board: Board) -> None:
        raise AssertionError


def read_everything(run: QueueRun, folder: Path) -> None:
    """The reads of commands, metrics, services and workers, as often as they do them."""
    board, client = Board(run.client), run.client
    fleet = board.fleet()
    for live in fleet.runs:
        assert all(isinstance(reason, str) for reason in reasons(live))
        RunView(board, live.info.run).draw(100, 40)
    FleetView(board).draw(100, 40)
    list(Overview(lambda: 0.0).values(fleet))
    targets(board.members(), NoKey(), anywhere=True)
    for info in FleetQueue(client).runs():
        Chains(folder, ("python",), None).plan_of(info)
    service = Service(board, FleetQueue(client), NoDuty(Places(folder, folder, folder)))
    service._quiet_until = 0.0
    service._look()
    FleetQueue(client).workers()


def sink_reads(run: QueueRun) -> None:
    """The reads of the run's own sink and coordinator: they say that it is damaged, and nothing else."""
    calls: list[Callable[[], Any]] = [
        lambda: run.queue.progress(run.keys),
        lambda: run.queue.read(run.keys, run.position),
        lambda: run.queue.notes(run.keys.run, "0-0"),
        lambda: run.queue.record(run.keys, 0),
        lambda: run.queue.missing(run.keys, [0]),
        lambda: run.queue.ack(run.keys, run.owner, run.position, []),
        lambda: run.queue.attach(run.keys.run, 0, run.owner, run.position),
    ]
    for call in calls:
        try:
            call()
        except (BadMessage, Lost, Cancelled):
            pass
        except redis.exceptions.ResponseError as error:
            assert is_damage(error) or "argument" in str(error), error


def puts(run: QueueRun) -> dict[str, Put]:
    return dict([*global_garbage(), *run_garbage(run.keys, run.queues, run.waiting())])


#: Parts of the matrix, each in a test of its own, with a mixture of keys and values; and the number of them that are tried.
PARTS = 24
TRIED = many(1, 3, PARTS)


@pytest.mark.long
@pytest.mark.parametrize("part", range(TRIED))
def test_garbage_in_any_key_costs_at_most_its_run(database: Database, tmp_path: Path, part: int) -> None:
    client = database.client
    with opened(client, straight()) as bad:
        bad.admit()
        names = [*puts(bad)]
        random.Random(0).shuffle(names)
        names = names[part::PARTS]
        client.flushall()
    for number, name in enumerate(names):
        bad, good = QueueRun(client, straight()), QueueRun(client, straight(), run="run-b")
        bad.admit()
        good.admit()
        puts(bad)[name](client)
        try:
            read_everything(good, tmp_path)
            sink_reads(bad)
            Board(client).say("run-b", {"window": good.window})  # its sink does so: a lost name comes back
            if number % 8 == 0:
                work(good, lambda good=good: not good.waiting() and not client.scard("chainette:held:worker"))  # type: ignore[misc]
            good.work_off()
            good.drain()
            assert not good.queue.progress(good.keys).live, "the other run does not end"
            assert "run-b" in {info.run for info in good.queue.runs()}
            read_everything(good, tmp_path)
        except BaseException as error:
            error.add_note(name)
            raise
        client.flushall()
    assert len(names) > 20


@pytest.mark.parametrize(
    "spoiled", ["chainette:held:w1", "chainette:worker:w1", "rq:worker:w1", "rq:queue:{queue}", "rq:job:{job}"]
)
def test_a_key_of_another_type_does_not_keep_a_dead_worker_from_being_reaped(database: Database, spoiled: str) -> None:
    with opened(database.client, straight()) as run:
        run.admit()
        job = run.take("w1").job
        key = spoiled.format(queue=run.queues[-1], job=job)
        run.client.delete(key)
        run.client.set(key, "ours not")
        run.client.zadd("chainette:lease", {"w1": 1})
        assert run.queue.reap() == ["w1"] and run.queue.reap() == []


@pytest.mark.parametrize(
    "spoiled", ["chainette:lease", "chainette:workers", "chainette:worker:w1", "rq:worker:w1", "rq:workers"]
)
def test_a_heartbeat_that_meets_a_key_of_another_type_is_the_first_of_its_worker(database: Database, spoiled: str) -> None:
    with opened(database.client, straight()) as run:
        run.client.set(spoiled, "ours not")
        assert not run.queue.beat("w1", {}) and run.queue.beat("w1", {})
        assert run.queue.leave("w1")
