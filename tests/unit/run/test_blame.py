"""Whose fault it is that a request got no answer, as far as one process can tell."""

from __future__ import annotations

from collections.abc import Sequence

import anyio
import pytest

from chainette.engine.base import Cause, Completion, Done, Engine, Finish, Request, SamplingParams
from chainette.errors import DeclarationRefused, EngineRefused, EngineUnavailable
from chainette.records import Message
from chainette.run.blame import FAILURES, Evidence
from chainette.run.in_flight import Lane
from tests.support.patience import LONG

SYSTEM, USER = Message("system", "secret"), Message("user", "about the row")
REQUEST = Request((SYSTEM, USER), SamplingParams(), 7, {}, "ask", "ask/bad/1")
GOOD = Completion("{}", by="one")
BROKEN = Completion("", Finish.FAILED, error="500", by="one", cause=Cause.BROKEN)
BUSY = Completion("", Finish.FAILED, error="429", by="one", cause=Cause.BUSY)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class Answers(Engine):
    """Answers every probe with the same completion."""

    capacity = 1

    def __init__(self, completion: Completion | Exception) -> None:
        self.completion = completion
        self.asked: list[Request] = []

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    async def generate(self, requests: Sequence[Request], done: Done | None = None) -> list[Completion]:
        self.asked += requests
        if isinstance(self.completion, Exception):
            raise self.completion
        return [self.completion] * len(requests)


def evidence(clock: Clock | None = None) -> Evidence:
    return Evidence(Lane(64, clock=clock or Clock()))


def fail(seen: Evidence, times: int = FAILURES, completion: Completion = BROKEN, row: str = "bad") -> int:
    """Failures of a row that count."""
    counted = 0
    for _ in range(times):
        seen.asked([row])
        counted += seen.failed(row, REQUEST, completion)
    return counted


def answer(seen: Evidence, times: int, by: str = "one") -> None:
    for number in range(times):
        seen.asked([f"good {by} {number}"])
        seen.answered(f"good {by} {number}", Completion("{}", by=by))


def probe(seen: Evidence, engine: Answers) -> None:
    async def go() -> None:
        with anyio.fail_after(LONG):
            await seen.probe(engine, "llm")

    anyio.run(go)


def test_five_failures_beside_five_answers_to_others_convict_a_row() -> None:
    seen = evidence()
    answer(seen, 10)
    assert fail(seen, 1) == 1
    answer(seen, 4)
    assert fail(seen, 4) == 4 and not seen.convicts("bad", 5)
    answer(seen, 1)
    assert not seen.convicts("bad", 4) and seen.convicts("bad", 5)


def test_the_evidence_does_not_grow_with_the_rows_that_were_rejected() -> None:
    seen = evidence()
    for number in range(3):
        fail(seen, row=f"bad {number}")
        answer(seen, 5)
        assert seen.convicts(f"bad {number}", 5)
        assert fail(seen, 1, BUSY, row=f"bad {number}") == 1, "a row that is asked again later begins anew"
        seen.answered(f"bad {number}", GOOD)
    assert not seen._suspects


def test_of_the_rows_that_never_come_back_those_that_failed_last_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chainette.run.blame._MOST_SUSPECTS", 2)
    seen = evidence()
    fail(seen, 1, row="first")
    for row in ("elsewhere", "first", "last"):
        fail(seen, 1, row=row)
    answer(seen, 5)
    assert [*seen._suspects] == ["first", "last"] and seen.convicts("first", 5)
    fail(seen, 1, row="elsewhere")
    assert not seen.convicts("elsewhere", 5)


def test_answers_of_another_endpoint_prove_nothing() -> None:
    seen = evidence()
    fail(seen)
    answer(seen, 9, by="two")
    assert not seen.convicts("bad", 5)


def test_an_engine_that_answers_nobody_convicts_nobody() -> None:
    seen = evidence()
    for row in ("a", "b", "c"):
        assert fail(seen, 9, row=row) == 9
        assert not seen.convicts(row, 9)


def test_a_row_that_was_answered_begins_anew() -> None:
    seen = evidence()
    fail(seen)
    seen.answered("bad", GOOD)
    answer(seen, 9)
    fail(seen, 1)
    assert not seen.convicts("bad", 5)


def test_failures_under_load_count_only_while_few_others_fail() -> None:
    seen = evidence()
    assert fail(seen, 1, BUSY) == 1
    answer(seen, 9)
    assert fail(seen, 1, BUSY) == 1
    fail(seen, 3, BUSY, row="other")
    assert fail(seen, 3, BUSY) == 0
    answer(seen, 9)
    assert fail(seen, 1, BUSY) == 1


