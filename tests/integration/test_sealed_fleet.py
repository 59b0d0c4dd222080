"""A fleet with a key takes nothing that was not sealed with it, for this run, epoch, unit and purpose."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any, cast

import msgspec
import pytest
from chainette_workers.sink.acceptance import AcceptedRoot

from chainette.core.durable import Durable
from chainette.errors import RunError
from chainette.fleet.protocol.keys import aside
from chainette.fleet.protocol.messages import Admission, PutAside, Result, RootRecord
from chainette.fleet.protocol.queue_values import ANCHOR, Asker, Claim, Turn
from chainette.fleet.protocol.seals import FleetKey, NoKey, Purpose, Unsealed, seals_of
from chainette.fleet.redis.redis_queue import FleetQueue
from chainette.fleet.redis.run_registry import Board, Order
from chainette.io.rundir.event_log import encode_line
from chainette.io.rundir.event_types import AnswersDiscarded, WorkerJoined
from chainette.records import CHAIN_INPUT, Output, Row, Unit, Usage, encode
from chainette.run.process import poisoned
from tests.support.fleet import QueueRun, forked, opened, record, straight
from tests.support.valkey import Database

KEY = FleetKey("correct horse battery staple")
OTHER = FleetKey("another key of the same length")


@pytest.fixture
def run(database: Database) -> Iterator[QueueRun]:
    database.may_leave("chainette:aside:*", "rq:*")
    with opened(database.client, straight(), seals=KEY) as run:
        run.admit()
        run.admit()
        yield run


def rows(run: QueueRun) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for entry in run.entries:
        if isinstance(entry.message, Result):
            found.setdefault(entry.message.node, []).extend(output.row_id for output in entry.message.outputs)
    return {node: sorted(ids) for node, ids in found.items()}


def everything(run: QueueRun) -> dict[str, list[str]]:
    run.work_off()
    run.drain()
    return rows(run)


WHOLE = {"first": [str(index) for index in range(8)], "second": [str(index) for index in range(8)]}


def put_aside(run: QueueRun) -> list[str]:
    found = cast("list[bytes]", run.client.lrange(aside(run.keys.run), 0, -1))
    return [json.loads(each)["why"] for each in found]


def test_a_sealed_run_comes_to_the_same(run: QueueRun) -> None:
    assert everything(run) == WHOLE
    assert run.queue.progress(run.keys).live == set() and put_aside(run) == []


def test_a_sealed_run_with_forks_comes_to_the_same(database: Database) -> None:
    found = []
    for seals in (KEY, NoKey()):
        with opened(database.client, forked(), seals=seals) as run:
            run.admit(["ab", "xy"])
            found.append(everything(run))
            assert run.queue.progress(run.keys).live == set() and not run.queue.progress(run.keys).damaged
    assert found[0] == found[1] and found[0]["second"]


def put_strays_aside(run: QueueRun) -> None:
    """As the sink does."""
    with pytest.raises(PutAside) as caught:
        run.queue.read(run.keys, run.position)
    assert caught.value.strays
    run.queue.put_aside(run.keys.run, caught.value.asides, run.keys.epoch)


# -- the stream


def forged(root: int = 0) -> bytes:
    return encode(Result("first", root, "", 4, [Output(str(n), b'{"word":"x"}') for n in range(4)], [], [], Usage(), "w"))


def sealed(body: bytes, run: str = "run-a", epoch: int = 0, kind: Purpose = Purpose.ENTRY, identity: str = "0\0t") -> bytes:
    return KEY.seal(run, epoch, kind, identity, body)


ENTRIES: dict[str, dict[str, Any]] = {
    "unsealed": {"e": forged()},
    "sealed with another key": {"e": OTHER.seal("run-a", 0, Purpose.ENTRY, "0\0t", forged())},
    "of another run": {"e": sealed(forged(), run="run-b")},
    "of another epoch": {"e": sealed(forged(), epoch=1)},
    "of another purpose": {"e": sealed(forged(), kind=Purpose.UNIT)},
    "of another root": {"e": sealed(forged(), identity="1\0t")},
    "of another token": {"e": sealed(forged(), identity="0\0other")},
    "changed": {"e": sealed(forged())[:-1] + b"?"},
    "cut": {"e": sealed(forged())[:10]},
    "empty": {"e": b""},
    "an empty admission": {"k": "admit", "e": b"", "d": "1"},
    "an unsealed admission": {"k": "admit", "e": encode(Admission([])), "d": "1"},
    "without a body": {"e": None},
    "without a root": {"r": None, "e": forged()},
    "a body apart that is not there": {"e": None, "b": "apart"},
}


@pytest.mark.parametrize("name", ENTRIES)
def test_an_entry_without_a_valid_seal_is_put_aside_and_the_run_goes_on_in_its_epoch(run: QueueRun, name: str) -> None:
    entry = {"t": "t", "k": "unit", "r": "0", "d": "0", "n": "4", **ENTRIES[name]}
    run.client.xadd(run.keys.stream, {key: value for key, value in entry.items() if value is not None})
    put_strays_aside(run)
    assert everything(run) == WHOLE
    assert len(put_aside(run)) == 1 and run.state("aside") == "1"
    assert run.queue.progress(run.keys).live == set() and not run.queue.progress(run.keys).damaged


def test_an_entry_that_was_copied_is_not_taken_for_another(run: QueueRun) -> None:
    assert run.commit(run.take())
    _, (_, first), *_ = cast("list[tuple[bytes, dict[Any, Any]]]", run.client.xrange(run.keys.stream))
    run.client.xadd(run.keys.stream, {**first, b"r": b"1"})
    run.client.xadd(run.keys.stream, {**first, b"t": b"another"})
    put_strays_aside(run)
    assert len(run.drain()) == 1 and len(put_aside(run)) == 2


# -- units and roots


def payload(run: QueueRun, job: str) -> str:
    return f"{run.keys.prefix}u:{job}"


def unsealed_rows(run: QueueRun, job: str, other: str) -> None:
    rows = [Row(str(number), {CHAIN_INPUT: b'{"text":"evil"}'}) for number in range(4)]
    run.client.set(payload(run, job), encode(Unit("first", 0, "", "", rows)))


def of_another_unit(run: QueueRun, job: str, other: str) -> None:
    run.client.set(payload(run, job), run.client.get(payload(run, other)))  # type: ignore[arg-type]


def changed(run: QueueRun, job: str, other: str) -> None:
    run.client.setrange(payload(run, job), 30, "X")


def cut(run: QueueRun, job: str, other: str) -> None:
    run.client.set(payload(run, job), b"short")


def called_another(run: QueueRun, job: str, other: str) -> None:
    data = json.dumps(["chainette.run.process", None, [run.keys.run, 0, "second", 0, ""], {}])
    run.client.hset(f"rq:job:{job}", "data", data)


def unsealed_record(run: QueueRun, job: str, other: str) -> None:
    rows = [Row(str(number), {CHAIN_INPUT: b'{"text":"evil"}'}) for number in range(4)]
    run.client.set(run.keys.root(0), encode(RootRecord(rows, 4)))


def record_of_another_root(run: QueueRun, job: str, other: str) -> None:
    run.client.set(run.keys.root(0), run.client.get(run.keys.root(1)))  # type: ignore[arg-type]


def without_its_record(run: QueueRun, job: str, other: str) -> None:
    run.client.hdel(f"rq:job:{job}", "as_admitted")


@pytest.mark.parametrize(
    "spoil",
    [
        unsealed_rows,
        of_another_unit,
        changed,
        cut,
        called_another,
        unsealed_record,
        record_of_another_root,
        without_its_record,
    ],
)
def test_a_unit_without_a_valid_seal_is_never_worked_on(run: QueueRun, spoil: Callable[[QueueRun, str, str], None]) -> None:
    job, other = run.waiting()
    spoil(run, job, other)
    claim = run.take()
    assert claim.job == other, "the next one"
    assert run.queue.progress(run.keys).damaged
    run.raise_epoch()
    run.admit(root=0)
    run.admit(root=1)
    assert everything(run) == WHOLE


def test_a_unit_with_rows_is_never_given_those_of_the_record_too(run: QueueRun) -> None:
    assert run.commit(run.take())
    job, *_ = run.waiting()
    run.client.hset(f"rq:job:{job}", mapping={"as_admitted": "1", "rows": "8"})
    assert run.take().job != job
    assert run.queue.progress(run.keys).damaged


def test_the_rows_of_a_root_are_sealed(run: QueueRun) -> None:
    key = run.keys.root(0)
    good = run.client.get(key)
    assert isinstance(good, bytes)
    for wrong in (b"", good[16:], good[:-1] + b"?", run.client.get(run.keys.root(1))):
        run.client.set(key, wrong)  # type: ignore[arg-type]
        with pytest.raises(Unsealed):
            run.queue.record(run.keys, 0)
    run.client.set(key, good)
    assert len(run.queue.record(run.keys, 0).rows) == 4


def solo(run: QueueRun) -> Claim:
    """The run's only unit, a single row, once two workers died of it; w1 runs it alone."""
    for me in ("d1", "d2"):
        run.take(me)
        run.lose(me)
    claim = run.take("w1")
    assert claim.turn is Turn.SOLO and len(claim.unit.rows) == 1
    return claim


