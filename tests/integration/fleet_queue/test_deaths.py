"""Workers that die, and the strikes that their units get, on a real Valkey."""

from __future__ import annotations

import threading

import pytest

from chainette.fleet.protocol.member_fields import Member
from chainette.fleet.protocol.messages import Result
from chainette.fleet.protocol.queue_values import Claim, Drain, Turn
from chainette.fleet.redis.redis_queue import FleetQueue
from chainette.records import Reason
from chainette.run.process import poisoned
from tests.support.claims import claim_one
from tests.support.fleet import QueueRun, opened, snapshot, straight
from tests.support.proxy import FaultProxy
from tests.support.queue_calls import loses_its_reply, refused, rows_of, unchanged
from tests.support.valkey import Database

# -- beat, reap, leave


def test_a_worker_hears_that_its_claims_are_gone(run: QueueRun) -> None:
    assert not run.queue.beat("w1", {"engines": "a"}, 3600)
    assert run.queue.beat("w1", {"engines": "b", "rows_in_flight": 3}, 3600)
    assert run.queue.workers() == {"w1": Member(names="b", rows_in_flight=3)}
    run.lose("w1")
    assert run.queue.workers() == {}
    assert not run.queue.beat("w1", {}, 3600)


def test_a_worker_whose_lease_ended_unseen_goes_on(run: QueueRun) -> None:
    claim = run.take("w1")
    run.client.zadd("chainette:lease", {"w1": 1})
    assert run.queue.beat("w1", {}, 3600)
    assert unchanged(run, run.queue.reap) == []
    assert run.commit(claim)


def test_a_dead_workers_units_come_back_once_however_many_look(run: QueueRun) -> None:
    run.admit()
    order = run.waiting()
    run.take("w1"), run.take("w1")
    run.client.zadd("chainette:lease", {"w1": 1})
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.extend(run.queue.reap())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == ["w1"] and sorted(run.waiting()) == sorted(order)
    assert run.held("w1") == set() and not run.client.exists("chainette:worker:w1")
    assert {run.client.hget(f"rq:job:{job}", "strikes") for job in order} == {b"1"}


def test_a_reap_whose_reply_is_lost_has_happened(run: QueueRun, lossy: FleetQueue, proxy: FaultProxy) -> None:
    claim = run.take("w1")
    run.client.zadd("chainette:lease", {"w1": 1})
    loses_its_reply(proxy, lossy, "reap", lossy.reap)
    assert unchanged(run, run.queue.reap) == []
    assert run.take("w2").job == claim.job


def test_a_worker_leaves_with_empty_hands_only(run: QueueRun) -> None:
    claim = run.take("w1")
    assert not unchanged(run, lambda: run.queue.leave("w1"))
    assert run.queue.release(claim, "w1")
    assert run.queue.leave("w1") and run.queue.leave("w1")
    assert not [key for key in snapshot(run.client) if b"w1" in key]
    refused(run, lambda: claim_one(run.queue, "w1", "t", run.pairs))


# -- poison


def until_solo(run: QueueRun) -> Claim:
    """The unit once two workers died of it."""
    for me in ("d1", "d2"):
        run.take(me)
        run.lose(me)
    claim = run.take("w1")
    assert claim.turn is Turn.SOLO
    return claim


def test_a_split_happens_once_and_loses_no_row(run: QueueRun, lossy: FleetQueue, proxy: FaultProxy) -> None:
    until_solo(run)
    run.lose("w1")
    claim = run.take("w2")
    assert claim.turn is Turn.MEND
    loses_its_reply(proxy, lossy, "split", lambda: lossy.split(claim, "w2", run.plan))
    assert not unchanged(run, lambda: run.queue.split(claim, "w2", run.plan))
    assert run.state("live_rows") == "4"
    halves = []
    while claim_of_half := run.claim("w2"):
        if claim_of_half.turn is Turn.SOLO:
            halves.append([row.row_id for row in claim_of_half.unit.rows])
        assert run.commit(claim_of_half, "w2")
    assert halves == [["0", "1"], ["2", "3"]]
    run.drain()
    assert rows_of(run, "second") == ["0", "1", "2", "3"]


def test_a_row_that_kills_alone_twice_is_rejected_and_its_root_ends(database: Database) -> None:
    with opened(database.client, straight()) as run:
        run.admit(["deadly"])
        until_solo(run)
        run.lose("w1")
        claim = run.take("w2")
        assert claim.turn is Turn.SOLO  # one row gets a second chance alone
        run.lose("w2")
        claim = run.take("w3")
        assert claim.turn is Turn.MEND
        outcome = poisoned(run.plan, claim.unit)
        assert run.queue.commit(claim, "w3", run.plan, outcome, "t")
        assert not run.queue.commit(claim, "w3", run.plan, outcome, "t")
        [entry] = run.drain()
        assert entry.done and isinstance(entry.message, Result)
        assert [rejection.reason for rejection in entry.message.rejected] == [Reason.POISON]


# -- which deaths count


def strikes(run: QueueRun, job: str) -> tuple[int, int]:
    """(strikes, deaths alone) held against a unit."""
    found = run.client.hmget(f"rq:job:{job}", ["strikes", "deaths"])
    assert isinstance(found, list)
    return int(found[0] or 0), int(found[1] or 0)


