"""A unit in a worker's hands: its rows are committed as they finish, whatever becomes of the others."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import replace
from typing import TypeVar

import anyio
import msgspec
import pytest
from anyio.lowlevel import checkpoint

from chainette import Chain, Step, register_engine
from chainette.core.compile import compile_chain
from chainette.core.flow import frontier
from chainette.core.plan import Plan
from chainette.engine.base import Cause, Completion, Done, Engine, Finish, Request
from chainette.engine.config import EngineRegistry, using_registry
from chainette.errors import EngineRefused, EngineUnavailable
from chainette.fleet.memory.memory_queue import MemoryQueue
from chainette.fleet.protocol.keys import RunKeys
from chainette.fleet.protocol.messages import Result, RootRecord
from chainette.fleet.protocol.queue_values import ANCHOR, Claim
from chainette.fleet.protocol.run_fields import RunInfo
from chainette.hooks import Hook
from chainette.io.rundir.event_types import AnswersDiscarded, UnitRetried
from chainette.records import CHAIN_INPUT, Outcome, Reason, Row, Unfinished, Usage
from chainette.run import unit_worker as worker_module
from chainette.run.held_unit import HeldUnit
from chainette.run.in_flight import InFlight, Lane
from chainette.run.unit_worker import Worker
from tests.support.chains import Text, Word
from tests.support.claims import claim_one
from tests.support.patience import LONG

T = TypeVar("T")

ROWS = 6


class Gated(Engine):
    """Answers a row when its gate opens; every ask is kept."""

    capacity = 8

    def __init__(self, wrong: Sequence[str] = ()) -> None:
        self.gates = {str(number): asyncio.Event() for number in range(ROWS)}
        self.wrong = set(wrong)
        self.asked: list[str] = []
        self.told: asyncio.Event = asyncio.Event()
        #: Raised once the gate of the last row opens.
        self.failure: Exception | None = None

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    def let(self, *rows: int) -> None:
        for row in rows:
            self.gates[str(row)].set()

    async def generate(self, requests: Sequence[Request], done: Done | None = None) -> list[Completion]:
        assert done is not None

        async def answer(index: int, row: str, ask: str) -> Completion:
            self.asked.append(f"{row}/{ask}")
            await self.gates[row].wait()
            if row == str(ROWS - 1) and self.failure is not None:
                raise self.failure
            text = "nothing" if row in self.wrong and ask == "1" else json.dumps({"word": row})
            completion = Completion(text, usage=Usage(1, 10, 5))
            done(index, completion)
            return completion

        labels = [request.label.split("/") for request in requests]
        return await asyncio.gather(*[answer(index, row, ask) for index, (_, row, ask) in enumerate(labels)])


class OneUnit(Worker):
    """A worker with one unit of ROWS rows of the step `first` in its hands, before the step `second`."""

    rows = ROWS

    def __init__(self, engine: Gated) -> None:
        self.engine, self.incarnation = engine, "me"
        self.hands, self.busy, self.evidence = InFlight(), set(), {}
        self.queue = self.memory = MemoryQueue()
        self.plan = two_steps()
        self.keys = RunKeys("run", 0)
        queues = [self.keys.queue("llm", name) for name in ("second", "first")]
        self.pairs = [("run", queue) for queue in queues]
        self.memory.install("run", 0, "owner", "anchor", queues, {"window": 100})
        rows = [Row(str(number), {CHAIN_INPUT: json.dumps({"text": "t"}).encode()}) for number in range(self.rows)]
        self.memory.admit(
            self.keys, self.plan, 0, 0, RootRecord(rows, self.rows), [], frontier(self.plan, 0, rows), "admission"
        )
        self.memory.beat("me", {}, LONG)
        self.held = HeldUnit(RunInfo("run"), self.plan, Hook(), Lane(100), self.claim())
        self.hands.take(self.held.lane, self.held.claim)

    def claim(self) -> Claim:
        found = claim_one(self.memory, "me", "token", self.pairs)
        assert isinstance(found, Claim)
        return found

    async def ask(self, call: Callable[[], T]) -> T:
        return call()

    async def process(self, held: HeldUnit) -> Outcome | None:
        await self.hands.begin(held.lane, held.claim)
        assert held.result is not None
        await self.ask_engine(held, held.result, self.engine, 0)
        return None

    # -- the state

    def committed(self) -> list[tuple[list[str], Usage]]:
        """(rows, usage) of every part in the stream."""
        return [([output.row_id for output in result.outputs], timeless(result.usage)) for result in self.results()]

    def results(self) -> list[Result]:
        entries = self.memory.read(self.keys, (ANCHOR, "anchor"))
        return [entry.message for entry in entries if isinstance(entry.message, Result)]

    def noted(self, kind: type[T]) -> list[T]:
        return [event for event in self.memory.notes("run", "0-0")[1] if isinstance(event, kind)]


def two_steps() -> Plan:
    with using_registry(EngineRegistry()):
        register_engine("llm", "m", "simulated")
        first = Step(id="first", input_model=Text, output_model=Word, engine_name="llm")
        second = Step(id="second", output_model=Word, engine_name="llm")
        return compile_chain(Chain(name="two", steps=[first, second], batch_size=64))


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A finished row is due at once."""
    monkeypatch.setattr("chainette.run.held_unit._PART", 0.0)
    monkeypatch.setattr(worker_module, "_LOOK", 0.001)
    yield