def break_by_hand(run: QueueRun, job: str) -> None:
    """A record by somebody with the worker's password: a unit seems to have killed two workers alone."""
    for place in (f"rq:queue:{run.queues[-1]}", f"{run.keys.prefix}solo:{run.queues[-1]}"):
        run.client.lrem(place, 0, job)
    run.client.hset(f"rq:job:{job}", mapping={"status": "broken", "claim": "", "solo": "1", "deaths": "9"})
    run.client.rpush(f"{run.keys.prefix}broken:{run.queues[-1]}", job)


@pytest.fixture
def single(database: Database) -> Iterator[QueueRun]:
    database.may_leave("rq:*")
    with opened(database.client, straight(), seals=KEY) as run:
        run.admit(["good"])
        yield run


def test_forged_deaths_reject_no_row(single: QueueRun) -> None:
    [job] = single.waiting()
    break_by_hand(single, job)
    claim = single.take()
    assert (claim.job, claim.turn) == (job, Turn.SOLO), "it runs alone once more"
    assert single.commit(claim)
    assert everything(single) == {"first": ["0"], "second": ["0"]}


def test_words_that_other_rows_and_living_workers_left_reject_no_row(database: Database) -> None:
    database.may_leave("rq:*")
    with opened(database.client, straight(), seals=KEY) as run:
        run.admit(["good"])
        claim = solo(run)
        own = cast("bytes", run.client.hget(f"rq:job:{claim.job}", "begun")).split()
        assert len(own) == 1
        row = f"{claim.job}\0{claim.unit.rows[0].row_id}"
        wrong = [
            own[0].decode(),
            own[0].decode(),
            KEY.seal("run-b", 0, Purpose.BEGUN, row, b"w2").hex(),
            KEY.seal("run-a", 1, Purpose.BEGUN, row, b"w2").hex(),
            KEY.seal("run-a", 0, Purpose.BEGUN, f"{claim.job}\0other", b"w2").hex(),
            OTHER.seal("run-a", 0, Purpose.BEGUN, row, b"w2").hex(),
            "zz",
            "00",
        ]
        words = b"\xff " + " ".join(wrong).encode()
        run.lose("w1")
        run.client.hset(f"rq:job:{claim.job}", "begun", words)
        break_by_hand(run, claim.job)
        again = run.take("w2")
        assert again.turn is Turn.SOLO, "one worker died with it alone"
        run.client.srem("chainette:held:w2", claim.job)
        break_by_hand(run, claim.job)
        assert run.take("w2").turn is Turn.SOLO, "the other one lives"
        run.queue.reconcile("w2")
        run.client.delete(f"{run.keys.prefix}turn:{run.queues[-1]}")
        assert everything(run) == {"first": ["0"], "second": ["0"]}


