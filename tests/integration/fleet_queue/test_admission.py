"""Roots are admitted once while the window has room, and an acknowledgement gives their credit back once, on a real Valkey."""

from __future__ import annotations

import threading

import pytest
import redis

from chainette.fleet.protocol.keys import RunKeys
from chainette.fleet.protocol.messages import Admission
from chainette.fleet.protocol.queue_values import AdmissionResult
from chainette.fleet.redis.redis_queue import FleetQueue
from chainette.records import CHAIN_INPUT, Effects, Outcome, Reason, Rejection, Unit, Usage
from tests.support.fleet import QueueRun, forked, opened, straight
from tests.support.proxy import FaultProxy
from tests.support.queue_calls import loses_its_reply, refused, unchanged
from tests.support.valkey import Database

# -- admit


def test_a_root_is_admitted_once_however_often_and_by_whomever(run: QueueRun) -> None:
    assert unchanged(run, lambda: run.admit(k=0, root=0)) is AdmissionResult.BEHIND
    assert unchanged(run, lambda: run.admit(k=7, root=7)) is AdmissionResult.BEHIND
    old = run.keys
    run.raise_epoch()
    run.keys = old
    refused(run, lambda: run.admit(k=0))
    run.keys = RunKeys(old.run, 1)
    assert run.admit(k=0, root=0) is AdmissionResult.OK  # in its own epoch
    assert len(run.waiting()) == 1


def test_an_admission_whose_reply_is_lost_has_happened(run: QueueRun, lossy: FleetQueue, proxy: FaultProxy) -> None:
    loses_its_reply(proxy, lossy, "admit", lambda: run.admit(k=1, queue=lossy))
    assert unchanged(run, lambda: run.admit(k=1)) is AdmissionResult.BEHIND
    progress = run.queue.progress(run.keys)
    assert (progress.cursor, progress.last, progress.live) == (2, 1, {0, 1})


def test_coordinators_that_admit_at_the_same_time_admit_each_root_once(run: QueueRun) -> None:
    admitted: list[int] = []

    def coordinate() -> None:
        while (k := run.queue.progress(run.keys).cursor) < 40:
            if run.admit(k=k) is AdmissionResult.OK:
                admitted.append(k)

    threads = [threading.Thread(target=coordinate) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(admitted) == list(range(1, 40))
    assert len(run.waiting()) == 40 == len(set(run.waiting()))
    assert run.state("live_rows") == "160"


def test_a_held_or_given_up_run_admits_nothing(run: QueueRun) -> None:
    for state, reply in (("paused", AdmissionResult.PAUSED), ("cancelled", AdmissionResult.CANCELLED)):
        run.queue.set_state(run.keys.run, state)
        assert unchanged(run, lambda: run.admit()) is reply


def test_a_unit_that_exists_already_is_an_error_and_nothing_is_written(run: QueueRun) -> None:
    with pytest.raises(redis.ResponseError, match="exists already"):
        unchanged(run, lambda: run.admit(k=1, root=0))
    claim = run.take()
    unit = replace_part(claim.unit, "twice")
    outcome = Outcome([], [], [], Usage(), Effects([unit, unit]))
    with pytest.raises(redis.ResponseError, match="exists already"):
        unchanged(run, lambda: run.queue.commit(claim, "w1", run.plan, outcome, "t"))


def replace_part(unit: Unit, part: str) -> Unit:
    return Unit(unit.node, unit.root, part, unit.scope, unit.rows)


def test_a_root_of_bad_lines_alone_is_complete_when_it_is_admitted(run: QueueRun) -> None:
    bad = [Rejection("4", CHAIN_INPUT, Reason.INVALID_INPUT, "no json", 0, "{", 5)]
    assert run.admit([], bad=bad) is AdmissionResult.OK and run.admit([]) is AdmissionResult.OK
    first, empty = run.drain()
    assert (first.root, first.done, first.message) == (1, True, Admission(bad))
    assert (empty.root, empty.done, empty.message) == (2, True, Admission([]))
    assert run.queue.progress(run.keys).live == {0}


def test_the_end_of_the_input_is_said_of_the_epoch_that_admitted_it(run: QueueRun) -> None:
    assert not unchanged(run, lambda: run.queue.end_of_input(run.keys, 5))
    assert run.queue.end_of_input(run.keys, 1) and run.queue.end_of_input(run.keys, 1)
    old = run.keys
    run.raise_epoch()
    refused(run, lambda: run.queue.end_of_input(old, 0))
    assert run.queue.progress(run.keys).total is None


# -- ack and the window


def test_an_ack_gives_credit_back_once(run: QueueRun, lossy: FleetQueue, proxy: FaultProxy) -> None:
    run.work_off()
    found = run.queue.read(run.keys, run.position)
    last = (found[-1].id, found[-1].token)
    for owner, keys, position in (
        ("owner-2", run.keys, last),
        ("owner-1", RunKeys(run.keys.run, 1), last),
        ("owner-1", run.keys, (last[0], "wrong")),
        ("owner-1", run.keys, ("99-1", last[1])),
    ):
        refused(run, lambda owner=owner, keys=keys, position=position: run.queue.ack(keys, owner, position, [0]))  # type: ignore[misc]
    loses_its_reply(proxy, lossy, "ack", lambda: lossy.ack(run.keys, run.owner, last, [0]))
    unchanged(run, lambda: run.queue.ack(run.keys, run.owner, last, [0]))
    assert run.state("live_rows") == "0" and run.queue.progress(run.keys).live == set()
    assert [entry.id for entry in run.queue.read(run.keys, last)] == []
    assert run.client.xlen(run.keys.stream) == 1  # the anchor of the next read


def test_a_full_window_admits_again_exactly_when_the_credit_is_back(database: Database) -> None:
    with opened(database.client, straight(), window=8) as run:
        assert [run.admit(), run.admit()] == [AdmissionResult.OK, AdmissionResult.OK]
        assert unchanged(run, run.admit) is AdmissionResult.FULL
        run.work_off()
        assert unchanged(run, run.admit) is AdmissionResult.FULL  # done is not yet durable
        run.drain()
        assert run.state("live_rows") == "0"
        assert run.admit() is AdmissionResult.OK


def test_one_root_is_admitted_however_small_the_window(database: Database) -> None:
    with opened(database.client, straight(), window=1) as run:
        assert run.admit() is AdmissionResult.OK
        assert run.admit() is AdmissionResult.FULL


def test_the_credit_never_drifts_where_rows_become_more_and_fewer(database: Database) -> None:
    with opened(database.client, forked(), window=30) as run:
        texts, most = ["x", "abcdefgh", "no", "abcxyz"], 0
        for _ in range(12):
            while run.admit(texts) is AdmissionResult.OK:
                pass
            for _ in range(5):
                if claim := run.claim():
                    assert run.commit(claim)
            most = max(most, int(run.state("live_rows")))
            outstanding = {root.decode(): int(rows) for root, rows in run.client.hgetall(f"{run.keys.prefix}out").items()}  # type: ignore[union-attr]
            admitted = {root.decode(): int(rows) for root, rows in run.client.hgetall(f"{run.keys.prefix}live").items()}  # type: ignore[union-attr]
            assert int(run.state("live_rows")) == sum(max(rows, outstanding.get(root, 0)) for root, rows in admitted.items())
            run.drain()
        run.work_off()
        run.drain()
        assert run.state("live_rows") == "0" and most > 30
        assert not run.client.exists(f"{run.keys.prefix}out", f"{run.keys.prefix}live")
