"""Messages that cannot be right are refused before a byte is written, whatever they hold."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
import pytest
from chainette_workers.sink.acceptance import AcceptedRoot
from chainette_workers.sink.message_faults import root_fault

from chainette import Chain, Route, Step, register_engine
from chainette.core.compile import compile_chain
from chainette.core.durable import Durable
from chainette.core.plan import Plan
from chainette.engine.config import EngineRegistry, using_registry
from chainette.fleet.protocol.messages import Admission, Result, RootRecord
from chainette.fleet.protocol.queue_values import Entry
from chainette.records import CHAIN_INPUT, Earlier, Output, Reason, Rejection, Row, Spent, Usage
from tests.support.chains import Text, Word
from tests.support.fleet import forked, straight

ROWS = [Row("4", {CHAIN_INPUT: b'{"text":"a"}'}, 5, b'"k4"'), Row("5", {CHAIN_INPUT: b'{"text":"b"}'}, 6, b'"k5"')]
GOOD = b'{"word":"a"}'
DEEP = b'{"a":' * 100_000 + b"1" + b"}" * 100_000  # Python 3.13 reads some 10,000 levels


def live(records: int = 2) -> AcceptedRoot:
    return AcceptedRoot(straight(), 1, ROWS, Durable(), range(4, 4 + records))


def result(
    outputs: Sequence[tuple[str, bytes]] = (),
    rejected: Sequence[Rejection] = (),
    dropped: Sequence[str] = (),
    *,
    node: str = "first",
    taken: int | None = None,
    root: int = 1,
    usage: Usage | None = None,
) -> Result:
    made = [Output(row_id, value) for row_id, value in outputs]
    taken = len(made) + len(rejected) + len(dropped) if taken is None else taken
    return Result(node, root, "", taken, made, [*rejected], [*dropped], usage or Usage(), "w")


def entry(message: Result | Admission, root: int = 1, *, done: bool = False) -> Entry:
    return Entry("1-1", "t", message, root, done)


def rejection(row_id: str = "4", **changes: object) -> Rejection:
    plain = Rejection(row_id, "first", Reason.APPLY_ERROR, "no", 0, None, 5, b'"k4"')
    return msgspec.structs.replace(plain, **changes)


FORGED: dict[str, Result] = {
    "JSON that does not end": result([("4", b'{"word":')]),
    "no JSON": result([("4", b'{"word": oops}')]),
    "two objects": result([("4", GOOD + GOOD)]),
    "an object and a comma": result([("4", GOOD + b",")]),
    "a list": result([("4", b"[1]")]),
    "text": result([("4", b'"a"')]),
    "nothing": result([("4", b"")]),
    "null": result([("4", b"null")]),
    "not UTF-8": result([("4", b'{"word":"\xff"}')]),
    "a line break": result([("4", b'{"word":\n"a"}')]),
    "another line": result([("4", b'{"word":"a"}\n{"row_id":"9","word":"a"}')]),
    "a blank in front": result([("4", b' {"word":"a"}')]),
    "an empty object with a blank": result([("4", b"{ }")]),
    "deep": result([("4", DEEP)]),
    "a field twice": result([("4", b'{"word":"a","word":"b"}')]),
    "a field twice, escaped": result([("4", b'{"word":"a","wor\\u0064":"b"}')]),
    "a field twice, deeper": result([("4", b'{"word":{"a":1,"a":2}}')]),
    "a number that nobody reads": result([("4", b'{"word":' + 5000 * b"9" + b"}")]),
    "an id of its own": result([("4", b'{"word":"a","row_id":"9"}')]),
    "an id, escaped": result([("4", b'{"word":"a","row\\u005fid":"9"}')]),
    "attempts of its own": result([("4", b'{"word":"a","_attempts":7}')]),
    "quotes in an id": result([('4","a":"', GOOD)]),
    "a line break in an id": result([("4\n", GOOD)]),
    "an id of no row": result([("9", GOOD)]),
    "an id of another root": result([("0", GOOD)]),
    "a child where none may be": result([("4~0", GOOD)]),
    "a row twice": result([("4", GOOD), ("4", GOOD)], taken=1),
    "a row twice, counted": result([("4", GOOD), ("4", GOOD)], taken=2),
    "output and rejection": result([("4", GOOD)], [rejection()]),
    "output and drop": result([("4", GOOD)], dropped=["4"], taken=1),
    "fewer than went in": result([("4", GOOD)], taken=2),
    "a huge count": result([("4", GOOD)], taken=2**62),
    "a node that is not": result([("4", GOOD)], node="nowhere"),
    "the input itself": result([("4", GOOD)], node=CHAIN_INPUT),
    "a node that it has not reached": result([("4", GOOD)], node="second"),
    "a path for a node": result([("4", GOOD)], node="../../etc"),
    "another root": result([("4", GOOD)], root=2),
    "usage that is no number": result([("4", GOOD)], usage=Usage(seconds=math.nan)),
    "usage without end": result([("4", GOOD)], usage=Usage(seconds=math.inf)),
    "negative usage": result([("4", GOOD)], usage=Usage(requests=-5)),
    "a key that is another line": result(rejected=[rejection(key=b'1}\n{"row_id":"9"')]),
    "a key of another row": result(rejected=[rejection(key=b'"k5"')]),
    "a line of another row": result(rejected=[rejection(line=6)]),
    "a reason that is not": result(rejected=[rejection(reason="because")]),
    "a rejection of another step": result(rejected=[rejection(step_id="second")]),
    "a rejection of no row": result(rejected=[rejection("9")]),
    "a long message": result(rejected=[rejection(message="x" * (2 << 20))]),
    "a long answer": result(rejected=[rejection(raw="x" * (2 << 20))]),
    "negative attempts": result(rejected=[rejection(attempts=-1)]),
    "a cost that is no number": result(rejected=[rejection(spent=Spent(seconds=math.nan))]),
    "a drop of no row": result(dropped=["9"]),
}


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_result_is_refused_and_a_good_one_after_it_is_not(name: str) -> None:
    root = live()
    words = root.refuse(entry(FORGED[name]), frozenset())
    assert words.startswith("root 1: ") and len(words) < 400
    assert root.refuse(entry(result([("4", GOOD), ("5", b"{}")])), frozenset()) == ""


def graded() -> Plan:
    """One step, which may ask two engines."""
    with using_registry(EngineRegistry()):
        for name in ("small", "big"):
            register_engine(name, "none", "simulated")
        step = Step(id="grade", input_model=Text, output_model=Word, engine_name="small", escalate=["big"])
        return compile_chain(Chain(name="graded", steps=[step]))


def passed_on(station: str = "grade", **earlier: Earlier) -> Result:
    """A result whose rows go on to another engine."""
    named = {row_id.removeprefix("row_"): asks for row_id, asks in earlier.items()}
    return Result(station, 1, "", len(named), [], [], [], Usage(), "w", escalated=named)


NEXT = Earlier(3, Spent(), engine=1)


@pytest.mark.parametrize(
    "forged",
    [
        passed_on("grade@2", row_4=NEXT),
        passed_on("grade@3", row_4=NEXT),
        passed_on(row_9=NEXT),
        passed_on(row_4=Earlier(3, Spent(), engine=0)),
        passed_on(row_4=Earlier(3, Spent(), engine=2)),
        passed_on(row_4=Earlier(-1, Spent(), engine=1)),
        passed_on(row_4=Earlier(3, Spent(seconds=math.nan), engine=1)),
        msgspec.structs.replace(passed_on(row_4=NEXT), taken=2),
        msgspec.structs.replace(passed_on(row_4=NEXT), dropped=["4"]),
        result([("4", GOOD)], node="grade@2"),
        result(rejected=[rejection(step_id="grade", engine="small")], node="grade@2"),
        result(rejected=[rejection(step_id="grade", engine="other")], node="grade"),
    ],
    ids=repr,
)
def test_a_row_goes_on_only_to_the_next_engine_of_its_step_and_ends_only_there(forged: Result) -> None:
    root = AcceptedRoot(graded(), 1, ROWS, Durable(), range(4, 6))
    assert root.refuse(entry(forged), frozenset()).startswith("root 1: ")
    assert root.refuse(entry(passed_on(row_4=NEXT)), frozenset()) == ""
    assert root.refuse(entry(result([("4", GOOD)], node="grade")), frozenset()).startswith("root 1: ")
    assert root.refuse(entry(result([("4", GOOD)], node="grade@2")), frozenset()) == ""


def test_children_are_numbered_from_their_row() -> None:
    plan = forked()

    def refused(*ids: str) -> str:
        root = AcceptedRoot(plan, 1, ROWS[:1], Durable(), range(4, 5))
        assert root.refuse(entry(result([("4", GOOD)])), frozenset()) == ""
        return root.refuse(entry(result([(row_id, GOOD) for row_id in ids], node="letters", taken=1)), frozenset())

    assert refused("4~0", "4~1", "4~2") == "" == refused("4~1", "4~0")
    for wrong in (
        ("4~1",),
        ("4~0", "4~0"),
        ("4~00",),
        ('4~0","a":"',),
        ("4~-1",),
        ("4",),
        ("4~0~0",),
        ("5~0",),
        ("4~0", "5~0"),
        ("4~٠",),
    ):
        assert refused(*wrong), wrong


def test_a_decision_has_each_field_once() -> None:
    with using_registry(EngineRegistry()):
        route = Route("size", on="{{ text }}", cases={"a": [], "b": []}, default=[])
        plan = compile_chain(Chain(name="routed", input_model=Text, steps=[route]))

    def refused(value: bytes) -> str:
        return AcceptedRoot(plan, 1, ROWS, Durable(), range(4, 6)).refuse(
            entry(result([("4", value)], node="size")), frozenset()
        )

    assert refused(b'{"_way":"a"}') == ""
    for forged in (b'{"_way":"zzz","_way":"a"}', b'{"_way":"a","\\u005fway":"b"}', b'{"_way":"zzz"}'):
        assert refused(forged).startswith("root 1: a row is no"), forged


def test_a_join_brings_no_rows() -> None:
    plan = forked()
    fork = next(iter(plan.forks))
    root = AcceptedRoot(plan, 1, ROWS, Durable(), range(4, 6))
    assert root.refuse(entry(result(node=fork)), frozenset()) == ""
    assert "is not a step whose rows are written" in root.refuse(entry(result([("4", GOOD)], node=fork)), frozenset())


def bad(row_id: str = "6", **changes: object) -> Rejection:
    plain = Rejection(row_id, CHAIN_INPUT, Reason.INVALID_INPUT, "no", 0, "x", 7)
    return msgspec.structs.replace(plain, **changes)


@pytest.mark.parametrize(
    "forged",
    [
        [],
        [bad("4")],
        [bad("7")],
        [bad("06")],
        [bad(), bad()],
        [bad(step_id="first")],
        [bad(reason=Reason.POISON)],
        [bad(key=b'1}\n{"row_id":"9"')],
        [bad(attempts=3)],
        [bad(raw="x" * (2 << 20))],
    ],
)
def test_forged_bad_records_are_refused(forged: list[Rejection]) -> None:
    root = live(3)
    assert root.refuse(entry(Admission(forged)), frozenset())
    assert root.refuse(entry(Admission([bad()])), frozenset()) == ""


def test_a_root_does_not_end_without_its_bad_records() -> None:
    root = live(3)
    assert root.refuse(entry(result([("4", GOOD), ("5", GOOD)])), frozenset()) == ""
    done = entry(result([("4", GOOD), ("5", GOOD)], node="second"), done=True)
    assert root.refuse(done, frozenset()) == "root 1: bad records of it are missing"


IDS = range(4, 8)


def test_the_rows_of_a_root_are_records_of_the_input() -> None:
    assert root_fault(IDS, 100, RootRecord(ROWS, 2)) == "" == root_fault(IDS, 100, RootRecord(ROWS, 4))
    assert root_fault(IDS, 100, RootRecord([], 4)) == ""
    for rows, records in (
        (ROWS, 0),
        (ROWS, -1),
        (ROWS, 1),
        (ROWS, 5),
        (ROWS, 2**60),
        ([*ROWS, ROWS[0]], 3),
        ([Row("04", {CHAIN_INPUT: b"{}"})], 4),
        ([Row('4","a":"', {CHAIN_INPUT: b"{}"})], 4),
        ([Row("9", {CHAIN_INPUT: b"{}"})], 4),
        ([Row("4", {})], 4),
        ([Row("4", {CHAIN_INPUT: b"{}", "first": b"{}"})], 4),
        ([Row("4", {CHAIN_INPUT: b"{"})], 4),
        ([Row("4", {CHAIN_INPUT: b"{}\n{}"})], 4),
        ([Row("4", {CHAIN_INPUT: b"{}"}, key=b"1,2")], 4),
        ([Row("4", {CHAIN_INPUT: b"{}"}, key=b'1}\n{"row_id":1')], 4),
        ([Row("4", {CHAIN_INPUT: b"{}"}, line=-1)], 4),
    ):
        assert root_fault(IDS, 100, RootRecord(rows, records)), (rows, records)