def test_a_row_that_kills_alone_twice_is_mended_in_a_sealed_fleet_too(single: QueueRun) -> None:
    solo(single)
    single.lose("w1")
    assert single.take("w2").turn is Turn.SOLO
    single.lose("w2")
    claim = single.take("w3")
    assert claim.turn is Turn.MEND
    assert single.queue.commit(claim, "w3", single.plan, poisoned(single.plan, claim.unit), "t")
    [entry] = single.drain()
    assert isinstance(entry.message, Result) and [each.row_id for each in entry.message.rejected] == ["0"]


@pytest.mark.parametrize("spoil", ["unsealed", "doubled", "of another fork", "base"])
def test_a_join_takes_only_pieces_that_its_branches_gave(database: Database, spoil: str) -> None:
    database.may_leave("rq:*")
    with opened(database.client, forked(), seals=KEY) as run:
        run.admit(["ab"])
        while not (joins := [job for job in run.waiting() if run.client.hget(f"rq:job:{job}", "fork")]):
            assert run.commit(run.take())
        fork = cast("bytes", run.client.hget(f"rq:job:{joins[0]}", "fork")).decode()
        key = f"{run.keys.prefix}f:0:{fork}"
        fields = cast("dict[bytes, bytes]", run.client.hgetall(key))
        pieces = {name: value for name, value in fields.items() if name[:2] in (b"p:", b"x:")}
        name, value = next(iter(pieces.items()))
        match spoil:
            case "unsealed":
                run.client.hset(key, name, value[16:])
            case "doubled":
                run.client.hset(key, b"p:99", value)
            case "of another fork":
                run.client.hset(key, name, KEY.seal("run-a", 0, Purpose.PIECE, "0\0other", value[16:]))
            case "base":
                run.client.hset(key, b"base", msgspec.msgpack.encode([]))
        while claim := run.claim():
            assert claim.job != joins[0]
            assert run.commit(claim)
        assert run.queue.progress(run.keys).damaged


