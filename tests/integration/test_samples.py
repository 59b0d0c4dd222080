"""Candidates of a row, and the choice among them (docs/samples.md)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, Field

from chainette import Branch, Loop, Route, RunResult, Step, apply
from chainette.engine.base import Request
from chainette.run.steps import row_seed
from tests.support.chains import Text, Word, content, finished, texts
from tests.support.scripted import ask_of, row_of, scripted, user_text
from tests.support.voting import WARM, WORDS, chain, picked, run, vars_of, vote, words


def rejected(result: RunResult) -> dict[str, tuple[str, str]]:
    return {row["row_id"]: (row["step_id"], row["reason"]) for row in result.rows("rejected")}


# -- candidates


def test_every_row_is_asked_n_times_and_the_folder_has_all_candidates_in_order(tmp_path: Path) -> None:
    with scripted(llm=words):
        result = run(tmp_path)
    rows = sorted(result.rows("vote_candidates"), key=lambda row: row["row_id"])
    assert [row["row_id"] for row in rows] == [f"{row}~{sample}" for row in WORDS for sample in range(5)]
    assert [row["word"] or "" for row in rows] == [word for given in WORDS.values() for word in given]
    assert picked(result) == {"0": "a", "1": "x", "2": "q"}


def test_an_invalid_candidate_has_its_reason_and_null_fields_and_is_no_rejected_row(tmp_path: Path) -> None:
    with scripted(llm=words):
        result = run(tmp_path)
    rows = {row["row_id"]: row for row in result.rows("vote_candidates")}
    assert {name: rows["1~0"][name] for name in ("word", "_reason", "_attempts")} == {
        "word": None,
        "_reason": "not_json",
        "_attempts": 1,
    }
    assert rows["1~0"]["_message"].startswith("not JSON") and (rows["1~1"]["_reason"], rows["1~1"]["_message"]) == (None, None)
    asked, chosen = result.counts["vote_candidates"], result.counts["vote"]
    assert (asked["in"], asked["out"], asked["rejected"], asked["invalid_candidates"]) == (20, 20, 0, 11)
    assert (chosen["in"], chosen["out"], chosen["rejected"]) == (4, 3, 1)


def test_a_row_without_a_valid_candidate_is_rejected_once_for_the_last_reason_and_else_for_too_few(tmp_path: Path) -> None:
    with scripted(llm=words):
        result = run(tmp_path, min_valid=2)
    assert rejected(result) == {"2": ("vote", "too_few"), "3": ("vote", "not_json")}
    assert picked(result) == {"0": "a", "1": "x"}
    messages = {row["row_id"]: row["message"] for row in result.rows("rejected")}
    assert messages["2"].startswith("1 of 5 candidates valid, min_valid is 2; the last invalid: not JSON")
    assert messages["3"].startswith("none of the 5 candidates is valid; the last: not JSON")


def test_seeds_differ_by_candidate_and_those_of_the_first_are_as_without_candidates(tmp_path: Path) -> None:
    with scripted(llm=words) as scripts:
        run(tmp_path / "many", max_attempts=2)
        seeds = {(row_of(request), ask_of(request)): request.seed for request in scripts["llm"].requests}
        scripts["llm"].requests.clear()
        run(tmp_path / "one", vote(1, None, max_attempts=2))
        alone = {(row_of(request), ask_of(request)): request.seed for request in scripts["llm"].requests}
    assert {question: seeds[f"{question[0]}~0", question[1]] for question in alone} == alone
    assert seeds["1~2", 2] == row_seed(0, "vote", "1", 2, sample=2)
    assert len({*seeds.values()}) == len(seeds)


def test_candidates_share_their_question_and_have_attempts_of_their_own(tmp_path: Path) -> None:
    with scripted(llm=words) as scripts:
        result = chain(max_attempts=3, user_prompt="{{ row_id }}: {{ text }}").run(texts(2), tmp_path / "run")
    first = {user_text(request) for request in scripts["llm"].requests if len(request.messages) == 2}
    assert first == {"0: text number 0", "1: text number 1"}
    attempts = {row["row_id"]: row["_attempts"] for row in result.rows("vote_candidates") if row["row_id"][0] == "1"}
    assert attempts == {"1~0": 3, "1~1": 1, "1~2": 3, "1~3": 1, "1~4": 1}


def test_a_prompt_that_cannot_be_rendered_rejects_the_row_once(tmp_path: Path) -> None:
    with scripted(llm=words) as scripts:
        result = run(tmp_path, user_prompt="{{ 1 // (row_id | int) }}", rows=2)
    assert rejected(result) == {"0": ("vote", "template_error")}
    assert {row_of(request)[0] for request in scripts["llm"].requests} == {"1"}


@pytest.mark.parametrize("pick", ["majority", None])
@pytest.mark.parametrize("format", ["parquet", "csv"])
def test_every_format_holds_the_same_rows(tmp_path: Path, format: Any, pick: Any) -> None:
    with scripted(llm=words):
        lines = content(chain(pick=pick, min_valid=2).run(texts(4), tmp_path / "jsonl"))
        assert content(chain(pick=pick, min_valid=2).run(texts(4), tmp_path / format, format=format)) == lines


def test_a_candidate_goes_on_to_the_next_engine_alone(tmp_path: Path) -> None:
    with scripted(llm=words, big=lambda request: Word(word=f"big {row_of(request)}")) as scripts:
        result = run(tmp_path, escalate=["big"], rows=2)
    assert {row_of(request) for request in scripts["big"].requests} == {"1~0", "1~2"}
    engines = {row["row_id"]: row["_engine"] for row in result.rows("vote_candidates")}
    assert (engines["1~0"], engines["1~1"]) == ("big", "llm")
    assert result.counts["vote_candidates"]["engines"]["big"]["out"] == 2


# -- the choice


class Answer(BaseModel):
    value: float
    why: str = Field(alias="because")


def answers(*given: tuple[float, str]) -> Callable[[Request], str]:
    def answer(request: Request) -> str:
        value, why = given[int(row_of(request).partition("~")[2])]
        return f'{{"because": "{why}", "value": {value}}}'

    return answer


def test_majority_is_the_most_frequent_candidate_by_its_json_and_the_earliest_of_equals(tmp_path: Path) -> None:
    def word(request: Request) -> str:
        return ['{"word": "b"}', '{"word": "a"}', '{ "word":"a" }', '{"word": "b"}'][int(row_of(request)[-1])]

    with scripted(llm=word):
        result = run(tmp_path, vote(4), rows=1)
    assert picked(result) == {"0": "b"}


@pytest.mark.parametrize(("field", "because"), [("value", "second"), ("why", "third")])
def test_majority_by_a_field_takes_the_earliest_candidate_with_the_most_frequent_value(
    tmp_path: Path, field: str, because: str
) -> None:
    given = answers((1, "first"), (7.0, "second"), (2, "third"), (7, "third"))
    with scripted(llm=given):
        result = run(tmp_path, vote(4, f"majority:{field}", output_model=Answer), rows=1)
    assert [row["because"] for row in result.rows("vote")] == [because]


def test_a_function_gets_the_valid_candidates_in_order_and_none_drops_the_row(tmp_path: Path) -> None:
    seen: list[list[str]] = []

    def last(candidates: list[Word]) -> Word | None:
        seen.append([candidate.word for candidate in candidates])
        return candidates[-1] if len(candidates) > 1 else None

    with scripted(llm=words):
        result = chain(pick=last).run(texts(4), tmp_path / "run")
    assert seen == [["a", "b", "b", "a", "c"], ["x", "x", "y"], ["q"]]
    assert picked(result) == {"0": "c", "1": "y"} and result.counts["vote"]["dropped"] == 1
    assert result.metadata["balanced"]


def test_a_function_that_raises_or_returns_another_type_rejects_its_row_only(tmp_path: Path) -> None:
    def bad(candidates: list[Word]) -> Any:
        if len(candidates) == 3:
            raise LookupError("no three")
        return candidates[0] if len(candidates) == 1 else "a word"

    with scripted(llm=words):
        result = run(tmp_path, pick=bad, rows=3)
    assert rejected(result) == {"0": ("vote", "apply_error"), "1": ("vote", "apply_error")}
    assert (
        "pick of step 'vote' raised LookupError: no three"
        in {row["row_id"]: row for row in result.rows("rejected")}["1"]["message"]
    )


def test_without_pick_the_value_is_the_list_and_the_next_input_is_the_row_before(tmp_path: Path) -> None:
    @apply
    def joined(item: Text, history: Any) -> Word:
        return Word(word=f"{item.text}: {''.join(each.word for each in history['vote'])}")

    with scripted(llm=words):
        result = run(tmp_path, vote(pick=None, min_valid=2), joined)
    assert {row["row_id"]: row["word"] for row in result.rows("joined")} == {
        "0": "text number 0: abbac",
        "1": "text number 1: xxy",
    }
    assert not (tmp_path / "run" / "vote").exists()
    assert [row["vote"] for row in result.rows("flattened")][1] == [{"word": "x"}, {"word": "x"}, {"word": "y"}]
    assert (result.counts["vote"]["in"], result.counts["vote"]["out"], result.counts["vote"]["rejected"]) == (4, 2, 2)


def test_a_row_gives_the_choice_or_the_list_as_models(tmp_path: Path) -> None:
    with scripted(llm=words):
        one, all_of_them = vote(), vote(pick=None)
        assert [row[one].word for row in finished(chain(one).run_iter(texts(1)))] == ["a"]
        [row] = finished(chain(all_of_them).run_iter(texts(1)))
        assert [each.word for each in row[all_of_them]] == WORDS["0"]
        outputs, _ = vote().execute(texts(2))
    assert [output.word for output in outputs] == ["a", "x"]


def test_rows_that_are_not_written_are_still_chosen_among(tmp_path: Path) -> None:
    with scripted(llm=words, echo=lambda request: Word(word=user_text(request))):
        later = Step(id="later", output_model=Word, engine_name="echo", user_prompt="{{ vote.word }}")
        result = run(tmp_path, vote(yield_output=False), later)
    assert {row["word"] for row in result.rows("later")} == {"a", "x", "q"}
    assert not [path for path in (tmp_path / "run").iterdir() if path.name.startswith("vote")]


# -- inside other elements


def test_a_way_of_a_route_and_a_branch_may_ask_for_candidates(tmp_path: Path) -> None:
    def even(item: Text) -> bool:
        return int(item.text.split()[-1]) % 2 == 0

    with scripted(llm=words):
        route = Route("maybe", when=even, then=[vote()]).join("handled")
        side = Branch("side", [Step(**{**vars_of(vote(pick=None)), "id": "other"})]).join("all")
        result = run(tmp_path, [side], route)
    columns = {row["row_id"]: (row["all"], row["handled.word"]) for row in result.rows("flattened")}
    assert {row: given for row, (_, given) in columns.items()} == {"0": "a", "1": None, "2": "q"}
    assert [each["word"] for each in columns["1"][0]] == ["x", "x", "y"]


class Round(BaseModel):
    number: int


def test_the_rounds_of_a_loop_ask_for_candidates_and_see_those_of_the_round_before(tmp_path: Path) -> None:
    def answer(request: Request) -> str:
        number = int(user_text(request).split()[-1])
        return f'{{"number": {number + int(row_of(request)[-1])}}}'

    prompt = "{{ previous.guess | length if previous.guess else 0 }} before, round {{ round }}"
    step = Step(id="guess", n=3, output_model=Round, engine_name="llm", sampling=WARM, user_prompt=prompt)
    top = apply(
        lambda _item, history: Round(number=max(each.number for each in history["guess"])), id="top", output_model=Round
    )
    with scripted(llm=answer) as scripts:
        loop = Loop("climb", steps=[step, one(top)], until="{{ top.number >= 4 }}", max_rounds=4, result="top").join("high")
        result = run(tmp_path, loop, rows=2)
    assert {user_text(request) for request in scripts["llm"].requests} == {"0 before, round 1", "3 before, round 2"}
    assert Counter(row["_round"] for row in result.rows("guess_candidates")) == {1: 6, 2: 6}
    assert [row["high.number"] for row in result.rows("flattened")] == [4, 4]
    seeds = [request.seed for request in scripts["llm"].requests]
    assert row_seed(0, "guess", "0", 1, "2", sample=1) in seeds and len({*seeds[:12]}) == 12


def one(node: Any) -> Any:
    """A lambda without annotation, as a function that keeps its row."""
    from chainette.core.apply import Cardinality

    node._set(cardinality=Cardinality.ONE, annotated=True)
    return node
