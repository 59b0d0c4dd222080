"""Questions that rows share: who asks, who waits, and what other workers are told and asked."""

from __future__ import annotations

import anyio
import msgspec
import pytest
from anyio.abc import TaskGroup
from pydantic import BaseModel

from chainette import Chain, Step, records
from chainette.core.compile import compile_chain
from chainette.engine.base import Cause, Completion, Finish, Request
from chainette.engine.lifecycle import create_engine
from chainette.errors import EngineUnavailable
from chainette.fleet.protocol.keys import RunKeys
from chainette.fleet.protocol.queue_values import Asker
from chainette.hooks import Hook
from chainette.records import CHAIN_INPUT, Outcome, Reason, Row, Spent, Unfinished, Usage
from chainette.run.blame import FAILURES
from chainette.run.process import fill
from chainette.run.shared_answers import Exchange, SharedAnswer, SharedAnswers
from chainette.run.unit_result import UnitResult
from tests.support.patience import LONG
from tests.support.scripted import Script, scripted

KEYS = RunKeys("run", 0)


class Text(BaseModel):
    text: str


class Number(BaseModel):
    number: int


ONE = b"1" * 16
ANSWER = SharedAnswer(1, b"{}")
BROKEN = Completion("", Finish.FAILED, error="500", by="here", cause=Cause.BROKEN)


class Waiter:
    """A row that notes its fate."""

    def __init__(self, *, believes: bool = True) -> None:
        self.fate = ""
        self.gone = False
        self._believes = believes

    def take(self, answer: SharedAnswer, *, checked: bool) -> SharedAnswer | None:
        if not (checked or self._believes):
            return None
        self.fate = f"took {answer.value.decode()}"
        return answer

    def ask(self, *, alone: bool) -> None:
        self.fate = "asks alone" if alone else "asks"

    def put_off(self, trouble: Completion | EngineUnavailable) -> None:
        del trouble
        self.fate = "waits for the next try"


def rows(shared: SharedAnswers, count: int = 3) -> list[Waiter]:
    """Rows that want the answer to the same question."""
    found = [Waiter() for _ in range(count)]
    for row in found:
        shared.want(KEYS, ONE, row)
    return found


def fates(*rows: Waiter) -> list[str]:
    return [row.fate for row in rows]


def exchange(shared: SharedAnswers) -> Exchange:
    async def go() -> Exchange:
        with anyio.fail_after(LONG):
            [(keys, news)] = await shared.outgoing()
        assert keys == KEYS
        return news

    return anyio.run(go)


def test_the_next_row_asks_if_the_one_that_asks_leaves() -> None:
    shared = SharedAnswers()
    first, second, third = rows(shared)
    second.gone = True
    assert fates(first, third) == ["asks", ""]
    shared.leave(ONE)
    assert fates(second, third) == ["", "asks"]
    shared.settle(ONE, ANSWER)
    assert fates(*rows(shared, 2)) == ["took {}"] * 2


def test_a_question_that_everybody_left_is_asked_by_the_next_that_comes() -> None:
    shared = SharedAnswers()
    rows(shared, 1)
    shared.leave(ONE)
    assert fates(*rows(shared, 1)) == ["asks"]


@pytest.mark.parametrize(
    ("reason", "fate"),
    [
        *((reason, "took ") for reason in (Reason.NOT_JSON, Reason.INVALID_OUTPUT, Reason.TRUNCATED, Reason.REFUSED)),
        (Reason.PROMPT_TOO_LONG, "took "),
        *((reason, "asks alone") for reason in (Reason.ENGINE_ERROR, Reason.POISON, Reason.TOO_LARGE)),
    ],
)
def test_a_rejection_is_shared_if_the_answer_caused_it(reason: Reason, fate: str) -> None:
    shared = SharedAnswers()
    _, *others = rows(shared)
    shared.settle(ONE, SharedAnswer(3, reason=reason))
    assert fates(*others, *rows(shared, 2)) == [fate] * 4


