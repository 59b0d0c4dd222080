"""`chain.stream(row)`: the events of a row as they happen, and the same rows as every other way of running."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from pydantic import BaseModel

from chainette import Branch, Chain, Step, apply, register_engine
from chainette.core.streaming import Asked, Dropped, Finished, Joined, Passed, Piece, StreamEvent, Unusable
from chainette.engine.base import Completion, Engine, Request
from chainette.engine.config import EngineRegistry, using_registry
from chainette.errors import EngineUnavailable, RunStopped
from chainette.hooks import Hook
from chainette.records import CHAIN_INPUT, Rejection
from tests.support.chains import Text, everything, finished
from tests.support.models import SMOL, needs_model
from tests.support.patience import LONG
from tests.support.scripted import scripted


class Fact(BaseModel):
    name: str


def fact_step(**keys: Any) -> Step[Text, Fact]:
    return Step(id="fact", input_model=Text, output_model=Fact, engine_name="llm", **keys)


def only(*steps: Any) -> Chain:
    return Chain(name="small", steps=[*steps])


def kinds(events: list[StreamEvent]) -> list[str]:
    return [type(event).__name__ for event in events]


def answers(events: list[StreamEvent]) -> dict[tuple[str, str], str]:
    """The pieces of every last answer, joined."""
    texts: dict[tuple[str, str], str] = {}
    for event in events:
        match event:
            case Asked():
                texts[event.step_id, event.row_id] = ""
            case Piece():
                texts[event.step_id, event.row_id] += event.text
            case _:
                pass
    return texts


@pytest.mark.parametrize(("error_rate", "rows"), [(0.0, 8), (0.3, 1)])
def test_every_kind_of_node_is_told_and_the_rows_are_those_of_a_run(error_rate: float, rows: int) -> None:
    """With errors too: units are tried again, and their earlier words are void."""
    seen: set[str] = set()
    for number in range(rows):
        row = Text(text=f"text number {number}")
        chain = everything(error_rate=error_rate)
        events = list(chain.stream(row, seed=number))
        told = [event.row for event in events if isinstance(event, Finished)]
        assert told == finished(everything().run_iter([row], seed=number))
        texts = answers(events)
        for event in events:
            if isinstance(event, Passed) and event.node_id in ("extract", "hidden", "closing"):
                assert texts[event.node_id, event.row.row_id].encode() == event.row.values[event.node_id]
        seen |= {*kinds(events)}
    assert error_rate or seen == {"Asked", "Piece", "Unusable", "Passed", "Dropped", "Joined", "Rejection", "Finished"}


def test_the_order_is_question_pieces_output_and_the_joined_row_has_its_aliases() -> None:
    with using_registry(EngineRegistry()):
        register_engine("llm", "none", "simulated")
        double = apply(lambda fact: [fact, fact], id="double", input_model=Fact, output_model=Fact)
        nothing = apply(_nothing, id="nothing")
        chain = only(fact_step(), [Branch("twice", [double]).join("two"), Branch("side", [nothing])])
    events = list(chain.stream({"text": "a"}))
    assert kinds(events[:2]) == ["Asked", "Piece"]
    pieces = [event for event in events if isinstance(event, Piece)]
    assert {(piece.step_id, piece.row_id, piece.ask) for piece in pieces} == {("fact", "0", 1)}
    fact = events[1 + len(pieces)]
    assert isinstance(fact, Passed) and fact.row["fact"]["name"] in "".join(piece.text for piece in pieces)
    assert {(event.node_id, event.row.row_id) for event in events if isinstance(event, Passed)} == {
        ("fact", "0"),
        ("double", "0~0"),
        ("double", "0~1"),
    }
    assert [event for event in events if isinstance(event, Dropped)] == [Dropped("nothing", "0")]
    [joined] = [event for event in events if isinstance(event, Joined)]
    assert joined.aliases == ("two",)
    assert joined.row["two"] == [fact.row["fact"]] * 2
    last = events[-1]
    assert isinstance(last, Finished) and last.row["two"] == joined.row["two"]


def _nothing(fact: Fact) -> Fact | None:
    return None


def test_an_answer_that_does_not_validate_is_told_with_its_reason_and_asked_again() -> None:
    texts = ['{"name": 1}', "no idea", '{"name": "x"}']
    with scripted(llm=lambda request: texts.pop(0)):
        events = list(only(fact_step()).stream({"text": "a"}))
    assert kinds(events) == [*["Asked", "Piece", "Unusable"] * 2, "Asked", "Piece", "Passed", "Finished"]
    assert [event.reason for event in events if isinstance(event, Unusable)] == ["invalid_output", "not_json"]
    assert [event.ask for event in events if isinstance(event, Asked)] == [1, 2, 3]
    last = events[-4]
    assert isinstance(last, Asked) and last.messages[-2].content == "no idea"


def test_a_row_that_is_rejected_ends_with_its_rejection() -> None:
    with scripted(llm=lambda request: "no idea"):
        events = list(only(fact_step(max_attempts=1)).stream({"text": "a"}))
    assert kinds(events) == ["Asked", "Piece", "Rejection"]
    [wrong] = only_rejections(list(everything().stream({"txt": "a"})))
    assert (wrong.step_id, wrong.reason) == (CHAIN_INPUT, "invalid_input")


def only_rejections(events: list[StreamEvent]) -> list[Rejection]:
    assert all(isinstance(event, Rejection) for event in events)
    return [event for event in events if isinstance(event, Rejection)]


def test_reasoning_is_told_apart_from_the_answer() -> None:
    with scripted(llm=lambda request: Completion('{"name": "x"}', reasoning="let me see")):
        pieces = [event for event in only(fact_step()).stream({"text": "a"}) if isinstance(event, Piece)]
    assert [(piece.text, piece.reasoning) for piece in pieces] == [('{"name": "x"}', "let me see")]


def test_an_engine_that_is_gone_ends_the_stream_with_its_error() -> None:
    def away(request: Request) -> str:
        raise EngineUnavailable("engine 'llm': gone")

    with scripted(llm=away), pytest.raises(RunStopped, match="gone"):
        list(only(fact_step()).stream({"text": "a"}, engine_patience=0.0))


def test_a_stream_works_inside_a_running_event_loop() -> None:
    async def inside() -> list[StreamEvent]:
        return list(everything().stream({"text": "text number 1"}, seed=1))

    outside = list(everything().stream({"text": "text number 1"}, seed=1))
    assert sorted(map(repr, asyncio.run(inside()))) == sorted(map(repr, outside))


def test_closing_the_iterator_stops_the_generation_at_the_engine() -> None:
    stopped = threading.Event()

    async def never(request: Request) -> str:
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()
        return ""

    with scripted(llm=never) as scripts:
        stream = only(fact_step()).stream({"text": "a"})
        assert isinstance(next(stream), Asked)
        stream.close()  # type: ignore[attr-defined]
        assert stopped.is_set()
        assert scripts["llm"].calls[-1] == "close"


class Clumsy(Hook):
    """Fails at the first piece, with an error that looks like a connection's."""

    streams = True

    def on_stream(self, event: StreamEvent) -> None:
        if isinstance(event, Piece):
            raise BrokenPipeError("nobody reads")


