"""The queue's transitions on a real Valkey, one by one: repeated, late, of an old epoch, of another owner, with the reply lost.

After each the state in Redis is right, and the run's results happened once. The fixture `database` fails
every test that leaves a key.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast

import anyio
import pytest
import redis

from chainette.engine.budget import Amounts
from chainette.fleet.protocol.keys import RunKeys
from chainette.fleet.protocol.member_fields import Member
from chainette.fleet.protocol.messages import Admission, Aside, Missing, Result
from chainette.fleet.protocol.queue_values import EngineAccount
from chainette.fleet.redis.redis_queue import AdmissionResult, Asker, Cancelled, Claim, Drain, FleetQueue, Lost, Turn
from chainette.fleet.redis.run_registry import Board, Order, Role
from chainette.fleet.redis.script_calls import SCRIPTS, Scripts
from chainette.io.rundir.events import EngineReleased
from chainette.records import CHAIN_INPUT, Effects, Outcome, Reason, Rejection, Scope, Unit, Usage
from chainette.run.process import poisoned, process
from tests.support.claims import claim_one
from tests.support.fleet import QueueRun, forked, opened, snapshot, straight
from tests.support.proxy import FaultProxy
from tests.support.valkey import Database, connect


@pytest.fixture
def run(database: Database) -> Iterator[QueueRun]:
    """A run of two Apply nodes whose first root waits."""
    with opened(database.client, straight()) as run:
        assert run.admit() is AdmissionResult.OK
        yield run


@pytest.fixture
def lossy(proxy: FaultProxy) -> Iterator[FleetQueue]:
    """Another connection to the same Redis, through `proxy`."""
    with connect(proxy.url) as client:
        yield FleetQueue(client)


def loses_its_reply(proxy: FaultProxy, queue: FleetQueue, script: str, call: Callable[[], object]) -> None:
    """Calls with the script's reply lost: it happens, and the caller does not know."""
    queue._redis.script_load(queue._scripts.by_name[script].script)
    proxy.lose_reply_to(str(queue._scripts.by_name[script].sha).encode())
    with pytest.raises(redis.ConnectionError):
        call()
    proxy.heal()


def unchanged(run: QueueRun, call: Callable[[], object]) -> object:
    """The call's reply; it must write nothing."""
    before = snapshot(run.client)
    found = call()
    assert snapshot(run.client) == before
    return found


def refused(run: QueueRun, call: Callable[[], object]) -> None:
    """The call raises Lost and writes nothing."""
    before = snapshot(run.client)
    with pytest.raises(Lost):
        call()
    assert snapshot(run.client) == before


def rows_of(run: QueueRun, node: str) -> list[str]:
    """The row ids the stream says a node gave, in order."""
    results = [entry.message for entry in run.entries if isinstance(entry.message, Result)]
    return sorted(output.row_id for result in results if result.node == node for output in result.outputs)


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


def test_an_epoch_without_a_budget_does_not_keep_that_of_the_epoch_before(run: QueueRun) -> None:
    """Else workers would reserve by it, and the sink, which has none, would wait for them for ever."""
    run.client.hset(run.keys.state, mapping={"budget": "[[1,-1,-1,-1]]", "used": "1 0 0 0"})
    run.raise_epoch()
    assert not run.client.hexists(run.keys.state, "budget") and run.state("used") == "1 0 0 0"


def unchanged_but_held(run: QueueRun, call: Callable[[], object]) -> object:
    """As `unchanged`; the caller's hands may become empty."""
    before = snapshot(run.client)
    found = call()
    after = snapshot(run.client)
    for key in [key for key in before if key.startswith(b"chainette:held:")]:
        del before[key]
        after.pop(key, None)
    assert after == before
    return found


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


# -- parts


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


# -- malformed arguments


