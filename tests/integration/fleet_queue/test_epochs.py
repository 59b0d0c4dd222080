"""Epochs of a run in a real Valkey, transition by transition.

Calls are repeated, late, of an old epoch, of another owner, or lose their reply. After each, the state in Redis is right, and
results happened once. The fixture `database` fails every test that leaves a key.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import redis

from chainette.fleet.protocol.keys import SPENT, RunKeys
from chainette.fleet.protocol.queue_values import AdmissionResult, Asker, Cancelled, Lost
from chainette.fleet.redis.redis_queue import FleetQueue
from chainette.fleet.redis.run_registry import Board, Order, Role
from chainette.io.rundir.event_types import EngineReleased
from tests.support.fleet import QueueRun, opened, snapshot
from tests.support.proxy import FaultProxy
from tests.support.queue_calls import loses_its_reply, refused, rows_of, unchanged, unchanged_but_held
from tests.support.valkey import Database

# -- install, attach, close


def test_an_epoch_is_installed_once_however_often_it_is_asked_for(run: QueueRun) -> None:
    unchanged(run, run.install)
    run.owner = "owner-2"
    refused(run, run.install)
    run.owner, run.anchor = "owner-1", (run.anchor[0], "another anchor")
    refused(run, run.install)
    run.keys = RunKeys(run.keys.run, -1)
    refused(run, run.install)
    run.keys = RunKeys(run.keys.run, 0)


def test_an_epoch_whose_install_lost_its_reply_is_the_same_one(run: QueueRun, lossy: FleetQueue, proxy: FaultProxy) -> None:
    run.keys, run.anchor = RunKeys(run.keys.run, 1), (run.anchor[0], "anchor-1")
    run.position = run.anchor
    loses_its_reply(proxy, lossy, "install", lambda: run.install(lossy))
    run.install()
    assert run.queue.read(run.keys, run.position) == []
    assert run.waiting() == [] and not list(run.client.scan_iter("rq:job:*"))


def test_a_new_epoch_refuses_what_the_old_one_gave_out_and_keeps_nothing_of_it(run: QueueRun) -> None:
    claim = run.take("w1")
    run.admit()
    old = run.keys
    run.raise_epoch()
    assert not unchanged_but_held(run, lambda: run.commit(claim))
    assert run.waiting() == [] and not list(run.client.scan_iter(f"{old.prefix}*"))
    assert not list(run.client.scan_iter("rq:job:*"))
    assert (run.state("cursor"), run.state("live_rows"), run.state("state")) == ("0", "0", "running")
    with pytest.raises(Lost):
        run.queue.read(old, ("0-1", "anchor-0"))
    assert run.admit() is AdmissionResult.OK
    run.work_off()
    run.drain()
    assert rows_of(run, "first") == ["0", "1", "2", "3"] == rows_of(run, "second")


@pytest.mark.parametrize("garbage", ["", "x", "-7", "0x1", "1e3", "nan", "inf", 2**20 + 1, 2**53, "9" * 40])
def test_an_epoch_that_nobody_can_have_begun_is_replaced_and_takes_nothing_out_of_what_closed_runs_spent(
    run: QueueRun, garbage: str | int
) -> None:
    run.client.hset(SPENT, "e1", "5 5 5 5")
    run.client.hset(run.keys.state, mapping={"epoch": garbage, "used:e1": "2 2 2 2"})
    assert run.queue.latest_epoch(run.keys) == -1
    run.keys = RunKeys(run.keys.run, 1)
    run.queue.install(run.keys.run, 1, run.owner, "anchor-1", run.queues, {"window": 8, "used:e1": "1 1 1 1"})
    assert run.queue.latest_epoch(run.keys) == 1
    assert run.client.hget(SPENT, "e1") == b"5 5 5 5"


def test_a_later_epoch_is_not_replaced(run: QueueRun) -> None:
    run.client.hset(run.keys.state, "epoch", 2**20)
    assert run.queue.latest_epoch(run.keys) == 2**20
    run.keys = RunKeys(run.keys.run, 1)
    refused(run, run.install)
    run.client.hset(run.keys.state, "epoch", 1)


def test_an_epoch_without_a_budget_does_not_keep_that_of_the_epoch_before(run: QueueRun) -> None:
    """Else workers would reserve by it, and the sink, which has none, would wait for them for ever."""
    run.client.hset(run.keys.state, mapping={"budget": "[[1,-1,-1,-1]]", "used": "1 0 0 0"})
    run.raise_epoch()
    assert not run.client.hexists(run.keys.state, "budget") and run.state("used") == "1 0 0 0"


def test_a_run_that_was_given_up_leaves_a_tombstone_that_no_sink_and_no_command_brings_back(run: QueueRun) -> None:
    run.admit()
    run.take()
    run.queue.set_state(run.keys.run, "cancelled")
    run.queue.set_state(run.keys.run, "cancelled")
    refused(run, lambda: run.queue.set_state(run.keys.run, "running"))
    before = snapshot(run.client)
    with pytest.raises(Cancelled):
        run.queue.install(run.keys.run, 1, "owner-2", "anchor-1", run.queues, {"window": 1})
    assert snapshot(run.client) == before
    assert 604_000 < run.client.ttl(run.keys.state) <= 604_800


def test_of_a_run_that_was_given_up_stays_for_a_week_what_its_sink_may_still_read(run: QueueRun) -> None:
    run.admit()
    assert run.commit(run.take("w1"))
    run.queue.fail(run.take("w1"), "w1", 3600.0, "away")
    run.take("w1")
    with opened(run.client, run.plan, run="run-a2") as other:
        other.admit()
        theirs = {key: value for key, value in snapshot(run.client).items() if b"run-a2" in key}
        run.queue.set_state(run.keys.run, "cancelled")
        assert {key: value for key, value in snapshot(run.client).items() if b"run-a2" in key} == theirs
    ours = {key for key in run.client.scan_iter("*run-a*") if b"rq:workers:" not in key}
    prefix = run.keys.prefix.encode()
    kept = {prefix + name for name in (b"stream", b"live", b"out", b"r:0", b"r:1")}
    assert ours == kept | {run.keys.state.encode(), run.keys.notes.encode(), f"{run.keys.order}:cancel".encode()}
    assert all(0 < run.client.ttl(key) <= 7 * 86400 for key in ours)
    assert len(run.drain()) == 1
    run.client.delete(run.keys.state)  # as after that week
    assert run.queue.runs() == [] and not run.client.exists("chainette:runs")
    run.install()


def test_no_state_is_written_for_a_run_that_is_not_there(run: QueueRun) -> None:
    refused(run, lambda: run.queue.set_state("no-such-run", "paused"))
    with pytest.raises(redis.ResponseError, match="no such state"):
        unchanged(run, lambda: run.queue.set_state(run.keys.run, "on fire"))


def test_a_sink_attaches_only_where_the_stream_continues_what_is_durable(run: QueueRun) -> None:
    for epoch, position in ((0, ("0-1", "wrong")), (0, ("7-1", "anchor-0")), (1, run.anchor), (-1, run.anchor)):
        refused(run, lambda epoch=epoch, position=position: run.queue.attach(run.keys.run, epoch, "owner-2", position))  # type: ignore[misc]
    refused(run, lambda: run.queue.attach("no-such-run", 0, "owner-2", run.anchor))
    run.queue.attach(run.keys.run, 0, "owner-2", run.anchor)
    unchanged(run, lambda: run.queue.attach(run.keys.run, 0, "owner-2", run.anchor))
    refused(run, lambda: run.queue.ack(run.keys, "owner-1", run.anchor, [0]))
    refused(run, run.close)
    run.owner = "owner-2"


def test_a_closed_run_is_gone_and_may_be_closed_again(run: QueueRun) -> None:
    run.take("w1")
    for epoch, owner in ((1, "owner-1"), (0, "owner-2")):
        refused(run, lambda epoch=epoch, owner=owner: run.queue.close(run.keys.run, epoch, owner, run.queues))  # type: ignore[misc]
    run.close()
    theirs = {b"chainette:lease", b"chainette:workers", b"chainette:held:w1", b"rq:workers", b"rq:worker:w1"}
    assert set(snapshot(run.client)) <= theirs
    run.close()


def test_a_run_is_closed_though_the_reply_is_lost(run: QueueRun, lossy: FleetQueue, proxy: FaultProxy) -> None:
    again = QueueRun(run.client, run.plan, run="run-b")
    arguments = (again.keys.run, 0, again.owner, again.queues)
    loses_its_reply(proxy, lossy, "close", lambda: lossy.close(*arguments))
    lossy.close(*arguments)
    assert not list(run.client.scan_iter("*run-b*"))
    assert run.take()  # the other run is as it was


def test_nothing_comes_back_of_a_run_that_was_closed_under_a_workers_hands(run: QueueRun) -> None:
    claim, late = run.take("w1"), run
    run.close()
    assert not run.commit(claim) and not run.queue.fail(claim, "w1", 0.0, "late") and not run.queue.release(claim, "w1")
    run.queue.note(run.keys.run, EngineReleased(engine="late"))
    late.lose("w1")
    assert snapshot(run.client) == {}


@pytest.mark.parametrize("moment", ["closed", "risen"])
@pytest.mark.parametrize("transition", ["reap", "reconcile"])
def test_a_unit_of_a_run_that_went_on_is_not_put_back(run: QueueRun, moment: str, transition: str) -> None:
    claim = run.take("w1")
    kept = run.client.dump(f"rq:job:{claim.job}")
    assert isinstance(kept, bytes)
    run.close() if moment == "closed" else run.raise_epoch()
    run.client.restore(f"rq:job:{claim.job}", 0, kept)  # as before the sweep came to it
    if transition == "reap":
        run.lose("w1")
    else:
        assert run.queue.reconcile("w1") == 0
    assert run.waiting() == []
    run.client.delete(f"rq:job:{claim.job}")


# -- notes


def test_notes_come_in_order_and_what_is_no_event_is_passed_over(run: QueueRun) -> None:
    for engine in ("a", "b"):
        run.queue.note(run.keys.run, EngineReleased(engine=engine))
    run.client.xadd(run.keys.notes, {"kind": "event", "text": "{broken"})
    run.client.xadd(run.keys.notes, {"other": "thing"})
    after, events = run.queue.notes(run.keys.run, "0-0")
    assert events == [EngineReleased(engine="a"), EngineReleased(engine="b")]
    assert run.queue.notes(run.keys.run, after) == (after, [])


def test_commands_that_meet_a_key_of_another_type_are_repeated_at_once(run: QueueRun, database: Database) -> None:
    database.may_leave("chainette:*")
    board = Board(run.client)

    def spoiled(key: str, call: Callable[[], object]) -> object:
        run.client.delete(key)
        run.client.set(key, "of another type")
        return call()

    spoiled("chainette:runs", lambda: board.ask("run-c", Order(chain_ref="c", digest="d", inputs=("i",), directory="o")))
    assert board.run("run-c") is not None
    spoiled("chainette:runs", lambda: board.say("run-c", {"counts": "{}"}))
    assert run.client.sismember("chainette:runs", "run-c")
    run.client.hset("chainette:run:run-c", Role.SINK.value, "s0")
    assert spoiled("chainette:lease", lambda: board.take("run-c", Role.SINK, "s1"))
    board.say(run.keys.run, {"counts": "{}"})  # so that it is among the runs again
    spoiled(run.keys.notes, lambda: run.queue.note(run.keys.run, EngineReleased(engine="e")))
    assert len(run.queue.notes(run.keys.run, "0-0")[1]) == 1
    run.client.delete("chainette:run:run-c", "chainette:order:run-c")
    run.client.srem("chainette:runs", "run-c")


def test_damaged_answers_are_forgotten_and_cost_no_epoch(run: QueueRun) -> None:
    """A key of another type, counts that are none, and an answer that is longer than any."""
    one, two, three = (number * 16 for number in (b"1", b"2", b"3"))
    run.queue.share(run.keys, "w1", [], [(one, b"answer")])
    for name in ("answers:old", "asking"):
        run.client.set(f"{run.keys.prefix}{name}", "garbage")
    run.client.hset(f"{run.keys.prefix}answers:new", mapping={"bytes": "many", two: b"x" * (65 << 20)})
    assert run.queue.share(run.keys, "w1", [one, two, three]) == [b"answer", Asker.HERE, Asker.HERE]
    run.queue.share(run.keys, "w1", [], [(two, b"other")])
    assert run.queue.share(run.keys, "w1", [two]) == [b"other"] and not run.state("damaged")
    run.client.hset(f"{run.keys.prefix}answers:new", one, b"ELSEWHERE")  # else its rows would wait for ever
    assert run.queue.share(run.keys, "w1", [one]) == [b"ELSEWHERE"]
