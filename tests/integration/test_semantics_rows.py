"""Rows, rejections, re-asks, seeds and accounting (docs/semantics.md)."""

from __future__ import annotations

import asyncio
import csv
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from pydantic import BaseModel, ConfigDict, field_validator, model_serializer, model_validator

from chainette import Branch, Chain, RunResult, SamplingParams, Step, apply, register_engine
from chainette.core.run_settings import Format
from chainette.engine.base import Completion, Finish, Request
from chainette.engine.config import EngineRegistry, using_registry
from chainette.errors import RunStopped
from chainette.hooks import Hook
from chainette.records import Message, Reason, Usage, row_order
from chainette.run.ask import row_seed
from chainette.run.functions import MAX_FAN_OUT
from chainette.run.unit_result import MAX_ROW_BYTES, RAW_LIMIT
from tests.support.chains import content, everything, write_inputs
from tests.support.scripted import Answering, Script, ScriptedEngine, ask_of, row_of, scripted


class Text(BaseModel):
    text: str


class Price(BaseModel):
    price: int

    @field_validator("price")
    @classmethod
    def positive(cls, value: int) -> int:
        if value < 0:
            raise ValueError("a price is not negative")
        return value


def ask(**keys: Any) -> Step[Text, Price]:
    return Step(id="ask", input_model=Text, output_model=Price, engine_name="llm", **keys)


def answered(path: Path, answer: Answering, rows: int = 1, **keys: Any) -> tuple[RunResult, Script]:
    """A run of one step over `rows` rows, answered by `answer`."""
    with scripted(llm=answer) as scripts:
        result = Chain(name="rows", steps=[ask(**keys)]).run([Text(text=f"t{number}") for number in range(rows)], path / "run")
    assert result.metadata["balanced"]
    return result, scripts["llm"]


def only_rejection(result: RunResult) -> dict[str, Any]:
    (rejection,) = result.rows("rejected")
    return rejection


def texts(messages: tuple[Message, ...]) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in messages]


# -- ids, lines, columns


def same(item: Text) -> Text:
    return item


def plain(path: Path, inputs: Any, **options: Any) -> RunResult:
    """A run of nothing but a function that returns its argument."""
    return Chain(name="plain", steps=[apply(same)], batch_size=2).run(inputs, path / "run", **options)


def by_id(result: RunResult, step: str) -> dict[str, dict[str, Any]]:
    return {row["row_id"]: row for row in result.rows(step)}


