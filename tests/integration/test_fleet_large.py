"""Outcomes too large to travel with their commit are staged before; those no queue takes are committed in smaller parts."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from chainette import Chain, Step
from chainette.core.compile import compile_chain
from chainette.engine.base import Request
from chainette.fleet.protocol.messages import BadMessage, Result, TooLarge
from chainette.fleet.protocol.queue_values import AdmissionResult, Claim
from chainette.fleet.redis import redis_queue
from chainette.fleet.redis.redis_queue import FleetQueue
from chainette.records import Reason, encode
from tests.support.chains import Text, Word
from tests.support.fleet import QueueRun, forked, opened, snapshot, straight, work
from tests.support.proxy import FaultProxy
from tests.support.scripted import Script, row_of, scripted
from tests.support.valkey import Database, connect


@pytest.fixture
def run(database: Database) -> Iterator[QueueRun]:
    """A run of two Apply nodes whose first root waits; of a commit next to nothing travels with it."""
    with opened(database.client, straight()) as run:
        run.queue = FleetQueue(database.client, max_inline=10)
        run.admit()
        yield run


def keys_of(run: QueueRun, kind: str) -> list[bytes]:
    return sorted(run.client.scan_iter(f"{run.keys.prefix}{kind}:*"))


def stage_all(run: QueueRun, claim: Claim) -> dict[str, Any]:
    """The arguments of a commit whose parts are staged."""
    calls: list[tuple[str, dict[str, Any]]] = []

    class Spy(FleetQueue):
        def _call(self, name: str, **arguments: Any) -> Any:
            calls.append((name, arguments))
            return b"OK"

    Spy(run.client, max_inline=10).commit(claim, "w1", run.plan, run.outcome(claim), "t")
    *stages, (name, commit) = calls
    assert name == "commit" and stages
    for _, arguments in stages:
        assert run.queue._call("stage", **arguments) == b"OK"
    return commit


def test_a_large_outcome_lies_beside_the_stream_until_it_is_durable(run: QueueRun) -> None:
    keys = run.keys
    run.work_off()
    assert len(keys_of(run, "e")) == 2 and not keys_of(run, "stage")
    assert run.client.ttl(keys_of(run, "e")[0]) == -1
    assert "b'e'" not in str(run.client.xrange(keys.stream))
    entries = run.drain()
    results = [entry.message for entry in entries if isinstance(entry.message, Result)]
    assert [[output.row_id for output in result.outputs] for result in results] == [["0", "1", "2", "3"]] * 2
    assert entries[-1].done and not keys_of(run, "e") and not run.client.exists(f"{keys.prefix}apart")


def test_an_ack_takes_away_no_body_that_is_not_yet_durable(run: QueueRun) -> None:
    run.work_off()
    first, second = run.queue.read(run.keys, run.position)
    run.queue.ack(run.keys, run.owner, (first.id, first.token), [])
    assert len(keys_of(run, "e")) == 1
    assert run.queue.read(run.keys, (first.id, first.token)) == [second]
    run.queue.ack(run.keys, run.owner, (first.id, first.token), [])
    assert len(keys_of(run, "e")) == 1


def test_a_run_comes_to_the_same_whether_its_outcomes_travel_or_are_staged(database: Database) -> None:
    def results(most: int) -> list[tuple[str, str, bytes]]:
        with opened(database.client, forked()) as run:
            run.queue = FleetQueue(database.client, max_inline=most)
            run.admit(["ab", "xy", "c", "d"])
            run.work_off()
            run.drain()
            assert run.state("live_rows") == "0"
            found = [entry.message for entry in run.entries if isinstance(entry.message, Result)]
            return sorted((result.node, output.row_id, output.value) for result in found for output in result.outputs)

    assert results(10) == results(1 << 20) != []


def test_a_commit_whose_staged_part_is_gone_writes_nothing_and_is_staged_again(run: QueueRun) -> None:
    claim = run.take()
    commit = stage_all(run, claim)
    first, *_ = keys_of(run, "stage")
    run.client.delete(first)
    before = snapshot(run.client)
    assert run.queue._call("commit", **commit) == b"UNSTAGED"
    assert snapshot(run.client) == before

    class Slow(FleetQueue):
        """Parts it stages are gone at once, the first time."""

        calls: list[str] = []

        def _call(self, name: str, **arguments: Any) -> Any:
            if name == "commit" and "commit" not in self.calls:
                run.client.delete(*keys_of(run, "stage"))
            self.calls.append(name)
            return super()._call(name, **arguments)

    assert Slow(run.client, max_inline=10).commit(claim, "w1", run.plan, run.outcome(claim), "t")
    assert Slow.calls == ["stage", "stage", "commit"] * 2
    assert not keys_of(run, "stage") and len(run.drain()) == 1


def test_a_commit_that_names_a_part_twice_or_none_writes_nothing(run: QueueRun) -> None:
    commit = stage_all(run, run.take())
    for wrong in (0, -1, 0.5, None, "0"):
        spoiled = commit | {"entry": {"staged": wrong} if wrong != 0 else commit["effects"]["units"][0]["payload"]}
        before = snapshot(run.client)
        if wrong == -1:
            assert run.queue._call("commit", **spoiled) == b"UNSTAGED"
        else:
            with pytest.raises(redis.ResponseError):
                run.queue._call("commit", **spoiled)
        assert snapshot(run.client) == before


def test_a_staged_commit_whose_reply_is_lost_has_happened_once(run: QueueRun, proxy: FaultProxy) -> None:
    claim = run.take()
    with connect(proxy.url) as client:
        lossy = FleetQueue(client, max_inline=10)
        for script in ("stage", "commit"):
            client.script_load(lossy._scripts.by_name[script].script)
            proxy.lose_reply_to(str(lossy._scripts.by_name[script].sha).encode())
            with pytest.raises(redis.ConnectionError):
                lossy.commit(claim, "w1", run.plan, run.outcome(claim), "lost")
            proxy.heal()
    assert not run.commit(claim, token="again")
    assert [entry.token for entry in run.drain()] == ["lost"]
    assert not keys_of(run, "stage") and not keys_of(run, "e")


@pytest.mark.parametrize("end", ["close", "epoch", "cancel", "death"])
def test_nothing_that_was_staged_outlives_its_claim(run: QueueRun, end: str) -> None:
    claim = run.take()
    stage_all(run, claim)
    assert all(0 < run.client.pttl(key) <= 600_000 for key in keys_of(run, "stage"))
    staged = keys_of(run, "stage")
    match end:
        case "close":
            run.close()
            assert not run.client.exists(*staged)
        case "epoch":
            run.raise_epoch()
            assert not run.client.exists(*staged)
        case "cancel":
            run.queue.set_state(run.keys.run, "cancelled")
        case "death":
            run.lose("w1")
    before = set(snapshot(run.client))
    assert not run.queue.commit(claim, "w1", run.plan, run.outcome(claim), "late")
    assert set(snapshot(run.client)) <= before, "a late worker staged something"


def test_the_bodies_of_an_old_epoch_go_with_it(run: QueueRun) -> None:
    run.work_off()
    old = keys_of(run, "e")
    run.raise_epoch()
    assert old and not run.client.exists(*old)


def test_a_body_that_is_gone_is_said(run: QueueRun) -> None:
    run.work_off()
    run.client.delete(*keys_of(run, "e"))
    with pytest.raises(BadMessage, match="Result"):
        run.queue.read(run.keys, run.position)


def test_large_entries_are_read_a_few_at_a_time(run: QueueRun) -> None:
    run.work_off()
    few = FleetQueue(run.client, max_commit=1)
    first = few.read(run.keys, run.position)
    assert len(first) == 1
    assert len(few.read(run.keys, (first[0].id, first[0].token))) == 1


# -- outcomes that no queue takes


def test_a_commit_beyond_the_limit_is_refused_before_anything_happens(run: QueueRun) -> None:
    claim = run.take()
    before = snapshot(run.client)
    queue = FleetQueue(run.client, max_commit=100)
    with pytest.raises(TooLarge, match=r"first, root 0: [\d,]+ bytes with its successors; a queue takes 100 at once"):
        queue.commit(claim, "w1", run.plan, run.outcome(claim), "t")
    with pytest.raises(TooLarge, match="root 1 of 4 rows"):
        run.admit(queue=queue)
    assert snapshot(run.client) == before
    assert run.admit() is AdmissionResult.OK


def test_a_root_that_is_too_large_is_refused_with_the_ways_to_go_on(run: QueueRun) -> None:
    queue = FleetQueue(run.client, max_commit=4000)
    with pytest.raises(TooLarge, match=r"--local` continues without a queue; or begin a new run with `--batch-size 2`$"):
        run.admit(["a" * 1000] * 4, queue=queue)
    with pytest.raises(
        TooLarge, match=r"root 1 of 1 row: .* at once\. `chainette resume DIR --local` continues without a queue$"
    ):
        run.admit(["a" * 4000], queue=queue)


@pytest.mark.parametrize(("light", "units"), [(10_000, 2), (3000, 1)])
def test_the_rows_of_a_root_are_in_redis_once_until_its_first_step_is_done(
    database: Database, monkeypatch: pytest.MonkeyPatch, light: int, units: int
) -> None:
    monkeypatch.setattr(redis_queue, "_LIGHT", light)
    texts = ["a" * 1000, "b" * 1000, "c" * 1000, "d" * 1000]
    with opened(database.client, straight()) as run:
        assert run.admit(texts, queue=FleetQueue(run.client, max_commit=6000)) is AdmissionResult.OK
        assert run.admit(texts) is AdmissionResult.OK
        assert sum(run.client.strlen(key) for key in keys_of(run, "u")) < 1000
        run.queue.beat("w1", {})
        claims = run.queue.claim_rows("w1", "t", [(*pair, 100) for pair in run.pairs])
        assert isinstance(claims, list)
        assert [[row["chain_input"]["text"] for row in claim.unit.rows] for claim in claims] == [texts] * units


def test_only_the_row_that_is_too_large_is_rejected(database: Database) -> None:
    with opened(database.client, straight()) as run:
        run.admit(["a", "b" * 1000, "c", "d"])
        [unit] = [encode(claim.unit) for claim in [run.take()]]
        run.queue.reconcile("w1")
        work(run, lambda: not any(run.client.scan_iter("rq:job:*")), FleetQueue(database.client, max_commit=len(unit)))
        run.drain()
        results = [entry.message for entry in run.entries if isinstance(entry.message, Result)]
        rejected = [rejection for result in results for rejection in result.rejected]
        assert [(found.row_id, found.step_id, found.reason) for found in rejected] == [("1", "first", Reason.TOO_LARGE)]
        assert "a queue takes" in rejected[0].message
        rows = sorted(output.row_id for result in results if result.node == "second" for output in result.outputs)
        assert rows == ["0", "2", "3"]
        assert run.queue.progress(run.keys).live == set() and not run.queue.progress(run.keys).damaged


def long_answers(at: str | None) -> Callable[[Request], str]:
    """Answers of which that of one row (None: each) has 30,000 letters."""
    return lambda request: json.dumps({"word": "b" * 30_000 if at in (None, row_of(request)) else "a"})


def two_steps() -> Chain:
    steps = [
        Step(id=name, output_model=Word, engine_name="llm", user_prompt="{{chain_input.text}}") for name in ("first", "second")
    ]
    return Chain(name="two", batch_size=64, steps=steps, input_model=Text)


def asks(script: Script) -> Counter[str]:
    """Step -> its requests."""
    return Counter(request.label.split("/")[0] for request in script.requests)


@pytest.mark.parametrize("at", ["0", "5", "63"])
def test_the_neighbours_of_a_row_that_is_too_large_are_asked_and_paid_once(database: Database, at: str) -> None:
    with scripted(llm=long_answers(at)) as scripts, opened(database.client, compile_chain(two_steps())) as run:
        database.client.hset(run.keys.state, "batch_size", 64)
        run.admit(["a"] * 64)
        work(run, lambda: not any(run.client.scan_iter("rq:job:*")), FleetQueue(database.client, max_commit=25_000))
        while run.drain():
            pass
        results = [entry.message for entry in run.entries if isinstance(entry.message, Result)]
        assert [(found.row_id, found.reason) for result in results for found in result.rejected] == [(at, Reason.TOO_LARGE)]
        for step, rows in (("first", 64), ("second", 63)):
            own = [result for result in results if result.node == step]
            assert sum(result.usage.requests for result in own) == asks(scripts["llm"])[step] == rows
            assert sum(result.taken for result in own) == rows
        assert run.entries[-1].done and not run.queue.progress(run.keys).damaged


def test_rows_that_are_too_large_together_are_all_kept_and_asked_once(database: Database) -> None:
    with scripted(llm=long_answers(None)) as scripts, opened(database.client, compile_chain(two_steps())) as run:
        database.client.hset(run.keys.state, "batch_size", 64)
        run.admit(["a"] * 64)
        work(run, lambda: not any(run.client.scan_iter("rq:job:*")), FleetQueue(database.client, max_commit=300_000))
        while run.drain():
            pass
        results = [entry.message for entry in run.entries if isinstance(entry.message, Result)]
        assert asks(scripts["llm"]) == {"first": 64, "second": 64}
        assert not any(result.rejected for result in results) and run.entries[-1].done


def test_a_local_run_takes_such_a_row_and_asks_each_once(tmp_path: Path) -> None:
    with scripted(llm=long_answers("5")) as scripts:
        result = two_steps().run([Text(text="a")] * 64, tmp_path / "out")
    assert asks(scripts["llm"]) == {"first": 64, "second": 64}
    assert len([*result.rows("second")]) == 64
