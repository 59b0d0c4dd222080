"""Why a run does not move, from its state in Redis: each reason alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from chainette.fleet.protocol.keys import RunKeys, engine_of
from chainette.fleet.protocol.member_fields import Member, listed
from chainette.fleet.redis.fleet_view import LiveRun, Queue
from chainette.fleet.redis.stall_reasons import reasons
from tests.support.fleet import record

WORKER = {"w-1": Member(names="writer,python")}
SERVICES = {"sink-1": Member(kind="sink"), "coordinator-1": Member(kind="coordinator")}
EVERYBODY = WORKER | SERVICES
SERVED = {"order": "{}", "sink": "sink-1", "coordinator": "coordinator-1"}


def said(members: Mapping[str, Member] = EVERYBODY, queues: Iterable[Queue] = (), fields: Any = None, **more: Any) -> list[str]:
    info = record("r1", **{**SERVED, "window": "100", "live_rows": "5", **(fields or {})})
    return reasons(LiveRun(info, members, tuple(queues), **more))


def test_a_run_that_moves_has_no_reason_not_to() -> None:
    assert said(queues=[Queue("extract", "writer", waiting=3, units=1, rows=4)]) == []


def test_a_paused_run_says_so_with_what_paused_it_and_how_to_go_on() -> None:
    assert said(fields={"state": "paused"}) == ["run r1 is paused; go on: chainette unpause r1"]
    held = said(fields={"state": "paused", "reason": "sink on h: no space left"})
    assert held == ["run r1 is paused: sink on h: no space left; go on: chainette unpause r1"]


def test_a_cancelled_run_waits_for_its_sink_to_hear_of_it() -> None:
    assert said(fields={"state": "cancelled"}) == ["it was cancelled, and its sink has not heard of it yet"]


def test_an_engine_that_no_live_worker_serves_comes_with_the_command_that_starts_one() -> None:
    queues = [Queue("extract", "writer", waiting=1), Queue("grade", "judge", waiting=2), Queue("idle", "other", units=1)]
    assert said(queues=queues) == ["no live worker serves 'judge'; start: chainette worker --engine judge"]


def test_workers_that_the_caller_starts_itself_are_only_waited_for() -> None:
    live = LiveRun(record("r1", **SERVED), EVERYBODY, (Queue("grade", "judge", waiting=2),))
    assert reasons(live, own_workers=True) == ["the workers of 'judge' are not ready yet"]


def test_the_name_of_an_engine_is_quoted_in_the_command_and_read_back_from_queue_and_worker() -> None:
    keys = RunKeys("r1", 0)
    names = ("gpt-4.1", "meta/llama 3, v1")
    queues = [Queue("a", engine_of(keys.queue(name, "a")), waiting=1) for name in names]
    assert said(queues=queues) == [
        "no live worker serves 'gpt-4.1'; start: chainette worker --engine gpt-4.1",
        "no live worker serves 'meta/llama 3, v1'; start: chainette worker --engine 'meta/llama 3, v1'",
    ]
    serving = {"w-1": Member(names=listed(names))}
    assert said(serving | SERVICES, queues=queues) == []


def test_a_service_that_is_missing_comes_with_the_command_that_starts_it() -> None:
    assert said(WORKER) == [
        "no live coordinator; start: chainette coordinator",
        "no live sink; start: chainette sink",
    ]


def test_a_coordinator_that_is_done_is_not_missed() -> None:
    assert said(WORKER | {"sink-1": Member(kind="sink")}, fields={"total": "4"}) == []


def test_a_role_that_a_live_service_is_about_to_take_is_not_missed() -> None:
    assert said(fields={"sink": "sink-0"}) == []


def test_a_process_that_enqueued_and_is_gone_is_missed_by_its_run() -> None:
    info = record("r1", sink="enqueue-1", coordinator="enqueue-1")
    assert reasons(LiveRun(info, WORKER)) == ["the process that enqueued it is gone; go on: chainette resume DIR"]
    assert reasons(LiveRun(info, WORKER | {"enqueue-1": Member(kind="enqueue")})) == []


def test_what_live_workers_and_services_refuse_is_told_and_what_dead_ones_did_is_not() -> None:
    words = "chain.py has digest aaa here, but bbb where it was enqueued"
    assert said(fields={"refused:w-1": words, "refused:w-0": "of a worker that is gone"}) == [words]


def test_an_engine_that_keeps_failing_says_what_it_said() -> None:
    assert said(queues=[Queue("extract", "writer", delayed=3)], trouble="connection refused") == [
        "3 units waiting for an engine that does not answer: connection refused"
    ]


def test_a_sink_that_is_behind_is_told_from_a_window_that_is_full() -> None:
    assert said(results=1000, fields={"live_rows": "100"}) == ["the sink is behind: 1,000 results wait to be written"]
    still = {"live_rows": "100", "still": "4"}
    assert said(fields=still) == ["the window is full: 100 of 100 rows are between admission and the disk"]
    many = {"live_bytes": str(200 << 20), "window_bytes": str(128 << 20), "still": "4"}
    assert said(fields=many) == ["the window is full: rows of 200 MiB are between admission and the disk"]


def test_a_full_window_is_no_reason_where_rows_move_or_are_at_work() -> None:
    assert said(fields={"live_rows": "100", "still": "1"}) == []
    busy = [Queue("extract", "writer", units=1, rows=4)]
    assert said(fields={"live_rows": "100", "still": "60"}, queues=busy) == []


def test_a_damaged_record_names_its_fields_and_what_mends_it() -> None:
    words = "its record in Redis is damaged (cursor, digest); its sink rewrites it, or: chainette resume DIR"
    assert said(fields={"cursor": "many", "digest": "\0" * (5 << 20)}) == [words]
    assert said(fields={"counts": "[", "reason": "x"}) == [], "the sink writes these all the time"