def test_an_error_of_who_listens_stops_the_run_and_is_not_taken_for_the_engines() -> None:
    with using_registry(EngineRegistry()):
        register_engine("llm", "none", "simulated", latency=0.05)
        chain = only(fact_step())
    with pytest.raises(BrokenPipeError, match="nobody reads"):
        list(chain.run_iter([{"text": "a"}], hooks=(Clumsy(),)))


def test_an_error_about_a_row_of_a_unit_that_goes_on_stops_the_run_as_it_was_raised() -> None:
    class Strict(Hook):
        streams = True

        def on_stream(self, event: StreamEvent) -> None:
            if isinstance(event, Passed):
                told.set()
                raise LookupError("not this one")

    told = threading.Event()

    def slow(item: Text) -> Fact:
        if item.text == "b":
            told.wait(LONG)  # until the row before has been told
        return Fact(name=item.text)

    with pytest.raises(LookupError, match="not this one"):
        list(only(apply(slow)).run_iter([{"text": "a"}, {"text": "b"}], hooks=(Strict(),)))


def test_a_run_that_nobody_streams_asks_whole_units(monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(self: Engine, request: Request, tell: object) -> Completion:
        raise AssertionError("streamed")

    monkeypatch.setattr(Engine, "stream", refuse)
    with scripted(llm=lambda request: Fact(name="x")) as scripts:
        rows = finished(only(fact_step()).run_iter([Text(text=str(number)) for number in range(8)]))
        assert scripts["llm"].calls.count("generate") == 1
    assert len(rows) == 8


@pytest.mark.long
@needs_model
def test_a_real_model_streams_the_row_that_a_run_gives() -> None:
    with using_registry(EngineRegistry()):
        register_engine("llm", SMOL, capacity=1)
        chain = only(fact_step())
    events = list(chain.stream({"text": "Ada Lovelace wrote it"}))
    assert len([event for event in events if isinstance(event, Piece)]) > 2
    [whole] = finished(chain.run_iter([{"text": "Ada Lovelace wrote it"}]))
    assert events[-1] == Finished(whole)