def test_bad_lines_take_a_row_id_and_blank_lines_do_not(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text('{"text": "a"}\n\n{"txt": 1}\n   \nnot json\n{"text": "b"}\n')
    result = plain(tmp_path, path)
    assert {row_id: row["text"] for row_id, row in by_id(result, "same").items()} == {"0": "a", "3": "b"}
    assert {row_id: row["line"] for row_id, row in by_id(result, "rejected").items()} == {"1": 3, "2": 5}


def test_a_bad_line_is_rejected_at_chain_input_with_its_text(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text('{"text": 5}\n')
    rejection = only_rejection(plain(tmp_path, path))
    assert (rejection["step_id"], rejection["reason"], rejection["attempts"]) == ("chain_input", Reason.INVALID_INPUT, 0)
    assert rejection["raw"] == '{"text": 5}'
    assert "text" in rejection["message"] and "5" in rejection["message"]


def test_a_rejection_names_the_line_that_its_row_came_from(tmp_path: Path) -> None:
    def refuse(item: Text) -> list[Text]:
        raise ValueError(item.text)

    path = tmp_path / "in.jsonl"
    path.write_text('\n{"text": "a"}\n')
    result = Chain(name="plain", steps=[apply(refuse)]).run(path, tmp_path / "run")
    assert only_rejection(result)["line"] == 2


@pytest.mark.parametrize(
    ("format", "plain"), [("jsonl", [7, True, [1]]), ("parquet", ["7", "true", "[1]"]), ("csv", ["7", "true", "[1]"])]
)
def test_key_copies_an_input_column_into_every_shard(tmp_path: Path, format: Format, plain: list[Any]) -> None:
    def split(item: Text) -> list[Text]:
        if item.text == "bad":
            raise ValueError("bad")
        return [item, item]

    path = tmp_path / "in.jsonl"
    path.write_text(
        '{"text": "a", "sku": "A-1"}\n{"text": "b"}\n{"text": "bad", "sku": 7}\n{"sku": "C"}\n'
        '{"text": "bad", "sku": true}\n{"text": "bad", "sku": [1]}\n{"text": "bad", "sku": "7"}\n'
    )
    result = Chain(name="keyed", steps=[apply(split)]).run(path, tmp_path / "run", key="sku", format=format)
    keys = {
        folder: {row_id: row["_key"] for row_id, row in by_id(result, folder).items()}
        for folder in ("split", "flattened", "rejected")
    }
    assert keys["split"] == keys["flattened"] == {"0~0": "A-1", "0~1": "A-1", "1~0": None, "1~1": None}
    assert [keys["rejected"][row_id] for row_id in ("2", "4", "5", "6")] == [*plain, "7"]
    [feature] = [
        one for one in json.loads((tmp_path / "run/graph.json").read_text())["features"]["split"] if one["name"] == "_key"
    ]
    assert feature["dtype"] == "json"  # JSON Lines keep each as it is
    if format == "parquet":
        table = pyarrow.parquet.read_table(tmp_path / "run/split/0.parquet")
        assert table["_key"].to_pylist() == ["A-1", "A-1", None, None]


@pytest.mark.parametrize("format", ["jsonl", "parquet", "csv"])
def test_usage_says_what_each_row_took_over_all_its_asks(tmp_path: Path, format: Format) -> None:
    def answer(request: Request) -> Completion:
        asked, number = row_of(request), ask_of(request)
        text = '{"price": 1}' if (asked, number) in {("0", 1), ("1", 2)} else '{"price": -1}'
        return Completion(text, usage=Usage(1, 10, number, 0.5, 0.25))

    with scripted(llm=answer):
        chain, rows = Chain(name="rows", steps=[ask()]), [Text(text=text) for text in "abc"]
        plain = chain.run(rows, tmp_path / "plain", format=format)
        result = chain.run(rows, tmp_path / "run", format=format, usage=True)
    names = ("_prompt_tokens", "_completion_tokens", "_queued", "_seconds")
    found = {
        row_id: tuple(row[name] for name in names)
        for folder in ("ask", "rejected")
        for row_id, row in by_id(result, folder).items()
    }
    assert found == {"0": (10, 1, 0.25, 0.5), "1": (20, 3, 0.5, 1.0), "2": (30, 6, 0.75, 1.5)}
    usage = result.metadata["usage"]
    assert [sum(row[at] for row in found.values()) for at in range(4)] == [
        usage[name] for name in ("prompt_tokens", "completion_tokens", "queued", "seconds")
    ]
    assert not {*names} & {*next(plain.rows("ask"))} and not {*names} & {*next(plain.rows("rejected"))}
    assert "_seconds" in result.dataset()["ask"].column_names


def test_unknown_columns_follow_the_models_extra(tmp_path: Path) -> None:
    class Open(BaseModel):
        model_config = ConfigDict(extra="allow")
        text: str

    class Closed(BaseModel):
        model_config = ConfigDict(extra="forbid")
        text: str

    def inputs(model: type[BaseModel], folder: str) -> RunResult:
        chain = Chain(name="extra", steps=[apply(lambda item: [item], id="same", output_model=model)], input_model=model)
        return chain.run([{"text": "a", "more": 1}], tmp_path / folder)

    assert next(inputs(Open, "allow").rows("same"))["more"] == 1
    assert "more" not in next(inputs(Text, "ignore").rows("same"))
    assert "more" in only_rejection(inputs(Closed, "forbid"))["message"]


def test_an_input_field_named_row_id_is_safe(tmp_path: Path) -> None:
    class Record(BaseModel):
        row_id: str

    def keep(item: Record) -> Text:
        return Text(text=item.row_id)

    result = Chain(name="ids", steps=[apply(keep)]).run([Record(row_id="mine")], tmp_path / "run")
    assert list(result.rows("flattened")) == [{"row_id": "0", "chain_input.row_id": "mine", "keep.text": "mine"}]


def test_an_empty_csv_cell_is_missing(tmp_path: Path) -> None:
    class Maybe(BaseModel):
        text: str
        note: str | None = "none given"

    def keep(item: Maybe) -> Maybe:
        return item

    path = tmp_path / "in.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["text", "note"], ["a", ""], ["", "b"]])
    result = Chain(name="csv", steps=[apply(keep)]).run(path, tmp_path / "run")
    assert [(row["text"], row["note"]) for row in result.rows("keep")] == [("a", "none given")]
    assert only_rejection(result)["row_id"] == "1"


def test_limit_takes_records_from_the_start(tmp_path: Path) -> None:
    result = plain(tmp_path, [Text(text=str(number)) for number in range(9)], limit=3)
    assert sorted(by_id(result, "flattened")) == ["0", "1", "2"]


# -- re-asks


def test_a_bad_answer_is_sent_back_with_what_was_wrong_as_two_messages(tmp_path: Path) -> None:
    result, script = answered(tmp_path, lambda request: '{"price": "x"}' if ask_of(request) == 1 else '{"price": 3}')
    first, second = (request.messages for request in script.requests)
    assert second[: len(first)] == first
    answer, complaint = texts(second[len(first) :])
    assert answer == ("assistant", '{"price": "x"}')
    assert complaint[0] == "user" and "price" in complaint[1] and "'x'" in complaint[1]
    assert by_id(result, "ask")["0"]["_attempts"] == 2


@pytest.mark.parametrize("text", ["", " \n"])
def test_an_empty_answer_is_not_sent_back(tmp_path: Path, text: str) -> None:
    result, script = answered(tmp_path, lambda request: text if ask_of(request) == 1 else '{"price": 3}')
    (first, second) = (texts(request.messages) for request in script.requests)
    assert [role for role, _ in second] == [role for role, _ in first] == ["system", "user"]
    assert second[1][1].startswith(first[1][1]) and "That answer cannot be used" in second[1][1]
    assert by_id(result, "ask")["0"]["_attempts"] == 2


def test_a_bad_answer_is_cut_to_the_room_that_the_context_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ScriptedEngine, "context", 400)
    bad = "x" * 600  # 3 characters a token; 400 - 100 - 100 tokens are left

    def answer(request: Request) -> Completion:
        text = bad if ask_of(request) == 1 else '{"price": 3}'
        return Completion(text, usage=Usage(1, 100, len(text) // 3))

    _, script = answered(tmp_path, answer, sampling=SamplingParams(max_tokens=100))
    *_, kept, complaint = script.requests[1].messages
    assert bad.startswith(kept.content) and len(kept.content) + len(complaint.content) == 600


def test_a_bad_answer_that_makes_the_prompt_too_long_is_left_out(tmp_path: Path) -> None:
    def answer(request: Request) -> Completion:
        sent_back = any(message.role == "assistant" for message in request.messages)
        if sent_back:
            return Completion("", Finish.TOO_LONG, error="500 of 400 tokens")
        return Completion('{"price": "x"}' if ask_of(request) == 1 else '{"price": 3}')

    result, script = answered(tmp_path, answer)
    assert len(script.requests) == 3 and "'x'" in script.requests[2].messages[-1].content
    assert by_id(result, "ask")["0"]["_attempts"] == 3


def test_a_bad_answer_that_the_server_refuses_is_left_out(tmp_path: Path) -> None:
    def answer(request: Request) -> Completion:
        if any(message.role == "assistant" for message in request.messages):
            return Completion("", Finish.ERROR, error="400: messages[2]: invalid content")
        return Completion('{"price": "x"}' if ask_of(request) == 1 else '{"price": 3}')

    result, _ = answered(tmp_path, answer)
    assert by_id(result, "ask")["0"]["_attempts"] == 3


def test_a_huge_answer_is_sent_back_in_part_although_the_context_is_unknown(tmp_path: Path) -> None:
    _, script = answered(tmp_path, lambda request: "x" * 5_000_000 if ask_of(request) == 1 else '{"price": 3}')
    *_, kept, complaint = script.requests[1].messages
    assert len(kept.content) == 32_768 and len(complaint.content) < 1000


def test_a_truncated_answer_is_not_asked_for_again_at_temperature_0(tmp_path: Path) -> None:
    result, script = answered(tmp_path, lambda request: Completion('{"pri', Finish.LENGTH), max_attempts=5)
    assert len(script.requests) == 1
    rejection = only_rejection(result)
    assert (rejection["reason"], rejection["attempts"]) == (Reason.TRUNCATED, 1)
    assert "max_tokens=1024" in rejection["message"] and "Field(max_length=...)" in rejection["message"]


@pytest.mark.parametrize("text", ['{"price": 3}', '```json\n{"price": 3}\n```', '{"price": 3}\n\n\n'])
def test_a_complete_answer_is_kept_although_it_counts_as_truncated(tmp_path: Path, text: str) -> None:
    result, script = answered(tmp_path, lambda request: Completion(text, Finish.LENGTH))
    assert len(script.requests) == 1 and by_id(result, "ask")["0"]["price"] == 3


def test_a_truncated_answer_is_asked_for_again_without_it_if_its_seed_matters(tmp_path: Path) -> None:
    def answer(request: Request) -> Completion:
        return Completion('{"pri', Finish.LENGTH) if ask_of(request) == 1 else Completion('{"price": 3}')

    result, script = answered(tmp_path, answer, sampling=SamplingParams(temperature=0.5))
    assert script.requests[0].messages == script.requests[1].messages
    assert script.requests[0].seed != script.requests[1].seed
    assert by_id(result, "ask")["0"]["price"] == 3


@pytest.mark.parametrize("attempts", [1, 2, 5])
def test_a_row_is_asked_max_attempts_times_and_rejected_with_the_last_answer(tmp_path: Path, attempts: int) -> None:
    result, script = answered(tmp_path, lambda request: f"no {ask_of(request)}", max_attempts=attempts)
    assert [ask_of(request) for request in script.requests] == list(range(1, attempts + 1))
    rejection = only_rejection(result)
    assert (rejection["attempts"], rejection["raw"]) == (attempts, f"no {attempts}")


def test_only_the_rows_with_bad_answers_are_asked_again(tmp_path: Path) -> None:
    result, script = answered(tmp_path, lambda request: "no" if row_of(request) == "2" else '{"price": 1}', rows=5)
    assert [len(script.asked(str(number))) for number in range(5)] == [1, 1, 3, 1, 1]
    assert sorted(by_id(result, "ask")) == ["0", "1", "3", "4"]
    assert only_rejection(result)["row_id"] == "2"


def test_reasoning_is_kept_beside_the_row_and_visible_to_later_prompts(tmp_path: Path) -> None:
    def think(request: Request) -> str:
        return '<think>cheap, I think</think>{"price": 3}' if request.schema_name == "ask" else '{"text": "ok"}'

    with scripted(llm=think) as scripts:
        later = Step(id="later", output_model=Text, engine_name="llm", user_prompt="{{ ask_reasoning }}")
        result = Chain(name="thinking", steps=[ask(), later]).run([Text(text="t")], tmp_path / "run")
    assert by_id(result, "ask")["0"]["_reasoning"] == "cheap, I think"
    assert scripts["llm"].requests[1].messages[-1].content == "cheap, I think"


# -- reasons


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
    assert "LookupError: not this one" in rejection["message"] and "test_semantics_rows.py:" in rejection["message"]


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


# -- seeds


def seeds(path: Path, rows: int = 7, **options: Any) -> dict[str, int]:
    """row id -> seed of the first ask, and the run is checked to have asked each row once."""
    with scripted(llm=lambda request: '{"price": 1}') as scripts:
        sampling = options.pop("sampling", SamplingParams())
        Chain(name="seeds", steps=[ask(sampling=sampling)]).run([Text(text=f"t{n}") for n in range(rows)], path, **options)
    found = {row_of(request): request.seed for request in scripts["llm"].requests}
    assert len(scripts["llm"].requests) == len(found) == rows
    return found


def test_a_seed_follows_from_run_seed_step_row_and_ask_alone(tmp_path: Path) -> None:
    expected = {str(number): row_seed(5, "ask", str(number), 1) for number in range(7)}
    for number, size in enumerate((1, 3, 64)):
        assert seeds(tmp_path / str(number), batch_size=size, seed=5) == expected
    assert all(0 <= seed < 2**31 for seed in expected.values()) and len(set(expected.values())) == 7


def test_the_run_seed_changes_every_seed(tmp_path: Path) -> None:
    one, two = seeds(tmp_path / "1", seed=1), seeds(tmp_path / "2", seed=2)
    assert all(one[row] != two[row] for row in one)


def test_a_seed_in_the_sampling_replaces_the_run_seed_for_its_step(tmp_path: Path) -> None:
    fixed = SamplingParams(seed=9)
    one, two = seeds(tmp_path / "1", seed=1, sampling=fixed), seeds(tmp_path / "2", seed=2, sampling=fixed)
    assert one == two == {str(number): row_seed(9, "ask", str(number), 1) for number in range(7)}


def test_each_ask_has_a_seed_of_its_own(tmp_path: Path) -> None:
    _, script = answered(tmp_path, lambda request: "no")
    assert [request.seed for request in script.requests] == [row_seed(0, "ask", "0", number) for number in (1, 2, 3)]


@pytest.mark.parametrize(
    ("batch_size", "window", "capacity", "latency"),
    [(1, None, 1, 0.0), (3, 2, 2, 0.0), (5, 1, 64, 0.001), (64, None, 3, 0.001)],
)
def test_rows_do_not_depend_on_sizes_capacity_or_the_order_of_answers(
    tmp_path: Path, batch_size: int, window: int | None, capacity: int, latency: float
) -> None:
    inputs = write_inputs(tmp_path / "in.jsonl", 20, bad=(3, 11))
    expected = content(everything().run(inputs, tmp_path / "plain"))
    chain = everything(batch_size=batch_size, capacity=capacity, latency=latency)
    result = chain.run(inputs, tmp_path / "run", window=window)
    assert content(result) == expected
    assert result.metadata["balanced"]


# -- accounting


def test_every_node_gives_back_what_it_took(tmp_path: Path) -> None:
    inputs = write_inputs(tmp_path / "in.jsonl", 30, bad=(0, 29))
    counts = everything().run(inputs, tmp_path / "run").counts
    for node, count in counts.items():
        assert count["in"] == count["out"] + count["rejected"] + count["dropped"] + count["stopped"] - count["expanded"], node
    assert counts["chain_input"]["in"] == 30 and counts["chain_input"]["rejected"] == 2
    assert counts["extract"]["in"] == counts["chain_input"]["out"]


def test_counts_agree_with_the_rows_on_disk(tmp_path: Path) -> None:
    result = everything().run(write_inputs(tmp_path / "in.jsonl", 30, bad=(4,)), tmp_path / "run")
    rejected = [row["step_id"] for row in result.rows("rejected")]
    for node in ("extract", "pieces_of", "split", "touchy", "touchy_too", "odd_only", "count", "twice", "closing"):
        assert result.counts[node]["out"] == sum(1 for _ in result.rows(node)), node
        assert result.counts[node]["rejected"] == rejected.count(node), node
    assert result.metadata["rows_finished"] == sum(1 for _ in result.rows("flattened"))
    assert result.metadata["rows_rejected"] == len(rejected)


def test_a_row_is_recorded_in_rejected_once_per_node_and_never_in_its_output_too(tmp_path: Path) -> None:
    result = everything().run(write_inputs(tmp_path / "in.jsonl", 40), tmp_path / "run")
    rejected = [(row["step_id"], row["row_id"]) for row in result.rows("rejected")]
    assert rejected and len(rejected) == len(set(rejected))
    for node in {step for step, _ in rejected}:
        outputs = {row["row_id"] for row in result.rows(node)}
        assert outputs.isdisjoint(row_id for step, row_id in rejected if step == node)


@pytest.mark.parametrize("format", ["csv", "parquet"])
def test_every_format_holds_the_same_rows(tmp_path: Path, format: Format) -> None:
    inputs = write_inputs(tmp_path / "in.jsonl", 20, bad=(3,))
    plain_rows, other = (everything().run(inputs, tmp_path / name, format=name) for name in ("jsonl", format))
    for folder in ("extract", "touchy", "count", "closing", "rejected", "flattened"):
        rows = [
            sorted(result.rows(folder), key=lambda row: (row_order(row["row_id"]), row.get("step_id", "")))
            for result in (plain_rows, other)
        ]
        assert rows[0] == rows[1], folder
    for folder in ("rejected", "flattened", "extract"):
        assert {path.suffix for path in (other.dir / folder).iterdir()} == {f".{format}"}


def test_prompts_see_the_scope_that_semantics_promise(tmp_path: Path) -> None:
    with scripted(llm=lambda request: '{"price": 4}') as scripts:
        prompt = "{{ row_id }}|{{ chain_input.text }}|{{ text }}|{{ input.text }}|{{ input }}|{{ pieces[0].text }}|{{ pieces }}"
        branch = Branch("b", [apply(lambda item: [item], id="p", input_model=Text, output_model=Text)]).join("pieces")
        Chain(name="scope", steps=[branch, ask(user_prompt=prompt)]).run([Text(text="hi")], tmp_path / "run")
    assert scripts["llm"].requests[0].messages[-1].content == '0|hi|hi|hi|{"text":"hi"}|hi|[{"text":"hi"}]'


def test_the_json_instruction_is_appended_to_the_system_prompt_unless_replaced(tmp_path: Path) -> None:
    def system(folder: str, **keys: Any) -> str | None:
        messages = answered(tmp_path / folder, lambda request: '{"price": 1}', **keys)[1].requests[0].messages
        return messages[0].content if messages[0].role == "system" else None

    own = system("own", system_prompt="You price things.")
    assert own is not None and own.startswith("You price things.\n\n") and '"price"' in own
    assert system("replaced", system_prompt="A", output_format_instruction="B") == "A\n\nB"
    assert system("left_out", output_format_instruction="") is None


def test_an_engine_that_simulates_is_named_as_such(tmp_path: Path) -> None:
    with using_registry(EngineRegistry()):
        register_engine("llm", "none", "simulated")
        result = Chain(name="sim", steps=[ask()]).run([Text(text="t")], tmp_path / "run")
    assert result.metadata["simulated"] is True
    assert result.metadata["engines"]["llm"]["deterministic"] is True
