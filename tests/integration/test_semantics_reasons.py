"""Rejected rows have the reason, the message and the answer that led to it."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, field_validator, model_serializer, model_validator

from chainette import Chain, Step, apply
from chainette.core.run_settings import Format
from chainette.engine.base import Completion, Finish, Request
from chainette.errors import RunStopped
from chainette.hooks import Hook
from chainette.records import Message, Reason
from chainette.run.functions import MAX_FAN_OUT
from chainette.run.unit_result import MAX_ROW_BYTES, RAW_LIMIT
from tests.support.priced_rows import Price, Text, answered, ask, by_id, only_rejection, same, texts
from tests.support.scripted import row_of, scripted


@pytest.mark.parametrize(
    ("answer", "reason", "attempts", "words"),
    [
        (Completion("Sure! Here it is."), Reason.NOT_JSON, 3, "not JSON"),
        (Completion('{"price": -1}'), Reason.INVALID_OUTPUT, 3, "a price is not negative"),
        (Completion('{"cost": 1}'), Reason.INVALID_OUTPUT, 3, "price"),
        (Completion('{"pri', Finish.LENGTH), Reason.TRUNCATED, 1, "max_tokens=1024"),
        (Completion("", Finish.REFUSED, error="I cannot help"), Reason.REFUSED, 1, "I cannot help"),
        (Completion("", Finish.TOO_LONG, error="9000 of 4096 tokens"), Reason.PROMPT_TOO_LONG, 1, "9000 of 4096"),
        (Completion("", Finish.ERROR, error="400: bad schema"), Reason.ENGINE_ERROR, 1, "400: bad schema"),
    ],
)
def test_an_answer_is_rejected_with_its_reason(
    tmp_path: Path, answer: Completion, reason: Reason, attempts: int, words: str
) -> None:
    result, _ = answered(tmp_path, lambda request: '{"price": 1}' if row_of(request) == "probe" else answer)
    rejection = only_rejection(result)
    assert (rejection["step_id"], rejection["reason"], rejection["attempts"]) == ("ask", reason, attempts)
    assert rejection["raw"] == answer.text
    assert words in rejection["message"]
    assert result.counts["ask"]["reasons"] == {reason: 1}


def test_a_prompt_that_cannot_be_rendered_rejects_only_its_row(tmp_path: Path) -> None:
    result, script = answered(tmp_path, lambda request: '{"price": 1}', rows=3, user_prompt="{{ 1 // (text != 't1') }}")
    rejection = only_rejection(result)
    assert (rejection["row_id"], rejection["reason"], rejection["attempts"]) == ("1", Reason.TEMPLATE_ERROR, 0)
    assert "step 'ask', user_prompt" in rejection["message"]
    assert [row_of(request) for request in script.requests] == ["0", "2"]


def test_a_prompt_builder_that_raises_rejects_only_its_row(tmp_path: Path) -> None:
    def build(step: Step[Any, Any], item: Text, history: Mapping[str, Any]) -> list[Message]:
        if item.text == "t1":
            raise KeyError("t1")
        return [Message("user", item.text)]

    result, script = answered(tmp_path, lambda request: '{"price": 1}', rows=2, prompt_builder=build)
    assert only_rejection(result)["reason"] == Reason.TEMPLATE_ERROR
    assert texts(script.requests[0].messages) == [("user", "t0")]


def test_a_prompt_builder_that_gives_no_messages_rejects_the_row_with_what_it_gave(tmp_path: Path) -> None:
    given: list[Any] = [[{"role": "user"}], "text", []]

    def build(step: Any, item: Text, history: Any) -> Any:
        return given[int(item.text[1:])]

    result, _ = answered(tmp_path, lambda request: '{"price": 1}', rows=3, prompt_builder=build)
    wanted = "prompt_builder of step 'ask' must return a list of Message(role, content), it returned"
    assert [row["message"] for row in result.rows("rejected")] == [
        f"{wanted} a list with {{'role': 'user'}}",
        f"{wanted} 'text'",
        f"{wanted} []",
    ]


def test_a_validator_that_raises_where_a_step_receives_a_row_rejects_only_that_row(tmp_path: Path) -> None:
    class Fussy(BaseModel):
        text: str

        @field_validator("text")
        @classmethod
        def look_up(cls, value: str) -> str:
            return {"t0": value, "t2": value}[value]

    with scripted(llm=lambda request: '{"price": 1}'):
        fussy = Step(id="fussy", input_model=Fussy, output_model=Price, engine_name="llm")
        chain = Chain(name="fussy", steps=[apply(same), fussy])
        result = chain.run([Text(text=f"t{number}") for number in range(3)], tmp_path / "run")
    rejection = only_rejection(result)
    assert (rejection["row_id"], rejection["step_id"], rejection["reason"]) == ("1", "fussy", Reason.TEMPLATE_ERROR)
    assert "KeyError" in rejection["message"]


def test_a_function_that_raises_rejects_its_row_and_names_the_line(tmp_path: Path) -> None:
    def refuse(item: Text) -> list[Text]:
        raise LookupError("not this one")

    result = Chain(name="refusing", steps=[apply(refuse)]).run([Text(text="a")], tmp_path / "run")
    rejection = only_rejection(result)
    assert (rejection["reason"], rejection["attempts"], rejection["raw"]) == (Reason.APPLY_ERROR, 0, None)
    assert "LookupError: not this one" in rejection["message"] and "test_semantics_reasons.py:" in rejection["message"]


def test_a_function_that_ends_the_program_rejects_its_row_only(tmp_path: Path) -> None:
    def leave(item: Text) -> Text:
        if item.text == "bad":
            sys.exit(3)
        return item

    async def leave_async(item: Text) -> Text:
        return leave(item)

    for function in (leave, leave_async):
        chain = Chain(name="leaving", steps=[apply(function)])
        result = chain.run([Text(text="a"), Text(text="bad"), Text(text="b")], tmp_path / function.__name__)
        assert only_rejection(result)["message"].startswith("SystemExit: 3")
        assert [row["row_id"] for row in result.rows("flattened")] == ["0", "2"]


class Mute(Exception):
    """Cannot say its fault."""

    def __str__(self) -> str:
        raise ValueError


#: Exceptions a user's code may raise about a row; nobody may mistake them for the end of the run.
RAISABLE = [
    SystemExit(3),
    LookupError("bad"),
    asyncio.CancelledError(),
    GeneratorExit(),
    BaseExceptionGroup("two", [SystemExit()]),
    Mute(),
]


def stop(value: str, error: BaseException) -> str:
    if value == "bad":
        raise error
    return value


@pytest.mark.parametrize("error", RAISABLE, ids=lambda error: type(error).__name__)
def test_a_function_that_raises_whatever_it_is_rejects_its_row_only(tmp_path: Path, error: BaseException) -> None:
    def plain(item: Text) -> Text:
        return Text(text=stop(item.text, error))

    async def slow(item: Text) -> Text:
        return Text(text=stop(item.text, error))

    def many(item: Text) -> Iterator[Text]:
        yield Text(text=stop(item.text, error))

    many.__annotations__["return"] = list[Text]
    for function in (plain, slow, many):
        chain = Chain(name="raising", steps=[apply(function)])
        result = chain.run([Text(text="a"), Text(text="bad"), Text(text="b")], tmp_path / function.__name__)
        rejection = only_rejection(result)
        assert (rejection["row_id"], rejection["reason"]) == ("1", Reason.APPLY_ERROR)
        assert type(error).__name__ in rejection["message"]
        assert result.metadata["records"] == 3 and len([*result.rows("flattened")]) == 2


def test_a_hook_that_raises_what_looks_like_a_cancellation_stops_the_run(tmp_path: Path) -> None:
    class Cancelling(Hook):
        def on_answers(self, *_arguments: Any) -> None:
            raise asyncio.CancelledError

    with scripted(llm=lambda _request: '{"price": 1}'), pytest.raises(RunStopped, match="CancelledError"):
        Chain(name="rows", steps=[ask()]).run([Text(text="a")], tmp_path / "run", hooks=(Cancelling(),))


@pytest.mark.parametrize("error", RAISABLE, ids=lambda error: type(error).__name__)
def test_a_model_of_a_functions_that_raises_rejects_its_row_only(tmp_path: Path, error: BaseException) -> None:
    raised = type(error).__name__

    class Careful(BaseModel):
        text: str

        @field_validator("text")
        @classmethod
        def check(cls, value: str) -> str:
            return stop(value, error)

        def __repr__(self) -> str:
            return stop(self.text, error)

    def careful(item: Text) -> Careful:
        return {"text": item.text}  # type: ignore[return-value]

    def wrong(item: Text) -> Text:
        return Careful.model_construct(text=item.text) if item.text == "bad" else item  # type: ignore[return-value]

    for function, said in ((careful, raised), (wrong, "returned <Careful:")):
        chain = Chain(name="careful", steps=[apply(function)])
        result = chain.run([Text(text="a"), Text(text="bad"), Text(text="b")], tmp_path / function.__name__)
        rejection = only_rejection(result)
        assert rejection["reason"] == Reason.APPLY_ERROR and said in rejection["message"]
        assert [row["row_id"] for row in result.rows("flattened")] == ["0", "2"]


#: Exceptions of the models below.
raising: BaseException = SystemExit(3)


class Leaving(BaseModel):
    text: str

    @field_validator("text")
    @classmethod
    def leave(cls, value: str) -> str:
        return stop(value, raising)


class Property(BaseModel):
    text: str

    @property
    def shout(self) -> str:
        return stop(self.text, raising)


class Unwritable(BaseModel):
    text: str

    @model_serializer
    def write(self) -> dict[str, str]:
        return {"text": stop(self.text, raising)}


def build(step: Any, row: Any, history: Any) -> list[Message]:
    return [Message("user", Property(text=row.text).shout)]


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        pytest.param({"input_model": Leaving}, Reason.INVALID_INPUT, id="validator of the input"),
        pytest.param({"output_model": Leaving}, Reason.INVALID_OUTPUT, id="validator of an answer"),
        pytest.param({"output_model": Unwritable}, Reason.INVALID_OUTPUT, id="serializer of an answer"),
        pytest.param({"input_model": Property, "user_prompt": "{{ input.shout }}"}, Reason.TEMPLATE_ERROR, id="template"),
        pytest.param({"prompt_builder": build}, Reason.TEMPLATE_ERROR, id="prompt builder"),
    ],
)
@pytest.mark.parametrize("error", RAISABLE, ids=lambda error: type(error).__name__)
def test_a_users_code_that_ends_the_program_costs_its_row_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keys: dict[str, Any], reason: Reason, error: BaseException
) -> None:
    monkeypatch.setattr(f"{__name__}.raising", error)

    def answer(request: Request) -> str:
        return json.dumps({"text": {"0": "a", "1": "bad", "2": "b"}[row_of(request)]})

    path = tmp_path / "in.jsonl"
    path.write_text('{"text": "a"}\n{"text": "bad"}\n{"text": "b"}\n')
    with scripted(llm=answer):
        models: dict[str, Any] = {"input_model": Text, "output_model": Text} | keys
        step = Step(id="ask", engine_name="llm", **models)
        result = Chain(name="leaving", steps=[step]).run(path, tmp_path / "run")
    rejection = only_rejection(result)
    assert (rejection["row_id"], rejection["reason"]) == ("1", reason)
    assert [row["row_id"] for row in result.rows("flattened")] == ["0", "2"]


@pytest.mark.parametrize("returned", [None, Text(text="one"), "text", {"text": "a"}, [1], [Price(price=1)], 7])
def test_a_function_that_returns_something_else_than_it_declared_rejects_its_row(tmp_path: Path, returned: Any) -> None:
    def wrong(item: Text) -> list[Text]:
        return returned  # type: ignore[no-any-return]

    result = Chain(name="wrong", steps=[apply(wrong)]).run([Text(text="a")], tmp_path / "run")
    assert only_rejection(result)["reason"] == Reason.APPLY_ERROR


@pytest.mark.parametrize("extra", ["row_id", "_attempts", "_key"])
def test_an_answer_with_a_name_that_rows_have_already_is_rejected(tmp_path: Path, extra: str) -> None:
    class Open(BaseModel):
        model_config = ConfigDict(extra="allow")
        price: int

    def answer(request: Request) -> str:
        return json.dumps({"price": 1, extra: "9"}) if row_of(request) == "1" else json.dumps({"price": 1, "in": extra})

    with scripted(llm=answer):
        step = Step(id="open", input_model=Text, output_model=Open, engine_name="llm")
        result = Chain(name="open", steps=[step]).run([Text(text="a"), Text(text="b")], tmp_path / "run")
    assert [(row["row_id"], row["in"]) for row in result.rows("open")] == [("0", extra)]
    assert repr(extra) in only_rejection(result)["message"]


def test_a_row_that_is_no_json_object_is_rejected(tmp_path: Path) -> None:
    class Short(BaseModel):
        text: str

        @model_validator(mode="before")
        @classmethod
        def from_text(cls, value: Any) -> Any:
            return {"text": value} if isinstance(value, str) else value

        @model_serializer
        def as_text(self) -> Any:
            return self.text

    def shorten(item: Text) -> Short:
        return Short(text=item.text)

    result = Chain(name="short", steps=[apply(shorten)]).run([Text(text="a")], tmp_path / "run")
    assert "a row must be a JSON object" in only_rejection(result)["message"]


@pytest.mark.parametrize("format", ["jsonl", "parquet"])
def test_a_row_of_a_subclass_becomes_a_row_of_the_declared_model(tmp_path: Path, format: Format) -> None:
    class Rich(Text):
        more: int = 5

    def enrich(item: Text) -> Text:
        return Rich(text=item.text)

    result = Chain(name="subclass", steps=[apply(enrich)]).run([Text(text="a")], tmp_path / "run", format=format)
    assert list(result.rows("enrich")) == [{"row_id": "0", "text": "a"}]


def test_a_generator_without_end_rejects_its_row(tmp_path: Path) -> None:
    def endless(item: Text) -> Any:
        while True:
            yield item

    result = Chain(name="endless", steps=[apply(endless)]).run([Text(text="a")], tmp_path / "run")
    assert f"{MAX_FAN_OUT:,}" in only_rejection(result)["message"]


def test_a_row_that_becomes_more_than_16_mb_is_rejected_and_costs_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spread(item: Text) -> list[Text]:
        return [item] * (100 if item.text == "1" else 1)

    assert MAX_ROW_BYTES == 16 << 20
    monkeypatch.setattr("chainette.run.unit_result.MAX_ROW_BYTES", 500)
    with scripted(llm=lambda request: json.dumps({"text": row_of(request) * (1000 if row_of(request) == "0" else 1)})):
        step = Step(id="say", input_model=Text, output_model=Text, engine_name="llm")
        inputs = [Text(text="a"), Text(text="b"), Text(text="c")]
        result = Chain(name="large", steps=[step, apply(spread)]).run(inputs, tmp_path / "run")
    found = {row["row_id"]: row for row in result.rows("rejected")}
    assert {row_id: (row["step_id"], row["reason"]) for row_id, row in found.items()} == {
        "0": ("say", Reason.TOO_LARGE),
        "1": ("spread", Reason.TOO_LARGE),
    }
    assert found["0"]["attempts"] == 1 and "at most 500 are kept of one" in found["1"]["message"]
    assert [row["row_id"] for row in result.rows("spread")] == ["2~0"]


@pytest.mark.parametrize(
    ("answer", "word"),
    [
        (Completion("no \ud83d"), None),
        (Completion('{"text": "half \ud83d"}'), "half ?"),
        (Completion('{"text": "ok"}', reasoning="hm \ud83d"), "ok"),
        (Completion("", Finish.ERROR, error="400 \ud83d"), None),
    ],
)
def test_half_a_character_in_an_answer_costs_no_other_row(tmp_path: Path, answer: Completion, word: str | None) -> None:
    with scripted(llm=lambda request: answer if row_of(request) == "0" else '{"text": "whole"}'):
        step = Step(id="say", input_model=Text, output_model=Text, engine_name="llm")
        result = Chain(name="half", steps=[step]).run([Text(text="a"), Text(text="b")], tmp_path / "run")
    rows = {row_id: row["text"] for row_id, row in by_id(result, "say").items()}
    assert rows == ({"1": "whole"} if word is None else {"0": word, "1": "whole"})
    assert result.metadata["balanced"]


def test_half_a_character_in_an_exception_costs_no_other_row(tmp_path: Path) -> None:
    def refuse(item: Text) -> Text:
        raise ValueError("bad \ud83d")

    result = Chain(name="half", steps=[apply(refuse)]).run([Text(text="a")], tmp_path / "run")
    assert only_rejection(result)["message"].startswith("ValueError: bad ?")


def test_the_raw_answer_of_a_rejection_is_cut_at_64_kib(tmp_path: Path) -> None:
    result, _ = answered(tmp_path, lambda request: "x" * 100_000, max_attempts=1)
    assert len(only_rejection(result)["raw"]) == RAW_LIMIT == 65_536
