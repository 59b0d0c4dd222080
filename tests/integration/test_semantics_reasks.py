"""Bad answers are asked again, with the complaint about them."""

from __future__ import annotations

from pathlib import Path

import pytest

from chainette import Chain, SamplingParams, Step
from chainette.engine.base import Completion, Finish, Request
from chainette.records import Reason, Usage
from tests.support.priced_rows import Text, answered, ask, by_id, only_rejection, texts
from tests.support.scripted import ScriptedEngine, ask_of, row_of, scripted


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
