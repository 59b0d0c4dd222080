"""Units are claimed, committed and given back once, on a real Valkey."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import redis

from chainette.fleet.protocol.keys import RunKeys
from chainette.fleet.protocol.messages import Result
from chainette.fleet.protocol.queue_values import Claim, Turn
from chainette.fleet.redis.redis_queue import FleetQueue
from chainette.records import Unit
from tests.support.claims import claim_one
from tests.support.fleet import QueueRun, forked, opened
from tests.support.proxy import FaultProxy
from tests.support.queue_calls import loses_its_reply, refused, rows_of, unchanged, unchanged_but_held
from tests.support.valkey import Database

# -- claim


def test_units_come_deepest_first_and_oldest_first_of_a_node(run: QueueRun) -> None:
    run.admit()
    assert run.commit(run.take())
    found = [run.take("w2").unit for _ in range(2)]
    assert [(unit.node, unit.root) for unit in found] == [("second", 0), ("first", 1)]
    assert run.claim("w2") is None


def test_a_worker_without_a_lease_claims_nothing(run: QueueRun) -> None:
    refused(run, lambda: claim_one(run.queue, "nobody", "t", run.pairs))


def test_a_held_or_given_up_run_gives_no_units_and_another_run_does(run: QueueRun) -> None:
    with opened(run.client, run.plan, run="run-b") as other:
        other.admit()
        for state in ("paused", "cancelled"):
            run.queue.set_state(run.keys.run, state)
            assert run.claim("w1") is None
            assert len(run.waiting()) == (1 if state == "paused" else 0)
        run.queue.beat("w1", {}, 3600)
        claim = claim_one(run.queue, "w1", "t", [*run.pairs, *other.pairs])
        assert isinstance(claim, Claim) and claim.run == "run-b"


def test_a_held_run_still_takes_commits_and_a_given_up_one_does_not(run: QueueRun) -> None:
    run.admit()
    one, other = run.take(), run.take()
    run.queue.set_state(run.keys.run, "paused")
    assert run.commit(one)
    run.queue.set_state(run.keys.run, "cancelled")
    assert not unchanged_but_held(run, lambda: run.commit(other))
    assert run.held("w1") == set()


def test_a_claim_whose_reply_is_lost_is_handed_back_in_front_and_once(
    run: QueueRun, lossy: FleetQueue, proxy: FaultProxy
) -> None:
    run.admit()
    known = run.take("w1")
    waiting = run.waiting()
    loses_its_reply(proxy, lossy, "claim", lambda: run.claim("w1", queue=lossy))
    assert run.waiting() == [] and len(run.held("w1")) == 2
    assert run.queue.reconcile("w1", [known]) == 1
    assert unchanged(run, lambda: run.queue.reconcile("w1", [known])) == 0
    assert run.waiting() == waiting and run.held("w1") == {known.job}
    assert run.commit(known)


def test_a_unit_that_was_lost_and_claimed_again_by_a_reply_that_was_lost_too_comes_back(run: QueueRun) -> None:
    zombie = run.take("w1")
    run.lose("w1")
    again = run.take("w1")  # the worker never sees this reply
    assert again.job == zombie.job
    assert run.queue.reconcile("w1", [zombie]) == 1
    assert run.waiting() == [zombie.job]


def test_an_id_of_an_old_epoch_is_passed_over(run: QueueRun) -> None:
    [old] = run.waiting()
    run.raise_epoch()
    run.admit()
    run.client.lpush(f"rq:queue:{run.queues[-1]}", old)
    assert run.take().epoch == 1
    assert run.claim() is None and not run.queue.progress(run.keys).damaged


def test_an_id_that_stands_twice_in_a_queue_is_given_out_once(run: QueueRun) -> None:
    [job] = run.waiting()
    run.client.rpush(f"rq:queue:{run.queues[-1]}", job)
    claim = run.take()
    assert run.claim() is None
    assert run.commit(claim)


# -- commit


def test_a_commit_that_is_repeated_happens_once(run: QueueRun) -> None:
    claim = run.take()
    assert run.commit(claim, token="once")
    assert not unchanged(run, lambda: run.commit(claim, token="twice"))
    assert [entry.token for entry in run.drain()] == ["once"]
    run.work_off()
    [last] = run.drain()
    assert last.done and rows_of(run, "second") == ["0", "1", "2", "3"]


def test_a_commit_whose_reply_is_lost_has_happened(run: QueueRun, lossy: FleetQueue, proxy: FaultProxy) -> None:
    claim = run.take()
    loses_its_reply(proxy, lossy, "commit", lambda: run.commit(claim, token="lost", queue=lossy))
    assert not unchanged(run, lambda: run.commit(claim, token="again"))
    assert [entry.token for entry in run.drain()] == ["lost"]
    assert len(run.waiting()) == 1 and run.held("w1") == set()


def test_a_commit_of_a_worker_that_was_thought_dead_is_refused(run: QueueRun) -> None:
    zombie = run.take("w1")
    run.lose("w1")
    assert not unchanged(run, lambda: run.commit(zombie, "w1"))
    claim = run.take("w2")
    assert claim.job == zombie.job
    assert not unchanged(run, lambda: run.commit(zombie, "w1"))
    assert run.commit(claim, "w2")
    assert len(run.drain()) == 1


@pytest.mark.parametrize("late", ["start", "commit", "fail", "release", "bury", "split"])
def test_what_a_worker_does_late_leaves_the_unit_that_it_has_claimed_again_in_its_hands(run: QueueRun, late: str) -> None:
    zombie = run.take("w1")
    run.lose("w1")
    again = run.take("w1")
    assert again.job == zombie.job and again.token != zombie.token
    calls: dict[str, Callable[[], bool]] = {
        "start": lambda: run.queue.start(zombie, "w1"),
        "commit": lambda: run.commit(zombie),
        "fail": lambda: run.queue.fail(zombie, "w1", 0.0, "late"),
        "release": lambda: run.queue.release(zombie, "w1"),
        "bury": lambda: run.queue.bury(zombie, "w1", "late"),
        "split": lambda: run.queue.split(zombie, "w1", run.plan),
    }
    assert not unchanged(run, calls[late])
    run.lose("w1")  # it dies for good, and the unit is not forgotten
    assert run.waiting() == [again.job] or run.take("w2").job == again.job


# -- fail, release


@pytest.mark.parametrize("name", ["fail", "release"])
def test_a_unit_that_is_handed_back_comes_back_once(run: QueueRun, lossy: FleetQueue, proxy: FaultProxy, name: str) -> None:
    run.admit()
    order = run.waiting()

    def hand_back(queue: FleetQueue, claim: Claim) -> bool:
        return queue.fail(claim, "w1", 0.0, "no answer") if name == "fail" else queue.release(claim, "w1")

    claim = run.take("w1")
    assert hand_back(run.queue, claim)
    assert not unchanged(run, lambda: hand_back(run.queue, claim))
    assert not unchanged(run, lambda: run.commit(claim))
    claim = run.take("w1")
    loses_its_reply(proxy, lossy, name, lambda: hand_back(lossy, claim))
    assert not unchanged(run, lambda: hand_back(run.queue, claim))
    claim = run.take("w1")
    run.lose("w1")
    assert not unchanged(run, lambda: hand_back(run.queue, claim))
    claim = run.take("w1")
    old, run.keys = run.keys, RunKeys(run.keys.run, 0)
    run.raise_epoch()
    assert not unchanged_but_held(run, lambda: hand_back(run.queue, claim))
    assert run.waiting() == [] != order
    assert old.epoch == 0 and not list(run.client.scan_iter("rq:scheduled:*"))


def test_a_released_unit_goes_to_the_front_and_costs_no_strike(run: QueueRun) -> None:
    run.admit()
    order = run.waiting()
    for _ in range(5):
        assert run.queue.release(run.take(), "w1")
    assert run.waiting() == order
    assert run.client.hget(f"rq:job:{order[0]}", "strikes") == b"0"


def test_a_failed_unit_waits_for_its_time_and_costs_no_strike(run: QueueRun) -> None:
    claim = run.take()
    assert run.queue.fail(claim, "w1", 3600.0, "the engine is away")
    assert run.claim() is None
    scheduled = f"rq:scheduled:{run.queues[-1]}"
    due = run.client.zscore(scheduled, claim.job)
    assert isinstance(due, float) and due > server_time(run.client) + 3000
    run.client.zadd(scheduled, {claim.job: 1})
    again = run.take()
    assert again.job == claim.job and again.turn is Turn.JOB
    assert run.client.hget(f"rq:job:{claim.job}", "strikes") == b"0"
    assert "the engine is away" in run.notes()


def server_time(client: redis.Redis) -> float:
    found = client.time()
    assert isinstance(found, tuple)
    return float(found[0])


# -- forks and joins


def test_nested_forks_come_together_in_one_join_each_with_all_that_their_branches_gave(database: Database) -> None:
    with opened(database.client, forked()) as run:
        run.admit(["ab", "xy", "c", "d"])
        joins: list[Unit] = []
        while claim := run.claim():
            if claim.unit.node in run.plan.forks:
                joins.append(claim.unit)
            assert run.commit(claim)
        assert [entry.done for entry in run.drain()].count(True) == 1
        inner, outer = joins
        assert (set(inner.partials), set(outer.partials)) == ({"deep", "wide"}, {"split", "nested"})
        assert inner.stopped == ["1"] == outer.stopped
        letters = ["0~0", "0~1", "1~0", "1~1", "2~0", "3~0"]
        assert sorted(row.row_id for row in outer.partials["split"]) == letters
        assert sorted(row.row_id for row in inner.partials["wide"]) == letters
        assert (
            [row.row_id for row in outer.partials["nested"]]
            == ["0", "2", "3"]
            == [row.row_id for row in inner.partials["deep"]]
        )
        assert sorted(rows_of(run, max(node for node in run.plan.nodes if node.startswith("second")))) == ["0", "2", "3"]
        assert run.entries[-1].done


def test_units_of_a_fork_taken_in_any_order_by_workers_that_die_come_to_the_same(database: Database) -> None:
    import random

    def results(seed: int | None) -> list[tuple[str, str, bytes]]:
        chance = random.Random(seed)
        with opened(database.client, forked()) as run:
            run.admit(["ab", "xy", "c", "d"])
            for _ in range(500):
                me = f"w{chance.randrange(3)}"
                claim = run.claim(me)
                if claim is None:
                    break
                if seed is not None and claim.turn is Turn.JOB and chance.random() < 0.2:
                    run.lose(me)
                elif seed is not None and chance.random() < 0.3:
                    assert run.queue.release(claim, me)
                else:
                    assert run.commit(claim, me)
            else:
                pytest.fail("it did not end")
            run.drain()
            assert run.state("live_rows") == "0"
            found = [entry.message for entry in run.entries if isinstance(entry.message, Result)]
            return sorted((result.node, output.row_id, output.value) for result in found for output in result.outputs)

    whole = results(None)
    assert len(whole) > 20
    for seed in range(4):
        assert results(seed) == whole