def outer_fork(run: QueueRun, job: str) -> str:
    """The fork a unit joins on the main flow; "" if it joins none."""
    scope, fork = cast("list[bytes]", run.client.hmget(f"rq:job:{job}", ["scope", "fork"]))
    return "" if scope else fork.decode()


@pytest.mark.parametrize("lost", [False, True])
def test_a_join_that_lacked_a_row_of_its_branches_brings_nothing(database: Database, lost: bool) -> None:
    database.may_leave("rq:*")
    with opened(database.client, forked(), seals=KEY) as run:
        run.admit(["ab"])
        rows = run.queue.record(run.keys, 0).rows
        while not (forks := [fork for job in run.waiting() if (fork := outer_fork(run, job))]):
            assert run.commit(run.take())
        key = f"{run.keys.prefix}f:0:{forks[0]}"
        for name, piece in cast("dict[bytes, bytes]", run.client.hgetall(key)).items():
            if lost and name.startswith(b"p:") and b"letters" in piece:
                assert run.client.hdel(key, name)
        run.work_off()
        root = AcceptedRoot(run.plan, 0, rows, Durable())
        refused = [words for entry in run.drain() if (words := root.refuse(entry, frozenset()))]
    assert refused == (["root 0: rows at 'second' had other joined values than their branches gave"] if lost else [])


# -- words


def test_a_note_without_a_seal_is_not_heard(run: QueueRun) -> None:
    name = 16 * "0"
    line = encode_line(WorkerJoined(worker="evil"))
    forged = (
        line,
        *(name.encode() + key.seal(where, 0, Purpose.NOTE, name, line) for key, where in ((OTHER, "run-a"), (KEY, "run-b"))),
    )
    for text in forged:
        run.client.xadd(run.keys.notes, {"kind": "event", "text": text})
    run.queue.note(run.keys.run, WorkerJoined(worker="good"))
    _, events = run.queue.notes(run.keys.run, "0-0")
    assert [event.worker for event in events if isinstance(event, WorkerJoined)] == ["good"]


def test_a_note_that_somebody_copied_is_heard_once(run: QueueRun) -> None:
    told = [AnswersDiscarded(node="first", usage=Usage(1, 10, 5))] * 2  # two workers may say the same
    for event in told:
        run.queue.note(run.keys.run, event)
    sent: Any = run.client.xrange(run.keys.notes)
    for _, fields in 3 * sent:
        run.client.xadd(run.keys.notes, fields)
    run.client.xadd(run.keys.notes, {**sent[0][1], b"text": b"another name...." + sent[0][1][b"text"][16:]})
    after, events = run.queue.notes(run.keys.run, "0-0")
    assert events == told
    run.client.xadd(run.keys.notes, sent[0][1])
    assert run.queue.notes(run.keys.run, after)[1] == []
    assert run.queue.notes(run.keys.run, "0-0")[1] == told


def test_a_worker_ends_only_at_a_sealed_word(run: QueueRun) -> None:
    run.queue.beat("w1", {"engines": "python"}, 3600)
    run.client.set("chainette:stop:w1", "1", ex=60)
    assert not run.queue.is_asked_to_stop("w1")
    run.client.set("chainette:stop:w1", KEY.seal("", 0, Purpose.STOP, "w2", b"1"), ex=60)
    assert not run.queue.is_asked_to_stop("w1")
    assert run.queue.ask_to_stop(None) == ["w1"] and run.queue.is_asked_to_stop("w1")


def test_a_run_is_cancelled_only_by_a_sealed_word(run: QueueRun) -> None:
    board = Board(run.client, KEY)
    assert not board.revive(run.keys.run), "it is not cancelled"
    run.client.hset(run.keys.state, "state", "cancelled")
    assert board.revive(run.keys.run) and run.state("state") == "running"
    run.client.hset(run.keys.state, "state", "cancelled")
    run.client.set("chainette:order:run-a:cancel", OTHER.seal("run-a", 0, Purpose.CANCEL, "", b"1").hex())
    assert board.revive(run.keys.run) and run.state("state") == "running"
    run.queue.set_state(run.keys.run, "cancelled")
    assert not board.revive(run.keys.run) and run.state("state") == "cancelled"