def on(engine: Gated, scene: Callable[[OneUnit], Awaitable[None]], kind: type[OneUnit] = OneUnit) -> OneUnit:
    """Plays a scene while the worker works on its unit and commits parts; the end of the unit is not awaited."""

    async def go() -> OneUnit:
        worker = kind(engine)
        with anyio.fail_after(LONG):
            async with anyio.create_task_group() as group:
                group.start_soon(worker.work, worker.held)
                group.start_soon(worker.commit_parts)
                await scene(worker)
                group.cancel_scope.cancel()
        return worker

    return anyio.run(go)


async def until(condition: Callable[[], object]) -> None:
    while not condition():  # noqa: ASYNC110 - the condition is about a queue, which has no events
        await anyio.sleep(0.001)


@pytest.mark.usefixtures("hurried")
def test_finished_rows_are_committed_with_their_own_usage_and_leave_room() -> None:
    engine = Gated(wrong=["1"])

    async def scene(worker: OneUnit) -> None:
        engine.let(0)
        await until(lambda: len(worker.committed()) == 1)
        assert worker.hands.rows == worker.held.lane.running == ROWS - 1
        assert worker.claim().unit.node == "second"
        engine.let(1)
        await until(lambda: len(worker.committed()) == 2)
        engine.let(2, 3, 4, 5)
        await until(lambda: not worker.hands.claims)

    committed = on(engine, scene).committed()
    assert committed[:2] == [(["0"], Usage(1, 10, 5)), (["1"], Usage(2, 20, 10))]
    assert sorted(row for rows, _ in committed for row in rows) == [str(number) for number in range(ROWS)]
    assert sum((usage for _, usage in committed), Usage()).requests == len(engine.asked) == ROWS + 1


def test_a_unit_that_finishes_within_a_second_is_one_commit() -> None:
    engine = Gated(wrong=["1"])

    async def scene(worker: OneUnit) -> None:
        engine.let(*range(ROWS))
        await until(lambda: not worker.hands.claims)

    assert on(engine, scene).committed() == [([str(number) for number in range(ROWS)], Usage(ROWS + 1, 70, 35))]


def test_a_bad_answer_is_asked_again_while_its_neighbours_are_awaited() -> None:
    engine = Gated(wrong=["0"])

    async def scene(_worker: OneUnit) -> None:
        engine.let(0)
        await until(lambda: "0/2" in engine.asked)

    on(engine, scene)


def test_a_worker_that_is_stopped_commits_what_has_finished_and_counts_the_rest() -> None:
    engine = Gated(wrong=["3"])

    async def scene(worker: OneUnit) -> None:
        engine.let(0, 2)
        await until(lambda: worker.held.result is not None and len(worker.held.result.finished()) == 2)
        engine.gates["3"].set()
        engine.gates["3"] = asyncio.Event()  # the second ask about row 3 stays open
        await until(lambda: "3/2" in engine.asked)

    worker = on(engine, scene)
    assert worker.committed() == [(["0", "2"], Usage(2, 20, 10))]
    [discarded] = worker.noted(AnswersDiscarded)
    assert timeless(discarded.usage) == Usage(5, 10, 5)  # rows 1, 4, 5 and twice row 3, whose first answer had come