def test_a_probe_is_due_once_nothing_else_can_tell() -> None:
    seen = evidence()
    seen.asked(["slow"])
    fail(seen)
    assert not seen.is_due(FAILURES), "another request is in flight"
    seen.cancelled(["slow"])
    assert seen.is_due(FAILURES) and not seen.is_due(FAILURES - 1)


def test_a_request_that_failed_in_another_process_tells_nothing_about_the_engine() -> None:
    seen = evidence()
    fail(seen)
    seen.asked(["fresh", "failed elsewhere"], failed={"failed elsewhere"})
    assert not seen.is_due(FAILURES)
    seen.cancelled(["fresh"])
    assert seen.is_due(FAILURES)


def test_requests_in_flight_that_nobody_answers_for_a_minute_say_nothing_more() -> None:
    clock = Clock()
    seen = evidence(clock)
    answer(seen, 1)
    seen.asked(["slow"])
    fail(seen)
    assert not seen.is_due(FAILURES)
    clock.now += 61
    assert seen.is_due(FAILURES)


def test_a_row_that_fails_after_a_probe_was_answered_is_convicted_and_not_before() -> None:
    seen, engine = evidence(), Answers(GOOD)
    fail(seen)
    probe(seen, engine)
    assert not seen.convicts("bad", 5), "the engine may have come back since"
    fail(seen, 1)
    assert seen.convicts("bad", 6)
    assert seen.spent.requests == 1


def test_one_probe_serves_all_rows_for_half_a_minute() -> None:
    engine, clock = Answers(GOOD), Clock()
    seen = evidence(clock)
    fail(seen)
    probe(seen, engine)
    probe(seen, engine)
    assert len(engine.asked) == 1
    clock.now += 31
    fail(seen, 1)
    assert not seen.convicts("bad", 6), "the probe is old"
    probe(seen, engine)
    assert len(engine.asked) == 2


def test_a_probe_has_the_roles_and_settings_of_the_step_and_nothing_of_the_row() -> None:
    seen, engine = evidence(), Answers(GOOD)
    fail(seen)
    probe(seen, engine)
    [asked] = engine.asked
    assert [message.role for message in asked.messages] == ["system", "user"]
    assert not {message.content for message in asked.messages} & {"secret", "about the row"}
    assert (asked.sampling, asked.schema, asked.schema_name) == (REQUEST.sampling, REQUEST.schema, REQUEST.schema_name)


@pytest.mark.parametrize("answer", [BROKEN, EngineUnavailable("gone")])
def test_a_probe_without_an_answer_makes_the_engine_unavailable(answer: Completion | Exception) -> None:
    seen = evidence()
    fail(seen)
    with pytest.raises(EngineUnavailable, match="does not answer a fixed question either"):
        probe(seen, Answers(answer))
    fail(seen, 1)
    assert not seen.convicts("bad", 6)


@pytest.mark.parametrize(
    "answer",
    [
        Completion("", Finish.ERROR, error="400: bad schema", hint="change it"),
        Completion("", Finish.FAILED, error="400: bad schema", cause=Cause.DENIED, hint="change it"),
    ],
)
def test_a_probe_that_is_refused_too_refuses_the_step(answer: Completion) -> None:
    seen, engine = evidence(), Answers(answer)
    engine.may_refuse = True  # type: ignore[misc]
    fail(seen)
    with pytest.raises(DeclarationRefused, match="refuses every request of this step: 400: bad schema; change it"):
        probe(seen, engine)
    with pytest.raises(DeclarationRefused):
        seen.ahead_of(["a", "b", "c"], engine)


def test_a_refusal_stands_for_five_minutes_or_until_the_run_is_resumed_and_is_news_once() -> None:
    clock, refusal = Clock(), EngineRefused("no credit")
    seen, engine = evidence(clock), Answers(GOOD)
    engine.may_refuse = True  # type: ignore[misc]
    seen.follow("sink 1")
    assert list(seen.ahead_of(["a", "b"], engine)) == ["a"]
    seen.refuse(refusal)
    assert seen.is_news(refusal) and not seen.is_news(refusal)
    with pytest.raises(EngineRefused, match="no credit"):
        anyio.run(seen.opened)
    clock.now += 299
    seen.follow("sink 1")
    with pytest.raises(EngineRefused, match="no credit"):
        seen.ahead_of(["b"], engine)
    clock.now += 2
    assert list(seen.ahead_of(["b", "c"], engine)) == ["b"]
    seen.refuse(refusal)
    seen.follow("sink 2")
    assert list(seen.ahead_of(["c", "d"], engine)) == ["c"]
