"""The fleet's view, against a queue whose content the test knows."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator

import pytest

from chainette.fleet.protocol.member_fields import Member
from chainette.fleet.redis.cached_view import CachedView
from chainette.fleet.redis.fleet_view import LiveRun, look
from tests.support.cli import until
from tests.support.fleet import QueueRun, opened, straight, work
from tests.support.proxy import FaultProxy
from tests.support.valkey import Database, connect


@pytest.fixture
def run(database: Database) -> Iterator[QueueRun]:
    with opened(database.client, straight()) as run:
        yield run


def seen(run: QueueRun) -> LiveRun:
    [found] = look(run.client).runs
    return found


def units(run: QueueRun) -> dict[str, int]:
    return {queue.node: queue.waiting for queue in seen(run).queues}


def test_every_node_of_a_run_is_there_before_anything_reached_it(run: QueueRun) -> None:
    assert units(run) == {"first": 0, "second": 0}
    found = seen(run)
    assert (found.done, found.expected, found.info.live_rows, found.results, found.lag_rows) == (0, 12, 0, 0, 0)
    assert found.lag_seconds == 0 and {queue.age for queue in found.queues} == {0}


def test_units_are_counted_where_they_wait_also_those_that_must_run_alone(run: QueueRun) -> None:
    run.admit()
    run.admit()
    assert units(run) == {"first": 2, "second": 0}
    claim = run.take("w1")
    assert units(run) == {"first": 1, "second": 0}
    assert run.commit(claim)
    assert units(run) == {"first": 1, "second": 1}
    queue = run.keys.queue("python", "second")
    run.client.lmove(f"rq:queue:{queue}", run.keys.solo(queue))
    assert units(run) == {"first": 1, "second": 1}


def test_units_that_are_put_off_are_counted_apart(run: QueueRun) -> None:
    run.admit()
    run.queue.fail(run.take(), "w1", 60, "no answer")
    assert units(run) == {"first": 0, "second": 0}
    assert {queue.node: queue.delayed for queue in seen(run).queues} == {"first": 1, "second": 0}


def test_a_unit_grows_old_by_the_clock_of_the_server(run: QueueRun) -> None:
    run.admit()
    run.admit()
    first = run.waiting()[0]
    run.client.hset(f"rq:job:{first}", "enqueued_at", "2020-01-01T00:00:00.000000Z")
    ages = {queue.node: queue.age for queue in seen(run).queues}
    assert ages["first"] > 86400 and ages["second"] == 0


def test_a_job_that_says_nothing_of_its_age_has_none(run: QueueRun) -> None:
    run.admit()
    run.client.hset(f"rq:job:{run.waiting()[0]}", "enqueued_at", "yesterday")
    assert {queue.age for queue in seen(run).queues} == {0}


def test_what_is_not_durable_is_counted_in_results_and_in_rows(run: QueueRun) -> None:
    run.admit(("a", "b", "c"))
    run.admit(("d",))
    run.work_off()
    found = seen(run)
    assert (found.results, found.lag_rows) == (4, 8)  # two nodes, four rows
    assert found.lag_seconds > 0
    run.drain()
    found = seen(run)
    assert (found.results, found.lag_rows, found.lag_seconds) == (0, 0, 0)
    run.admit(("e", "f"))
    run.work_off()
    assert seen(run).lag_rows == 4


def test_progress_counts_records_that_are_acknowledged(run: QueueRun) -> None:
    run.admit()
    run.admit()
    run.work_off()
    assert (seen(run).done, seen(run).info.live_rows) == (0, 8)
    run.drain()
    assert (seen(run).done, seen(run).info.live_rows) == (8, 0)


def test_the_last_root_may_be_smaller_than_the_others(run: QueueRun) -> None:
    run.client.hset(run.keys.state, "expected", 6)
    run.admit()
    run.admit(("e", "f"))
    run.work_off()
    run.drain()
    assert seen(run).done == 6


def test_progress_goes_on_where_an_earlier_epoch_ended(run: QueueRun) -> None:
    run.raise_epoch()
    run.client.hset(run.keys.state, "records_before", 8)
    assert seen(run).done == 8
    run.admit()
    run.work_off()
    run.drain()
    assert seen(run).done == 12


def test_the_size_of_an_input_without_an_end_is_known_once_it_ends(run: QueueRun) -> None:
    run.client.hset(run.keys.state, "expected", -1)
    run.admit()
    assert seen(run).expected is None
    run.queue.end_of_input(run.keys, 1)
    assert seen(run).expected == 4


def test_only_processes_whose_lease_holds_are_alive(run: QueueRun) -> None:
    run.queue.beat("w1", {"engines": "python", "metrics": "127.0.0.1:1"}, 3600)
    run.queue.beat("w2", {"engines": "python"}, 3600)
    run.client.zadd("chainette:lease", {"w2": 1})
    assert look(run.client).members == {"w1": Member(names="python", metrics="127.0.0.1:1")}
    assert run.queue.reap() == ["w2"]


def test_a_closed_run_is_not_there(run: QueueRun) -> None:
    run.close()
    assert look(run.client).runs == ()


def test_memory_is_what_redis_says(run: QueueRun) -> None:
    run.client.config_set("maxmemory", 1 << 30)
    try:
        found = look(run.client)
        assert found.memory_max == 1 << 30 and 1 << 16 < found.memory_used < 1 << 30
    finally:
        run.client.config_set("maxmemory", 0)


def test_a_redis_that_does_not_answer_is_no_look(run: QueueRun, proxy: FaultProxy) -> None:
    with connect(proxy.url, socket_timeout=0.3) as client:
        lookout = CachedView(client, clock=itertools.count(0, 10).__next__)
        until(lookout.look)  # on a busy machine, an answer may take longer than the client waits
        proxy.blackhole()
        assert lookout.look() is None
        proxy.heal()
        until(lookout.look)


def test_a_look_is_good_for_a_second(run: QueueRun) -> None:
    now = [0.0]
    lookout = CachedView(run.client, clock=lambda: now[0])
    before = lookout.look()
    run.admit()
    now[0] = 0.9
    assert lookout.look() is before
    now[0] = 1.1
    after = lookout.look()
    assert after is not None and before is not None
    assert dataclasses.asdict(after) != dataclasses.asdict(before)


def test_records_that_wait_for_a_later_phase_are_not_done(run: QueueRun) -> None:
    run.queue.bar(run.keys, run.owner, [run.keys.queue("python", "second")])
    run.admit()
    run.admit()
    work(run, until=lambda: run.queue.progress(run.keys).suspended == 2)
    run.drain()
    found = seen(run)
    assert (found.live_roots, found.info.live_rows, found.done) == (0, 0, 0)