def test_an_engine_that_fails_midway_keeps_the_answers_that_it_told() -> None:
    engine = Gated()
    engine.failure = EngineUnavailable("gone")

    async def scene(worker: OneUnit) -> None:
        engine.let(0, 1)
        await until(lambda: worker.held.result is not None and len(worker.held.result.finished()) == 2)
        engine.let(ROWS - 1)
        await until(lambda: not worker.hands.claims)

    worker = on(engine, scene)
    assert [rows for rows, _ in worker.committed()] == [["0", "1"]]
    assert [event.message for event in worker.noted(UnitRetried)] == ["gone"]


def test_a_refusal_after_answers_lets_the_other_requests_of_its_unit_finish() -> None:
    engine = Gated(wrong=["0"])
    engine.failure = EngineRefused("no credit")

    async def scene(worker: OneUnit) -> None:
        engine.let(1, 2, 3, 4)
        await until(lambda: worker.held.result is not None and len(worker.held.result.finished()) == 4)
        engine.let(0)
        engine.gates["0"] = asyncio.Event()  # the second ask about row 0 stays open
        await until(lambda: "0/2" in engine.asked)
        engine.let(ROWS - 1)
        for _ in range(20):
            await checkpoint()
        engine.let(0)
        await until(lambda: not worker.hands.claims)

    worker = on(engine, scene)
    assert [rows for rows, _ in worker.committed()] == [["0", "1", "2", "3", "4"]]
    assert [event.message for event in worker.noted(UnitRetried)] == ["no credit"]
    assert worker.noted(AnswersDiscarded) == []


@pytest.mark.usefixtures("hurried")
def test_a_part_that_is_refused_cancels_the_requests_of_its_unit() -> None:
    engine = Gated()

    async def scene(worker: OneUnit) -> None:
        await until(lambda: len(engine.asked) == ROWS)
        worker.memory.reconcile("me")  # somebody else has the unit now
        engine.let(0)
        await until(lambda: not worker.hands.claims)

    worker = on(engine, scene)
    assert worker.committed() == []
    assert [event.usage.requests for event in worker.noted(AnswersDiscarded)] == [ROWS]


class LostReply(OneUnit):
    """Each reply to a commit is lost once."""

    async def ask(self, call: Callable[[], T]) -> T:
        call()
        return call()


def test_a_final_commit_whose_reply_was_lost_counts_no_usage_as_discarded() -> None:
    engine = Gated()

    async def scene(worker: OneUnit) -> None:
        engine.let(*range(ROWS))
        await until(lambda: not worker.hands.claims)

    worker = on(engine, scene, LostReply)
    assert worker.committed() == [([str(number) for number in range(ROWS)], Usage(ROWS, 60, 30))]
    assert worker.noted(AnswersDiscarded) == []


class Failing(Gated):
    """Never answers row 0, and everything else at once."""

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[Request] = []

    async def generate(self, requests: Sequence[Request], done: Done | None = None) -> list[Completion]:
        self.requests += requests
        completions = [self.answer(request) for request in requests]
        for index, completion in enumerate(completions):
            if done is not None:
                done(index, completion)
        return completions

    def answer(self, request: Request) -> Completion:
        row = request.label.split("/")[1]
        if row == "0":
            return Completion("", Finish.FAILED, error="500", by="here", cause=Cause.BROKEN)
        return Completion(json.dumps({"word": row}), by="here")


class TakesOver(OneUnit):
    """Holds one row, which failed four times in another process."""

    rows = 1

    def claim(self) -> Claim:
        return replace(super().claim(), unfinished={"0": Unfinished(failures=4, tries=4, by="there")})


def test_a_row_that_failed_four_times_elsewhere_needs_one_probe_and_one_more_failure_here() -> None:
    engine = Failing()

    async def scene(worker: OneUnit) -> None:
        await until(lambda: not worker.hands.claims)

    worker = on(engine, scene, TakesOver)
    assert [request.label.split("/")[1] for request in engine.requests] == ["0", "probe", "0"]
    # the endpoint that failed it is told to the engine, which would take it for a failure of everybody otherwise
    assert [request.avoid for request in engine.requests] == ["there", "", "here"]
    [result] = worker.results()
    assert [(one.row_id, one.reason, one.message) for one in result.rejected] == [("0", Reason.ENGINE_ERROR, "500")]


def timeless(usage: Usage) -> Usage:
    """Without the engine's time, which nobody can foretell."""
    return msgspec.structs.replace(usage, busy=0.0)