def test_all_wait_for_the_next_try_until_the_question_has_failed_too_often() -> None:
    shared = SharedAnswers()
    for _ in range(FAILURES - 1):
        first, second = rows(shared, 2)
        shared.put_off(ONE, BROKEN)
        assert fates(first, second) == ["asks", "waits for the next try"]
    first, second = rows(shared, 2)
    shared.put_off(ONE, BROKEN)
    assert fates(first, second, *rows(shared, 2)) == ["asks", "asks alone", "asks alone", "asks alone"]


def test_an_engine_that_answers_nobody_is_not_held_against_a_question() -> None:
    shared = SharedAnswers()
    for _ in range(2 * FAILURES):
        assert fates(*rows(shared, 2)) == ["asks", ""]
        shared.put_off(ONE, EngineUnavailable("down"))


def test_other_workers_are_asked_first_and_told_the_answer() -> None:
    shared = SharedAnswers(with_others=True)
    first, second = rows(shared, 2)
    news = exchange(shared)
    assert (news.wanted, fates(first, second)) == ([ONE], ["", ""])
    shared.heard(news.wanted, [Asker.HERE])
    assert fates(first, second) == ["asks", ""]
    shared.settle(ONE, ANSWER)
    assert second.fate == "took {}"
    assert exchange(shared) == Exchange(answers=[(ONE, msgspec.msgpack.encode(ANSWER))])


def test_a_question_that_another_worker_asks_is_looked_at_again_until_there_is_an_answer() -> None:
    shared = SharedAnswers(with_others=True)
    waiting = rows(shared, 2)
    shared.heard(exchange(shared).wanted, [Asker.ELSEWHERE])
    news = exchange(shared)
    assert (news.wanted, fates(*waiting)) == ([ONE], ["", ""])
    shared.heard(news.wanted, [msgspec.msgpack.encode(ANSWER)])
    assert fates(*waiting, *rows(shared, 1)) == ["took {}"] * 3


@pytest.mark.parametrize("message", [b"garbage", msgspec.msgpack.encode(SharedAnswer(1, reason=Reason.POISON))])
def test_an_answer_that_cannot_be_one_is_asked_for_here(message: bytes) -> None:
    shared = SharedAnswers(with_others=True)
    waiting = rows(shared, 2)
    shared.heard(exchange(shared).wanted, [message])
    assert fates(*waiting) == ["asks alone"] * 2


def test_an_answer_that_the_model_does_not_take_is_asked_for_here() -> None:
    shared = SharedAnswers(with_others=True)
    row = Waiter(believes=False)
    shared.want(KEYS, ONE, row)
    shared.heard(exchange(shared).wanted, [msgspec.msgpack.encode(ANSWER)])
    assert row.fate == "asks alone"


def test_nothing_is_asked_for_an_epoch_that_is_over() -> None:
    shared = SharedAnswers(with_others=True)
    waiting = rows(shared, 2)
    shared.lost(exchange(shared).wanted)
    assert fates(*waiting) == ["waits for the next try"] * 2
    again = rows(shared, 1)
    shared.heard(exchange(shared).wanted, [Asker.HERE])
    assert fates(*again) == ["asks"]


def test_a_question_that_nobody_here_waits_for_is_given_up() -> None:
    shared = SharedAnswers(with_others=True)
    [row] = rows(shared, 1)
    news = exchange(shared)
    row.gone = True
    shared.heard(news.wanted, [Asker.HERE])
    assert exchange(shared) == Exchange(given_up=[ONE])


# -- the rows of real units


class Unit:
    """A unit of rows that all ask the same, of which the first is `first`."""

    def __init__(self, shared: SharedAnswers, first: int, count: int = 3) -> None:
        step = Step(id="ask", input_model=Text, output_model=Number, engine_name="llm", user_prompt="one", dedupe=True)
        self.plan = compile_chain(Chain(name="c", steps=[step]))
        self.result = UnitResult(self.plan, self.plan.nodes["ask"], Hook())
        self.rows = [Row(str(first + number), {CHAIN_INPUT: b'{"text":""}'}) for number in range(count)]
        self.scope = anyio.CancelScope()
        self.waiting = 0
        self._shared = shared

    async def work(self) -> None:
        with self.scope:
            questions = self._shared.of(KEYS, "ask", self._count)
            await fill(self.result, self.rows, create_engine(self.plan.engines["llm"]), questions=questions)

    def _count(self, more: int) -> None:
        self.waiting += more

    def outcome(self) -> Outcome:
        return self.result.take(records.Unit("ask", 0, "", "", self.rows))

    async def begin(self, group: TaskGroup) -> None:
        group.start_soon(self.work)
        await anyio.wait_all_tasks_blocked()