def valid_arguments(run: QueueRun) -> dict[str, dict[str, Any]]:
    """A call of each script that would write."""
    claim = run.take("w1")
    calls: dict[str, dict[str, Any]] = {}

    class Spy(FleetQueue):
        def _call(self, name: str, **arguments: Any) -> Any:
            calls[name] = arguments
            replies = {"claim": [b"OK"], "install": [b"BEHIND", 1], "reconcile": b"1", "close": b"NOT NOW"}
            return {**replies, "reserve": [b"OK", 1, 0, b"0 0 0 0", b"0 0 0 0"], "share_answers": [b"OK", 1]}.get(name, b"OK")

    spy = Spy(run.client)
    with pytest.raises(Lost):
        run.install(spy)
    calls["install"]["epoch"] = 1
    run.admit(k=1, queue=spy)
    spy.attach(run.keys.run, 0, run.owner, run.anchor)
    spy.ack(run.keys, run.owner, run.anchor, [0])
    with pytest.raises(Lost):
        spy.close(run.keys.run, 0, run.owner, run.queues)
    spy.set_state(run.keys.run, "paused")
    spy.bar(run.keys, run.owner, run.queues)
    spy.end_of_input(run.keys, 1)
    spy.missing(run.keys, [0])
    spy.note(run.keys.run, EngineReleased(engine="e"))
    claim_one(spy, "w1", "t", run.pairs)
    spy.beat("w1", {"engines": "e"})
    part = anyio.run(process, run.plan, claim.piece(["0"]), None)
    spy.commit(claim, "w1", run.plan, part, "t", ["0"])
    spy.split(claim, "w1", run.plan)
    calls["stage"] = {key: calls["split"][key] for key in ("job", "token", "incarnation", "scope")}
    calls["stage"] |= {"entry": "t", "number": 0, "seconds": 1.0, "body": b"x"}
    spy.start(claim, "w1")
    spy.fail(claim, "w1", 1.0, "why")
    spy.release(claim, "w1")
    spy.bury(claim, "w1", "why")
    run.client.hset(run.keys.state, "used", "0 0 0 0")
    spy.reserve(run.keys, "w1", "t", (1, 1, 1, 1), Amounts(), 0, [Amounts(1)], EngineAccount("e", "d", (1, 1, 1, 1)))
    spy.share(run.keys, "w1", [16 * b"q"], [(16 * b"r", b"answer")], [16 * b"s"])
    spy.reconcile("w1", [claim])
    spy.leave("w1")
    board = Board(run.client)
    board._scripts = cast("Scripts", SimpleNamespace(call=spy._call))
    board.ask("run-c", Order(chain_ref="c", digest="d", inputs=("i",), directory="o"))
    board.beat("s1", {"kind": "sink"})
    board.take(run.keys.run, Role.SINK, "s1")
    board.drop(run.keys.run, Role.SINK, run.owner)
    board.say(run.keys.run, {"counts": "1"})
    board.revive(run.keys.run)
    spy.put_aside(run.keys.run, [Aside("why", "1-1", b"x")], 0)
    return calls


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something can be wrong: every argument, and everything inside of it."""
    if path:
        yield path
    if isinstance(value, dict):
        for name in value:
            yield from places(value[name], (*path, name))
    elif isinstance(value, list):
        for index, part in enumerate(value[:1]):
            yield from places(part, (*path, index))


def spoiled(value: Any, path: tuple[Any, ...], wrong: Any) -> Any:
    if not path:
        return wrong
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = spoiled(value[path[0]], path[1:], wrong)
    return copy


#: Values that no argument takes, but for those that `harmless` names.
WRONG: tuple[Any, ...] = (None, {}, [[]], True, float("nan"))

#: Arguments a script takes unchecked: truth values, and a worker's description of itself.
FREE = {("claim", "alone"), ("claim", "ahead")}


@pytest.mark.long
def test_every_script_refuses_every_malformed_argument_before_it_writes(run: QueueRun) -> None:
    calls = valid_arguments(run)
    assert set(calls) == set(SCRIPTS) - {"reap", "mend"}
    tried = 0
    for name, arguments in calls.items():
        for path in places(arguments):
            for wrong in WRONG:
                if (name, path[0]) in FREE or harmless(name, path, wrong):
                    continue
                before = snapshot(run.client)
                with pytest.raises(redis.ResponseError):
                    print(name, path, wrong, run.queue._call(name, **spoiled(arguments, path, wrong)))
                assert snapshot(run.client) == before, (name, path, wrong)
                tried += 1
    assert tried > 300


def harmless(name: str, path: tuple[Any, ...], wrong: Any) -> bool:
    """An empty list or map where one is expected, and a number that equals nothing."""
    if (
        len(path) > 1
        and path[0] in ("fields", "known", "about")
        and path[1] != "window"
        and (wrong is None or isinstance(wrong, float))
    ):
        return True  # the name is not there, or has another value
    if wrong is None and isinstance(path[-1], int):
        return True  # a list ends there
    if wrong is None and name == "commit" and path == ("rows",):
        return True  # all rows that are left, which the unit does not allow
    lists = ("units", "scopes", "partials", "stopped", "roots", "words", "asides", "entries", "needs", "wanted", "answers")
    container = path[-1] in ("given_up", "about", "queues", "fields", "effects", "known", *lists)
    return wrong == {} and container and path[-1] != "effects"


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