def ahead(run: QueueRun, me: str, token: str) -> Claim | Drain | None:
    run.queue.beat(me, {}, 3600)
    return claim_one(run.queue, me, token, run.pairs, ahead=True)


def test_a_unit_that_was_claimed_ahead_and_not_begun_comes_back_in_front_without_a_strike(run: QueueRun) -> None:
    run.admit()
    order = run.waiting()
    for number in range(3):
        claim = ahead(run, f"w{number}", f"t{number}")
        assert isinstance(claim, Claim) and claim.job == order[0]
        run.lose(f"w{number}")
        assert run.waiting() == order and strikes(run, claim.job) == (0, 0)


def test_a_unit_that_was_claimed_ahead_counts_from_its_start_on(run: QueueRun, lossy: FleetQueue, proxy: FaultProxy) -> None:
    claim = ahead(run, "w1", "t1")
    assert isinstance(claim, Claim)
    loses_its_reply(proxy, lossy, "start", lambda: lossy.start(claim, "w1"))
    assert unchanged(run, lambda: run.queue.start(claim, "w1"))
    run.lose("w1")
    assert strikes(run, claim.job) == (1, 0)
    assert not unchanged(run, lambda: run.queue.start(claim, "w1"))
    again = run.take("w2")  # not ahead this time
    run.lose("w2")
    assert strikes(run, again.job) == (2, 0)


@pytest.mark.parametrize("how", ["release", "fail", "reconcile"])
def test_a_unit_that_was_handed_back_unbegun_is_no_longer_ahead(run: QueueRun, how: str) -> None:
    claim = ahead(run, "w1", "t1")
    assert isinstance(claim, Claim)
    match how:
        case "release":
            assert run.queue.release(claim, "w1")
        case "fail":
            assert run.queue.fail(claim, "w1", 0.0, "away")
        case "reconcile":
            assert run.queue.reconcile("w1") == 1
    run.take("w2")
    run.lose("w2")
    assert strikes(run, claim.job) == (1, 0)


def test_a_unit_that_must_run_alone_is_never_claimed_ahead(run: QueueRun) -> None:
    for me in ("d1", "d2"):
        run.take(me)
        run.lose(me)
    assert isinstance(ahead(run, "w1", "t1"), Drain)
    assert run.take("w1").turn is Turn.SOLO


@pytest.mark.parametrize("sign", ["beat", "leave"])
def test_a_lease_that_ended_without_its_worker_dying_is_not_held_against_units(run: QueueRun, sign: str) -> None:
    for number in range(3):
        claim = run.take(f"w{number}")
        assert claim.turn is Turn.JOB
        run.lose(f"w{number}")
        assert strikes(run, claim.job) == (1, 0)
        assert run.queue.beat(f"w{number}", {}, 3600) is False if sign == "beat" else run.queue.leave(f"w{number}")
        assert strikes(run, claim.job) == (0, 0)
        assert run.waiting() == [claim.job]


def test_only_the_strikes_of_the_worker_that_lives_are_taken_back(run: QueueRun) -> None:
    job = run.take("dead").job
    run.lose("dead")
    run.take("alive")
    run.lose("alive")
    assert strikes(run, job) == (2, 0) and run.waiting() == []
    run.queue.beat("alive", {}, 3600)
    assert strikes(run, job) == (1, 0) and run.waiting() == [job]
    run.lose("alive")  # it held nothing: nothing is held against anything
    assert strikes(run, job) == (1, 0)
    assert run.take("w1").turn is Turn.JOB


def test_a_unit_that_waits_to_be_mended_is_tried_again_where_its_worker_lives(run: QueueRun) -> None:
    job = until_solo(run).job
    run.lose("w1")
    assert strikes(run, job) == (2, 1)
    run.queue.beat("w1", {}, 3600)
    assert strikes(run, job) == (2, 0)
    claim = run.take("w1")  # whose turn it still is
    assert (claim.job, claim.turn) == (job, Turn.SOLO)
    assert run.commit(claim, "w1")


def test_what_is_pardoned_late_leaves_the_unit_with_whom_it_is(run: QueueRun) -> None:
    claim = until_solo(run)
    run.queue.beat("d1", {}, 3600)
    assert strikes(run, claim.job) == (1, 0) and run.held("w1") == {claim.job}
    assert run.claim("w2") is None
    assert run.commit(claim, "w1")


def test_a_unit_that_stalls_its_workers_again_and_again_is_pardoned_a_few_times_only(run: QueueRun) -> None:
    turns = []
    for number in range(8):
        turns.append(run.take(f"w{number}").turn)
        if turns[-1] is Turn.MEND:
            break
        run.lose(f"w{number}")
        run.queue.beat(f"w{number}", {}, 3600)
    assert turns == [Turn.JOB] * 5 + [Turn.SOLO, Turn.MEND]


def test_nothing_is_pardoned_in_another_epoch(run: QueueRun) -> None:
    run.take("w1")
    run.lose("w1")
    assert list(run.client.scan_iter("*struck*"))
    run.raise_epoch()
    assert not list(run.client.scan_iter("*struck*"))
    run.admit()
    job = run.take("w2").job
    run.lose("w2")
    run.queue.beat("w1", {}, 3600)
    assert strikes(run, job) == (1, 0)