def test_without_a_key_a_run_is_cancelled_only_by_the_key_that_workers_cannot_write(database: Database) -> None:
    with opened(database.client, straight()) as run:
        board = Board(run.client)
        run.client.hset(run.keys.state, "state", "cancelled")
        assert board.revive(run.keys.run) and run.state("state") == "running"
        run.queue.set_state(run.keys.run, "cancelled")
        assert not board.revive(run.keys.run)


def test_an_order_counts_only_with_its_seal(run: QueueRun) -> None:
    board = Board(run.client, KEY)
    order = Order(chain_ref="chain.py", digest="d", inputs=("in.jsonl",), directory="out")

    def found(given: Order | bytes) -> Order | None:
        run.client.set("chainette:order:run-a", given if isinstance(given, bytes) else msgspec.json.encode(given))
        info = board.run("run-a")
        assert info is not None
        return board.order(info)

    good = board.sealed("run-a", order)
    assert found(good) == good
    for wrong in (
        order,
        Board(run.client, OTHER).sealed("run-a", order),
        board.sealed("run-b", order),
        msgspec.structs.replace(good, from_steps=("first",)),
        msgspec.structs.replace(good, directory="elsewhere"),
        msgspec.structs.replace(good, id="another"),
        msgspec.structs.replace(good, seal="zz"),
    ):
        with pytest.raises(Unsealed):
            found(wrong)
    with pytest.raises(RunError, match="does not decode"):
        found(b"{garbage")
    info = board.run("run-a")
    assert info is not None
    with pytest.raises(Unsealed):
        found(good) and Board(run.client, NoKey()).order(board.run("run-a"))  # type: ignore[arg-type]


FIELDS = {
    "chain_ref": "evil.py",
    "digest": "00",
    "files": "[]",
    "batch_size": "9",
    "seed": "9",
    "engines": "{}",
    "parameters": "{}",
}


@pytest.mark.parametrize("field", [*FIELDS, "seal", "epoch"])
def test_a_record_that_somebody_changed_is_not_served(run: QueueRun, field: str) -> None:
    [info] = run.queue.runs()
    assert info.seal_fault(KEY) == ""
    run.client.hset(run.keys.state, field, FIELDS.get(field, "7"))
    [info] = run.queue.runs()
    assert "seal" in info.seal_fault(KEY) or "changed" in info.seal_fault(KEY)


def test_processes_with_another_key_and_without_one_say_so(run: QueueRun) -> None:
    [info] = run.queue.runs()
    for seals in (OTHER, NoKey()):
        assert "all processes of a fleet need the same CHAINETTE_FLEET_KEY" in info.seal_fault(seals)
    plain = record("run-b")
    assert plain.seal_fault(NoKey()) == ""
    assert "sealed with the fleet key (none)" in plain.seal_fault(KEY)


def test_the_key_shows_nowhere_and_must_be_long() -> None:
    assert "correct" not in repr(KEY) and "correct" not in KEY.fingerprint and len(KEY.fingerprint) == 12
    assert KEY.fingerprint != OTHER.fingerprint
    with pytest.raises(RunError, match="CHAINETTE_FLEET_KEY has 5 characters") as caught:
        seals_of({"CHAINETTE_FLEET_KEY": "short"})
    assert "short" not in str(caught.value).replace("too short", "")
    assert isinstance(seals_of({}), NoKey) and isinstance(seals_of({"CHAINETTE_FLEET_KEY": "x" * 16}), FleetKey)


def test_a_sealed_anchor_is_not_needed_to_begin_an_epoch(database: Database) -> None:
    with opened(database.client, straight(), seals=KEY) as run:
        assert run.queue.read(run.keys, (ANCHOR, "anchor-0")) == []
        assert FleetQueue(database.client, seals=OTHER).read(run.keys, (ANCHOR, "anchor-0")) == []


def test_only_answers_with_our_seal_are_taken(run: QueueRun) -> None:
    """A forged one is nobody's, and one that was copied to another question neither: both are asked here."""
    one, two, queue = b"1" * 16, b"2" * 16, run.queue
    queue.share(run.keys, "w1", [], [(one, b"answer")])
    assert queue.share(run.keys, "w2", [one, two]) == [b"answer", Asker.HERE]
    table = f"{run.keys.prefix}answers:new"
    run.client.hset(table, two, run.client.hget(table, one))
    assert queue.share(run.keys, "w2", [two]) == [Asker.HERE]
    for forged in (b"forged", b"ELSEWHERE"):
        run.client.hset(table, one, forged)
        assert queue.share(run.keys, "w2", [one]) == [Asker.HERE]
