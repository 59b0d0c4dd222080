"""Units that are committed in parts, on a real Valkey."""

from __future__ import annotations

import secrets

import anyio
import pytest
import redis

from chainette.fleet.protocol.messages import Missing, Result
from chainette.fleet.protocol.queue_values import Claim
from chainette.fleet.redis.redis_queue import FleetQueue
from chainette.records import Effects, Outcome, Scope, Usage
from tests.support.fleet import QueueRun, forked, opened
from tests.support.outcomes import process
from tests.support.proxy import FaultProxy
from tests.support.queue_calls import loses_its_reply, unchanged, unchanged_but_held
from tests.support.valkey import Database


def commit_part(run: QueueRun, claim: Claim, *rows: str, token: str = "", queue: FleetQueue | None = None) -> bool:
    outcome: Outcome = anyio.run(process, run.plan, claim.piece(rows), None)
    return (queue or run.queue).commit(claim, "w1", run.plan, outcome, token or secrets.token_hex(4), rows)


def job_field(run: QueueRun, job: str, name: str) -> bytes | None:
    found = run.client.hget(f"rq:job:{job}", name)
    assert found is None or isinstance(found, bytes)
    return found


def test_a_part_takes_its_rows_out_of_the_unit_and_everything_counts_what_is_left(run: QueueRun) -> None:
    claim = run.take()
    assert commit_part(run, claim, "0", "3")
    taken = f"{run.keys.prefix}t:{claim.job}"
    assert run.client.smembers(taken) == {b"0", b"3"}
    assert (job_field(run, claim.job, "rows"), job_field(run, claim.job, "part")) == (b"2", b"1")
    assert run.held("w1") == {claim.job} and run.state("live_rows") == "4"
    rest = claim.rest(["0", "3"])
    assert rest is not None and run.commit(rest)
    assert not run.client.exists(taken) and run.held("w1") == set()
    assert [entry.message.taken for entry in run.drain() if isinstance(entry.message, Result)] == [2, 2]
    assert run.state("results") == "4"


def test_a_part_whose_reply_is_lost_is_sent_again_and_happens_once(run: QueueRun, lossy: FleetQueue, proxy: FaultProxy) -> None:
    claim = run.take()
    loses_its_reply(proxy, lossy, "commit", lambda: commit_part(run, claim, "1", token="lost", queue=lossy))
    assert unchanged(run, lambda: commit_part(run, claim, "1", token="lost")) is True
    run.lose("w1")
    assert unchanged(run, lambda: commit_part(run, claim, "1", token="lost")) is True, "it was committed, whoever has the rest"
    assert [entry.token for entry in run.drain()] == ["lost"]


def test_a_part_that_is_late_or_of_an_old_epoch_is_refused(run: QueueRun) -> None:
    claim = run.take("w1")
    assert commit_part(run, claim, "1")
    assert unchanged(run, lambda: commit_part(run, claim, "2")) is False, "not the next part"
    rest = claim.rest(["1"])
    assert rest is not None
    run.lose("w1")
    assert not unchanged(run, lambda: commit_part(run, rest, "2"))
    run.raise_epoch()
    assert not unchanged_but_held(run, lambda: commit_part(run, rest, "2"))


def test_rows_that_are_no_longer_in_the_unit_are_refused_as_after_redis_went_back(run: QueueRun) -> None:
    claim = run.take()
    assert commit_part(run, claim, "1")
    run.client.hset(f"rq:job:{claim.job}", "part", "0")
    assert unchanged(run, lambda: commit_part(run, claim, "1", "2")) is False
    assert unchanged(run, lambda: run.commit(claim)) is False, "the unit has fewer rows than that"


def test_a_unit_of_which_redis_knows_fewer_parts_than_its_worker_goes_round(run: QueueRun) -> None:
    claim = run.take()
    assert commit_part(run, claim, "1")
    rest = claim.rest(["1"])
    assert rest is not None
    assert unchanged(run, lambda: run.queue.reconcile("w1", [rest])) == 0
    assert unchanged(run, lambda: run.queue.reconcile("w1", [claim])) == 0, "the reply is on its way"
    run.client.hset(f"rq:job:{claim.job}", mapping={"part": "0", "rows": "4"})  # Redis went back
    run.client.delete(f"{run.keys.prefix}t:{claim.job}")
    assert run.queue.reconcile("w1", [rest]) == 1
    assert not unchanged(run, lambda: run.commit(rest))


def test_a_counter_of_parts_that_is_gone_is_damage(run: QueueRun) -> None:
    claim = run.take()
    run.client.hdel(f"rq:job:{claim.job}", "part")
    assert not run.commit(claim)
    assert "counter of parts is gone" in run.queue.progress(run.keys).damaged
    run.raise_epoch()
    run.admit()
    run.client.hdel(f"rq:job:{run.waiting()[0]}", "part")
    assert run.claim() is None
    assert "counter of parts is gone" in run.queue.progress(run.keys).damaged


@pytest.mark.parametrize("state", [b"0x1F", b"\xff", b""])
def test_an_admission_that_meets_a_state_that_is_none_is_damage(run: QueueRun, state: bytes) -> None:
    run.client.hset(run.keys.state, "state", state)
    with pytest.raises(Missing, match=r"the record of run .* in Redis does not decode"):
        run.admit()


def test_an_admission_that_meets_a_run_without_a_state_is_damage(run: QueueRun) -> None:
    run.client.hdel(run.keys.state, "state")
    with pytest.raises(Missing, match=r"the record of run .* in Redis does not decode"):
        run.admit()


@pytest.mark.parametrize("how", ["lost", "of another type"])
def test_taken_rows_that_are_gone_are_damage_and_no_row_is_answered_twice(run: QueueRun, how: str) -> None:
    claim = run.take()
    assert commit_part(run, claim, "1")
    taken = f"{run.keys.prefix}t:{claim.job}"
    run.client.delete(taken)
    if how != "lost":
        run.client.set(taken, "I am no set")
    run.lose("w1")
    first = run.take("w2")
    assert first.unit.node == "second" and run.claim("w2") is None
    assert "rows left" in run.queue.progress(run.keys).damaged


def test_a_part_that_meets_taken_rows_of_another_type_writes_nothing_and_is_damage(run: QueueRun) -> None:
    claim = run.take()
    run.client.set(f"{run.keys.prefix}t:{claim.job}", "I am no set")
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        commit_part(run, claim, "1")
    assert run.queue.progress(run.keys).damaged and run.drain() == []


def test_a_scope_that_exists_already_is_an_error_and_nothing_is_written(database: Database) -> None:
    with opened(database.client, forked()) as run:
        run.admit(["a", "b"])
        assert run.commit(run.take())
        claim = run.take()
        known = next(iter(run.client.scan_iter(f"{run.keys.prefix}f:0:*")))
        name = known.decode().rpartition("f:0:")[2]
        other = Scope(name, next(iter(run.plan.forks)), "", "", claim.unit.rows)
        outcome = Outcome([], [], [], Usage(), Effects([], [other]))
        with pytest.raises(redis.ResponseError, match="exists already"):
            unchanged(run, lambda: run.queue.commit(claim, "w1", run.plan, outcome, "t"))
