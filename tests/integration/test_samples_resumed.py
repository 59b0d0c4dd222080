"""Candidates at a resume, a retry and `--from`; the checks of their declaration, and their display."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import anyio
import pytest

from chainette import Chain, SamplingParams, Step, register_engine
from chainette.core.branch import Element
from chainette.core.chain_drawing import render_ascii, render_mermaid
from chainette.core.compile import compile_chain
from chainette.engine.base import Request
from chainette.engine.config import EngineRegistry, using_registry
from chainette.errors import ChainChanged, DeclarationError, PlanError
from chainette.io.rundir.result import open_run
from chainette.run.executor import resume, retry_rejected
from tests.support.chains import Text, Word, content, texts
from tests.support.crash import copies
from tests.support.scripted import ask_of, row_of, scripted
from tests.support.tools import some
from tests.support.voting import WORDS, chain, picked, run, vars_of, vote, words

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
    with pytest.raises(DeclarationError, match=f"voting.py:.*step 'vote': {said}"):
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