def test_rows_of_another_unit_ask_if_the_unit_that_asks_is_taken_away() -> None:
    shared = SharedAnswers()
    first, again, release = anyio.Event(), anyio.Event(), anyio.Event()

    async def answer(_request: Request) -> Number:
        (again if first.is_set() else first).set()
        await release.wait()
        return Number(number=1)

    async def go(llm: Script) -> None:
        one, two = Unit(shared, 0), Unit(shared, 10)
        async with anyio.create_task_group() as group:
            await one.begin(group)
            await two.begin(group)
            assert (one.waiting, two.waiting, len(llm.requests)) == (2, 3, 1)
            one.scope.cancel()
            with anyio.fail_after(LONG):
                await again.wait()
            assert (one.waiting, two.waiting, len(llm.requests)) == (0, 2, 2)
            release.set()
        assert two.result.finished() == {"10", "11", "12"} and two.waiting == 0
        assert not one.result.finished() and one.result.cancelled.requests == 1

    with scripted(llm=answer) as scripts:
        anyio.run(go, scripts["llm"])


@pytest.mark.parametrize(
    ("answer", "is_taken"),
    [
        (SharedAnswer(1, b'{"number":7}'), True),
        (SharedAnswer(1, b'{"row_id":"1", "number":7}'), True),  # in the words of the model
        (SharedAnswer(3, reason=Reason.NOT_JSON), True),
        (SharedAnswer(1, b'{"number":"seven"}'), False),  # not the model's
        (SharedAnswer(4, b'{"number":7}'), False),  # more asks than there are
        (SharedAnswer(0, b'{"number":7}'), False),
    ],
)
def test_an_answer_of_another_worker_is_held_against_the_model(answer: SharedAnswer, *, is_taken: bool) -> None:
    shared = SharedAnswers(with_others=True)

    async def go(llm: Script) -> None:
        unit = Unit(shared, 0)
        async with anyio.create_task_group() as group:
            await unit.begin(group)
            [(_, news)] = await shared.outgoing()
            shared.heard(news.wanted, [msgspec.msgpack.encode(answer)])
        assert len(unit.result.finished()) == 3
        assert (unit.result.shared, len(llm.requests)) == ((3, 0) if is_taken else (0, 3))
        values = {output.value for output in unit.outcome().outputs}
        assert values <= {b'{"number":7}' if is_taken else b'{"number":1}'}

    with scripted(llm=lambda _request: Number(number=1)) as scripts:
        anyio.run(go, scripts["llm"])


@pytest.mark.parametrize("answer", [SharedAnswer(2, b'{"number":7}'), SharedAnswer(3, reason=Reason.NOT_JSON)])
def test_a_row_that_was_asked_before_it_takes_an_answer_costs_what_that_cost(answer: SharedAnswer) -> None:
    """Its own first answer was no good, and its next request failed."""
    shared, spent = SharedAnswers(with_others=True), Usage(prompt_tokens=10, completion_tokens=5, requests=1)

    async def go() -> None:
        unit = Unit(shared, 0)
        unit.result.unfinished["1"] = Unfinished(1, 1, spent, (("bad", "no JSON"),), 1)
        async with anyio.create_task_group() as group:
            await unit.begin(group)
            [(_, news)] = await shared.outgoing()
            shared.heard(news.wanted, [msgspec.msgpack.encode(answer)])
        outcome = unit.outcome()
        assert outcome.usage == spent and outcome.shared == 3
        costs = {row.row_id: row.spent for row in outcome.outputs} | {row.row_id: row.spent for row in outcome.rejected}
        assert costs["1"] == spent.spent and costs["0"] == Spent()

    with scripted(llm=lambda _request: Number(number=1)):
        anyio.run(go)
