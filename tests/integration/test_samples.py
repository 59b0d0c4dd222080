"""Candidates of a row, and the choice among them (docs/samples.md)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from pydantic import BaseModel, Field

from chainette import Branch, Chain, Loop, Route, RunResult, SamplingParams, Step, apply, register_engine
from chainette.core.branch import Element
from chainette.core.compile import compile_chain
from chainette.core.dag import render_ascii, render_mermaid
from chainette.engine.base import Request
from chainette.engine.config import EngineRegistry, using_registry
from chainette.errors import ChainChanged, DeclarationError, PlanError
from chainette.io.rundir.result import open_run
from chainette.io.rundir.run_state import Status
from chainette.run.ask import row_seed
from chainette.run.executor import resume, retry_rejected
from tests.support.chains import Text, Word, content, finished, texts
from tests.support.crash import copies
from tests.support.scripted import ask_of, row_of, scripted, user_text
from tests.support.tools import some

WARM = SamplingParams(temperature=0.8)

#: Row -> the words of its five candidates; "" is no JSON.
WORDS = {
    "0": ["a", "b", "b", "a", "c"],
    "1": ["", "x", "", "x", "y"],
    "2": ["", "", "q", "", ""],
    "3": ["", "", "", "", ""],
}


def words(request: Request) -> str:
    row, _, sample = row_of(request).partition("~")
    word = WORDS[row][int(sample or 0)]
    return f'{{"word": "{word}"}}' if word else f"nothing in ask {ask_of(request)}"


def vote(n: int = 5, pick: Any = "majority", **keys: Any) -> Step[Any, Any]:
    given: dict[str, Any] = {
        "input_model": Text,
        "output_model": Word,
        "engine_name": "llm",
        "max_attempts": 1,
        "sampling": WARM,
    } | keys
    return Step(id="vote", n=n, pick=pick, **given)


def chain(*steps: Element, **keys: Any) -> Chain:
    return Chain(name="samples", batch_size=3, input_model=Text, steps=steps or [vote(**keys)])


def run(path: Path, *steps: Element, rows: int = 4, **keys: Any) -> RunResult:
    """A finished run whose rows are all accounted for, and whose rows `run_iter` gives too."""
    declared = chain(*steps, **keys)
    result = declared.run(texts(rows), path / "run")
    assert result.status is Status.FINISHED
    assert result.metadata["balanced"], result.counts
    streamed = {row.row_id for row in finished(declared.run_iter(texts(rows)))}
    assert streamed == {row["row_id"] for row in result.rows("flattened")}
    return result


def picked(result: RunResult) -> dict[str, str]:
    return {row["row_id"]: row["word"] for row in result.rows("vote")}


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


def vars_of(step: Step[Any, Any]) -> dict[str, Any]:
    return {name: value for name, value in vars(step).items() if name not in ("place", "name")}


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


# -- resume, retry, from


def simulated(pick: Any = "majority", **keys: Any) -> Chain:
    with using_registry(EngineRegistry()):
        register_engine("llm", "none", "simulated", invalid_rate=0.7)
        register_engine("second", "none", "simulated", invalid_rate=0.7)
        later = Step(id="later", output_model=Word, engine_name="llm", user_prompt="{{ vote }}")
        return chain(vote(4, pick, min_valid=2, **keys), later)


@pytest.mark.parametrize("pick", ["majority", None])
@pytest.mark.parametrize("format", ["jsonl", "parquet"])
def test_a_run_that_is_killed_at_any_disk_step_resumes_to_the_same_rows(tmp_path: Path, format: Any, pick: Any) -> None:
    keys: dict[str, Any] = {"format": format, "max_rows_per_file": 7}
    whole = simulated(pick, escalate=["second"]).run(texts(20), tmp_path / "whole", **keys)
    assert whole.counts["vote"]["rejected"] and whole.counts["vote_candidates"]["invalid_candidates"]
    with copies(tmp_path / "run", tmp_path / "copies", every=5) as taken:
        simulated(pick, escalate=["second"]).run(texts(20), tmp_path / "run", **keys)
    begun = [copy for copy in taken if "unit_committed" in (copy / "events.jsonl").read_text()]
    for copy in some(begun, 8, 6):
        again = resume(copy, simulated(pick, escalate=["second"]))
        assert content(again) == content(whole), copy.name
        assert again.counts == whole.counts, copy.name


@pytest.mark.parametrize("pick", ["majority", None])
@pytest.mark.parametrize("format", ["jsonl", "parquet", "csv"])
def test_retry_asks_only_for_the_invalid_candidates_and_goes_on_with_their_numbers(
    tmp_path: Path, format: Any, pick: Any
) -> None:
    with scripted(llm=words) as scripts:
        chain(pick=pick, min_valid=2).run(texts(4), tmp_path / "run", format=format, max_rows_per_file=3)
        scripts["llm"].requests.clear()
        scripts["llm"].answer = lambda _: Word(word="q")
        again = retry_rejected(tmp_path / "run", chain(pick=pick, min_valid=2))
    asked = sorted(row_of(request) for request in scripts["llm"].requests)
    assert asked == [f"{row}~{sample}" for row in "23" for sample, word in enumerate(WORDS[row]) if not word]
    assert {ask_of(request) for request in scripts["llm"].requests} == {2}
    rows = [row for row in again.rows("vote_candidates") if row["row_id"][0] in "23"]
    assert {row["word"] for row in rows} == {"q"} and len(rows) == 10
    assert not [*again.rows("rejected")] and again.metadata["balanced"]
    assert len([*again.rows("flattened")]) == 4
    assert again.counts["vote_candidates"]["invalid_candidates"] == 2  # those of row 1, which had enough


def test_retry_of_an_unfinished_run_whose_rows_are_not_written(tmp_path: Path) -> None:
    with scripted(llm=words) as scripts:

        async def dies(request: Request) -> str:
            while open_run(tmp_path / "run").counts["vote"]["rejected"] < 2:  # noqa: ASYNC110 - a log has no events
                await anyio.sleep(0.01)
            raise KeyError("the process dies here, once both rejections are durable")

        later = Step(id="later", output_model=Word, engine_name="dies", user_prompt="{{ vote.word }}")
        with scripted(llm=words, dies=dies) as scripts:
            declared = chain(vote(yield_output=False, min_valid=2), later)
            with pytest.raises(KeyError):
                declared.run(texts(4), tmp_path / "run")
            scripts["dies"].answer = scripts["llm"].answer = lambda _: Word(word="q")
            scripts["llm"].requests.clear()
            again = retry_rejected(tmp_path / "run", declared)
    assert {row["row_id"]: row["word"] for row in again.rows("later")} == dict.fromkeys("0123", "q")
    assert {row_of(request)[0] for request in scripts["llm"].requests} <= {"2", "3"} and again.metadata["balanced"]


def test_retry_of_a_function_that_raised_asks_for_no_candidate(tmp_path: Path) -> None:
    fails = [True]

    def pick(candidates: list[Word]) -> Word:
        if fails[0]:
            raise ValueError("not yet")
        return candidates[0]

    with scripted(llm=words) as scripts:
        chain(pick=pick).run(texts(2), tmp_path / "run")
        asked, fails[0] = len(scripts["llm"].requests), False
        again = retry_rejected(tmp_path / "run", chain(pick=pick))
        assert len(scripts["llm"].requests) == asked
    assert picked(again) == {"0": "a", "1": "x"} and again.metadata["balanced"]


def test_a_lowered_min_valid_rescues_rejected_rows_and_a_raised_one_is_refused(tmp_path: Path) -> None:
    with scripted(llm=words) as scripts:
        chain(min_valid=2).run(texts(3), tmp_path / "run")
        asked = len(scripts["llm"].requests)
        with pytest.raises(ChainChanged, match=r"vote has min_valid=3 now \(was 2.*--from vote`"):
            resume(tmp_path / "run", chain(min_valid=3))
        again = retry_rejected(tmp_path / "run", chain(min_valid=1))
        assert len(scripts["llm"].requests) == asked
    assert picked(again) == {"0": "a", "1": "x", "2": "q"}
    assert not [*again.rows("rejected")] and again.metadata["balanced"]


def test_a_changed_pick_keeps_the_candidates_and_a_changed_n_does_not(tmp_path: Path) -> None:
    with scripted(llm=words) as scripts:
        chain().run(texts(3), tmp_path / "run")
        asked = len(scripts["llm"].requests)
        with pytest.raises(ChainChanged, match=r"output model of vote: .*pick of vote: majority -> .*--from vote`"):
            resume(tmp_path / "run", chain(pick=None))
        with pytest.raises(
            ChainChanged, match=r"number of candidates \(n\) of vote_candidates: 5 -> 4.*--from vote_candidates`"
        ):
            resume(tmp_path / "run", chain(n=4))
        again = resume(tmp_path / "run", chain(pick=lambda candidates: candidates[-1]), from_step=["vote"])
        assert len(scripts["llm"].requests) == asked
        assert picked(again) == {"0": "c", "1": "y", "2": "q"} and again.metadata["balanced"]
        less = resume(tmp_path / "run", chain(n=4), from_step=["vote_candidates"])
    assert len(scripts["llm"].requests) == asked + 12
    assert picked(less) == {"0": "a", "1": "x", "2": "q"} and less.metadata["balanced"]


def test_a_step_that_asked_once_gets_candidates_only_anew(tmp_path: Path) -> None:
    with scripted(llm=words):
        chain(n=1, pick=None).run(texts(2), tmp_path / "run")
        with pytest.raises(ChainChanged, match="--from vote_candidates`"):
            resume(tmp_path / "run", chain())
        again = resume(tmp_path / "run", chain(), from_step=["vote_candidates"])
    assert picked(again) == {"0": "a", "1": "x"} and again.metadata["balanced"]


# -- what is checked, and what is shown


def refusal(*steps: Element) -> str:
    with scripted(llm=words), pytest.raises(PlanError) as refused:
        compile_chain(chain(*steps))
    return str(refused.value)


def test_templates_see_the_choice_or_the_list_and_never_the_folder() -> None:
    def later(prompt: str) -> Step[Any, Any]:
        return Step(
            id="later", input_model=Text if "0" in prompt else None, output_model=Word, engine_name="llm", user_prompt=prompt
        )

    with scripted(llm=words):
        compile_chain(chain(vote(), later("{{ vote.word }} {{ word }}")))
        compile_chain(chain(vote(pick=None), later("{{ vote[0].word }} {{ text }}")))
    assert "'vote'" in refusal(vote(), later("{{ vote[0].word }}"))
    assert "word" in refusal(vote(pick=None), later("{{ vote.word }}"))
    assert "'vote', the candidate that was picked" in refusal(vote(), later("{{ vote_candidates }}"))
    assert "'vote_candidates' is used twice" in refusal(vote(), Step(**{**vars_of(vote(1, None)), "id": "vote_candidates"}))


def takes_texts(candidates: list[Text]) -> Word:
    raise NotImplementedError


def takes_one(candidate: Word) -> Word:
    raise NotImplementedError


def takes_two(candidates: list[Word], history: Any) -> Word:
    raise NotImplementedError


def gives_text(candidates: list[Word]) -> Text:
    raise NotImplementedError


def gives_list(candidates: list[Word]) -> list[Word]:
    raise NotImplementedError


async def waits(candidates: list[Word]) -> Word:
    raise NotImplementedError


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"n": 0}, "n is 0, it must be from 1 to 1,000"),
        ({"n": True}, "n is True"),
        ({"n": 1001}, "n is 1001"),
        ({"n": 1}, r"pick= chooses among several candidates; give n= \(2 or more\)"),
        ({"min_valid": 6}, r"min_valid is 6, it must be from 1 to 5 \(n\)"),
        ({"min_valid": 0}, "min_valid is 0"),
        ({"pick": "most"}, "pick is 'most'; give 'majority', 'majority:field' or a function"),
        ({"pick": 7}, "pick is 7"),
        ({"pick": "majority:wrd"}, "pick is .*, but Word has no field 'wrd'; did you mean 'word'?"),
        ({"pick": takes_texts}, "pick=takes_texts takes list.*Text.*, but the candidates are list.Word."),
        ({"pick": takes_one}, "pick=takes_one takes Word, but the candidates are list.Word."),
        ({"pick": takes_two}, r"pick=takes_two must take \(candidates\), it takes 2 parameters"),
        ({"pick": gives_text}, "pick=gives_text gives Text, not Word or None"),
        ({"pick": gives_list}, "pick=gives_list gives list.*, not Word or None"),
        ({"pick": waits}, "pick=waits is async"),
    ],
)
def test_candidates_that_cannot_be_chosen_among_are_refused_where_they_are_declared(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(DeclarationError, match=f"test_samples.py:.*step 'vote': {said}"):
        vote(**keys)


def test_candidates_at_temperature_0_are_a_warning() -> None:
    with scripted(llm=words):
        [warning] = compile_chain(chain(sampling=SamplingParams())).warnings
        assert not compile_chain(chain()).warnings
    assert warning.message == "step 'vote': n=5 at temperature 0 gives the same answer 5 times; raise it"


def test_drawings_show_the_candidates_and_the_choice() -> None:
    with scripted(llm=words):
        plan = compile_chain(chain(min_valid=2))
        all_of_them = compile_chain(chain(pick=None))
    assert render_ascii(plan).splitlines()[1:] == [
        "+-- vote_candidates  Text -> Word  [llm, 5 candidates a row]",
        "`-- vote  list[Word] -> Word  [python, picks by majority, at least 2 valid]",
    ]
    assert render_ascii(all_of_them).endswith("vote  list[Word] -> list[Word]  [python, keeps all valid ones]")
    chart = render_mermaid(plan)
    assert "input --> n_vote_candidates" in chart and "n_vote_candidates --> n_vote" in chart and "n_vote --> done" in chart


def test_open_run_and_the_report_know_the_candidates(tmp_path: Path) -> None:
    from chainette.io.rundir.graph import Graph
    from chainette.report.drawing import draw

    with scripted(llm=words):
        result = run(tmp_path, min_valid=2)
    opened = open_run(tmp_path / "run")
    assert len([*opened.rows("vote_candidates")]) == 20
    drawing = draw(result._state, lean=0.5)
    exits = {box.title: dict(box.exits) for box in drawing.boxes}
    assert exits["vote_candidates"] == {"invalid": 11} and exits["vote"] == {"rejected": 2}
    assert isinstance(result._state.graph, Graph)


def test_a_later_run_takes_valid_candidates_from_an_earlier_one_and_asks_for_the_others(tmp_path: Path) -> None:
    with scripted(llm=words) as scripts:
        chain(min_valid=2).run(texts(4), tmp_path / "first")
        scripts["llm"].requests.clear()
        again = chain(pick=None).run(texts(4), tmp_path / "again", reuse=[tmp_path / "first"])
    rows = [*again.rows("vote_candidates")]
    reused = Counter(row["row_id"][0] for row in rows if row.get("_reused_from"))
    assert reused == {row: sum(map(bool, given)) for row, given in WORDS.items() if any(given)}
    assert len(scripts["llm"].requests) == len(rows) - reused.total()
    assert again.metadata["balanced"]
