"""A row that one engine of a step cannot answer is asked at the next one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest

from chainette import Branch, Chain, Loop, Route, SamplingParams, Step, register_engine
from chainette.core.compile import compile_chain
from chainette.core.flow import advance
from chainette.engine.base import Completion, Finish, Request
from chainette.engine.config import EngineRegistry, using_registry
from chainette.errors import ChainChanged, DeclarationError, EngineUnavailable, PlanError
from chainette.hooks import Hook
from chainette.io.rundir.event_types import EngineLoaded, EngineReleased, Event
from chainette.io.rundir.result import RunResult
from chainette.records import Earlier, Row, Spent, Unit, Usage, step_of
from chainette.run.executor import resume, retry_rejected
from chainette.run.process import poisoned, too_large
from tests.support.chains import Text, Word, content, texts
from tests.support.crash import copies
from tests.support.scripted import Script, ask_of, row_of, scripted
from tests.support.tools import some

ROWS = 9
#: Rows that only `big` can answer, and rows nobody can.
HARD, HOPELESS = {"2", "5"}, {"7"}
COST = Usage(1, 10, 5, 0.0)


def small(request: Request) -> str:
    return "hm" if row_of(request) in HARD | HOPELESS else f'{{"word": "small {row_of(request)}"}}'


def big(request: Request) -> str:
    return "no" if row_of(request) in HOPELESS else f'{{"word": "big {row_of(request)}"}}'


def chain(escalate: Any = ("big",), **keys: Any) -> Chain:
    step = Step(
        id="grade", input_model=Text, output_model=Word, engine_name="small", escalate=escalate, **{"max_attempts": 2} | keys
    )
    return Chain(name="escalates", batch_size=4, steps=[step])


def said(result: RunResult) -> dict[str, tuple[str, str, int]]:
    """Row -> (its word, who answered, asks)."""
    return {row["row_id"]: (row["word"], row["_engine"], row["_attempts"]) for row in result.rows("grade")}


def test_a_row_without_a_good_answer_is_asked_at_the_next_engine_with_a_fresh_conversation(tmp_path: Path) -> None:
    with scripted(small=small, big=big) as scripts:
        result = chain().run(texts(ROWS), tmp_path / "run")
    assert said(result)["2"] == ("big 2", "big", 3)
    assert said(result)["3"] == ("small 3", "small", 1)
    assert [len(request.messages) for request in scripts["small"].asked("2")] == [2, 4]
    assert [len(request.messages) for request in scripts["big"].asked("2")] == [2]
    assert {row_of(request) for request in scripts["big"].requests} == HARD | HOPELESS


def test_a_row_that_no_engine_answers_is_rejected_once_by_the_last_one_with_all_attempts(tmp_path: Path) -> None:
    with scripted(small=small, big=big):
        result = chain().run(texts(ROWS), tmp_path / "run")
    [rejected] = result.rows("rejected")
    assert (rejected["row_id"], rejected["_engine"], rejected["attempts"], rejected["raw"]) == ("7", "big", 4, "no")


def test_each_engine_is_counted_and_the_step_has_one_line_that_balances(tmp_path: Path) -> None:
    with scripted(small=small, big=big):
        result = chain().run(texts(ROWS), tmp_path / "run")
    counts = result.counts["grade"]
    assert (counts["in"], counts["out"], counts["rejected"], counts["balanced"]) == (ROWS, ROWS - 1, 1, True)
    assert set(result.counts) == {"chain_input", "grade"}
    engines = {name: tuple(found[key] for key in ("out", "rejected", "escalated")) for name, found in counts["engines"].items()}
    assert engines == {"small": (6, 0, 3), "big": (2, 1, 0)}
    assert counts["engines"]["small"]["usage"]["requests"] == 12
    assert counts["usage"]["requests"] == 16


def test_the_cost_of_a_row_is_that_of_all_its_engines(tmp_path: Path) -> None:
    with scripted(small=small, big=big):
        result = chain().run(texts(ROWS), tmp_path / "run", usage=True)
    rows = {row["row_id"]: row for name in ("grade", "rejected") for row in result.rows(name)}
    assert [rows[row]["_completion_tokens"] for row in ("0", "2", "7")] == [5, 15, 20]
    assert sum(row["_completion_tokens"] for row in rows.values()) == result.counts["grade"]["usage"]["completion_tokens"]


def test_only_steps_that_escalate_name_their_engine(tmp_path: Path) -> None:
    with scripted(small=small, big=big):
        later = Step(id="later", output_model=Word, engine_name="big")
        result = Chain(name="two", steps=[*chain().steps, later]).run(texts(ROWS), tmp_path / "two")
        assert "_engine" in next(iter(result.rows("grade"))) and "_engine" not in next(iter(result.rows("later")))
        plain = chain(escalate=()).run(texts(ROWS), tmp_path / "plain")
    assert not any("_engine" in row for name in ("grade", "rejected") for row in plain.rows(name))
    assert "engines" not in plain.counts["grade"]


@pytest.mark.parametrize("format", ["parquet", "csv"])
def test_every_format_holds_the_same_rows(tmp_path: Path, format: Any) -> None:
    with scripted(small=small, big=big):
        lines = content(chain().run(texts(ROWS), tmp_path / "jsonl"))
        assert content(chain().run(texts(ROWS), tmp_path / format, format=format)) == lines


@dataclass(frozen=True)
class Failing:
    completion: Completion
    moves_on: bool = True


FAILURES = {
    "not_json": Failing(Completion("hm", usage=COST)),
    "invalid_output": Failing(Completion('{"word": 1}', usage=COST)),
    "truncated": Failing(Completion('{"wo', Finish.LENGTH, usage=COST)),
    "refused": Failing(Completion("", Finish.REFUSED, usage=COST)),
    "prompt_too_long": Failing(Completion("", Finish.TOO_LONG, usage=COST, error="too long")),
    "engine_error": Failing(Completion("", Finish.ERROR, usage=COST, error="odd request")),
    "too_large": Failing(Completion(f'{{"word": "{"x" * (17 << 20)}"}}', usage=COST), moves_on=False),
}


@pytest.mark.parametrize("reason", FAILURES)
def test_every_reason_of_an_answer_but_its_size_moves_a_row_on(tmp_path: Path, reason: str) -> None:
    failing = FAILURES[reason]

    def answer(request: Request) -> Completion | str:
        return failing.completion if row_of(request) == "2" else small(request)

    with scripted(small=answer, big=big):
        result = chain(max_attempts=1).run(texts(4), tmp_path / "run")
    reasons = {row["row_id"]: row["reason"] for row in result.rows("rejected")}
    assert reasons == ({} if failing.moves_on else {"2": reason})


def test_a_prompt_that_cannot_be_rendered_is_not_tried_elsewhere(tmp_path: Path) -> None:
    with scripted(small=small, big=big) as scripts:
        result = chain(user_prompt="{{ 1 // (text | length - 13) }}").run(texts(ROWS), tmp_path / "run")
    assert {row["reason"] for row in result.rows("rejected")} == {"template_error"}
    assert scripts["big"].requests == []
    assert result.counts["grade"]["engines"].keys() == {"small"}


def test_the_seeds_of_the_first_engine_do_not_depend_on_others_and_those_of_the_next_differ(tmp_path: Path) -> None:
    def seeds(script: Script) -> dict[tuple[str, int], int | None]:
        return {(row_of(request), ask_of(request)): request.seed for request in script.requests}

    with scripted(small=small, big=small) as alone:
        chain(escalate=(), max_attempts=4).run(texts(ROWS), tmp_path / "alone")
    with scripted(small=small, big=small) as both:
        chain().run(texts(ROWS), tmp_path / "both")
    for question, seed in seeds(both["small"]).items():
        assert seeds(alone["small"])[question] == seed
    for question, seed in seeds(both["big"]).items():
        assert question[1] > 2 and seeds(alone["small"])[question] != seed


def test_an_engine_that_is_down_is_waited_for(tmp_path: Path) -> None:
    with scripted(small=small, big=big) as scripts:
        scripts["big"].open_errors = [EngineUnavailable("engine 'big': not yet") for _ in range(2)]
        result = chain().run(texts(ROWS), tmp_path / "run")
    assert said(result)["2"][1] == "big"
    assert scripts["big"].calls.count("open") == 3


def test_rows_go_on_through_three_engines(tmp_path: Path) -> None:
    with scripted(small=small, big=small, huge=big) as scripts:
        result = chain(escalate=["big", "huge"]).run(texts(ROWS), tmp_path / "run")
    assert said(result)["5"] == ("big 5", "huge", 5)
    assert len(scripts["big"].requests) == 6
    assert list(result.counts["grade"]["engines"]) == ["small", "big", "huge"]


def test_later_steps_and_joined_branches_see_the_answer_whoever_gave_it(tmp_path: Path) -> None:
    with scripted(small=small, big=big, last=lambda request: Word(word=request.messages[-1].content)):
        steps = [*chain().steps, Step(id="later", output_model=Word, engine_name="last", user_prompt="{{ grade.word }}")]
        joined = Chain(
            name="joined",
            batch_size=4,
            input_model=Text,
            steps=[
                Branch("b", steps).join("graded"),
                Step(id="end", output_model=Word, engine_name="last", input_model=Text, user_prompt="{{ graded.word }}"),
            ],
        )
        result = joined.run(texts(ROWS), tmp_path / "run")
    words = {row["row_id"]: row["word"] for row in result.rows("end")}
    assert words["2"] == "big 2" and words["3"] == "small 3" and "7" not in words
    assert result.metadata["balanced"]


def test_a_row_goes_on_to_another_engine_on_the_way_that_it_took(tmp_path: Path) -> None:
    def even(item: Text) -> bool:
        return int(item.text.split()[-1]) % 2 == 0

    with scripted(small=small, big=big, last=lambda request: Word(word=request.messages[-1].content)):
        way = Route("handle", when=even, then=chain().steps).join("handled")
        end = Step(
            id="end",
            input_model=Text,
            output_model=Word,
            engine_name="last",
            user_prompt="{{ handled.word if handled else 'none' }}",
        )
        routed = Chain(name="routed", batch_size=4, input_model=Text, steps=[way, end])
        result = routed.run(texts(ROWS), tmp_path / "run")
    words = {row["row_id"]: row["word"] for row in result.rows("end")}
    assert (words["2"], words["4"], words["5"]) == ("big 2", "small 4", "none")
    assert result.metadata["balanced"]


def test_a_row_goes_on_to_another_engine_in_the_round_of_a_loop_that_needs_it(tmp_path: Path) -> None:
    """Every row is drafted twice; hard rows are answered by the second engine in both rounds."""
    with scripted(small=small, big=big):
        loop = Loop("revise", steps=chain().steps, until="{{ round == 2 }}", max_rounds=3, on_exhausted="keep").join("final")
        result = Chain(name="looped", batch_size=4, input_model=Text, steps=[loop]).run(texts(ROWS), tmp_path / "run")
    assert Counter((row["_round"], row["_engine"]) for row in result.rows("grade")) == {
        (1, "small"): 6,
        (1, "big"): 2,
        (2, "small"): 6,
        (2, "big"): 2,
    }
    counted = {name: (found["out"], found["escalated"]) for name, found in result.counts["grade"]["engines"].items()}
    assert counted == {"small": (12, 5), "big": (4, 0)} and result.metadata["balanced"]


def test_rows_that_part_at_engines_meet_at_the_next_step_as_units_of_different_names() -> None:
    hard = {"a": {"1", "3"}, "b": {"2", "3"}}
    with scripted(small=small, big=big):
        steps = [
            Step(id=name, input_model=Word, output_model=Word, engine_name="small", escalate=["big"] * (name in hard))
            for name in "abc"
        ]
        plan = compile_chain(Chain(name="parting", steps=steps))
    waiting = [Unit("a", 0, "", "", [Row(str(number), {}) for number in range(4)])]
    seen: dict[tuple[str, str], list[str]] = {}
    while waiting:
        unit = waiting.pop()
        assert (unit.node, unit.part) not in seen
        seen[unit.node, unit.part] = [row.row_id for row in unit.rows]
        stuck = [row for row in unit.rows if row.row_id in hard.get(unit.node, ())]
        passed = [row for row in unit.rows if row not in stuck]
        onward = [msgspec.structs.replace(row, earlier=Earlier(1, Spent(), engine=1)) for row in stuck]
        done = [row.with_values(row.row_id, {}) for row in passed]
        waiting += advance(plan, unit, done, plan.nodes[step_of(unit.node)].next, [], onward).units
    assert sorted(row for (node, _), rows in seen.items() if node == "c" for row in rows) == ["0", "1", "2", "3"]
    assert sum(node == "c" for node, _ in seen) == 4


def test_a_row_that_kills_the_workers_of_one_engine_goes_on_and_one_that_is_too_large_does_not() -> None:
    with scripted(small=small, big=big):
        plan = compile_chain(chain())
    unit = Unit("grade", 0, "", "", [Row("0", {"chain_input": b"{}"})])
    dead = poisoned(plan, unit)
    [onward] = dead.effects.units
    assert (onward.node, dead.rejected, dead.escalated) == ("grade@2", [], {"0": Earlier(0, Spent(), engine=1)})
    [rejection] = poisoned(plan, onward).rejected
    assert (rejection.step_id, rejection.reason, rejection.engine) == ("grade", "poison", "big")
    assert [rejected.reason for rejected in too_large(plan, unit, "large").rejected] == ["too_large"]


class Engines(Hook):
    """The engines in the order in which they were loaded; two are never open together."""

    def __init__(self) -> None:
        self.order: list[str] = []
        self.open = ""

    def on_event(self, event: Event) -> None:
        match event:
            case EngineLoaded():
                assert not self.open
                self.open = event.engine
                self.order.append(event.engine)
            case EngineReleased():
                self.open = ""


def test_engines_that_share_a_device_take_turns(tmp_path: Path) -> None:
    hook = Engines()
    with scripted({"exclusive": True}, small=small, big=big):
        result = chain().run(texts(ROWS), tmp_path / "run", hooks=[hook])
    assert hook.order == ["small", "big"]
    assert said(result)["2"][1] == "big" and result.metadata["balanced"]


def simulated(escalate: Any = ("second",)) -> Chain:
    """A chain whose first engine often fails."""
    with using_registry(EngineRegistry()):
        register_engine("first", "none", "simulated", invalid_rate=0.6)
        register_engine("second", "none", "simulated", invalid_rate=0.4)
        return Chain(
            name="simulated",
            batch_size=4,
            steps=[
                Step(id="grade", input_model=Text, output_model=Word, engine_name="first", escalate=escalate, max_attempts=1)
            ],
        )


@pytest.mark.parametrize("format", ["jsonl", "parquet"])
def test_a_run_that_is_killed_at_any_disk_step_resumes_to_the_same_rows(tmp_path: Path, format: Any) -> None:
    whole = simulated().run(texts(30), tmp_path / "whole", format=format, max_rows_per_file=5)
    with copies(tmp_path / "run", tmp_path / "copies", every=5) as taken:
        simulated().run(texts(30), tmp_path / "run", format=format, max_rows_per_file=5)
    begun = [copy for copy in taken if "root_done" in (copy / "events.jsonl").read_text()]
    for copy in some(begun, 4, 3):
        again = resume(copy, simulated())
        assert content(again) == content(whole), copy.name
        assert again.counts == whole.counts, copy.name


def test_retry_goes_on_at_the_engine_that_rejected(tmp_path: Path) -> None:
    with scripted(small=small, big=big) as scripts:
        chain().run(texts(ROWS), tmp_path / "run")
        before = {name: len(script.requests) for name, script in scripts.items()}
        scripts["big"].answer = lambda request: Word(word=f"big {row_of(request)}")
        again = retry_rejected(tmp_path / "run", chain())
        assert len(scripts["small"].requests) == before["small"]
        assert said(again)["7"] == ("big 7", "big", 5)
    assert again.metadata["balanced"] and not [*again.rows("rejected")]


def test_retry_with_another_engine_asks_only_that_one(tmp_path: Path) -> None:
    with scripted(small=small, big=big, other=lambda request: Word(word="other")):
        chain().run(texts(ROWS), tmp_path / "run")
        again = retry_rejected(tmp_path / "run", chain(), engine="other")
    assert said(again)["7"] == ("other", "other", 5)


@pytest.mark.parametrize(("before", "after"), [((), ("big",)), (("big",), ("big", "huge"))])
def test_an_engine_that_is_appended_costs_no_good_row_and_is_asked_for_rejected_ones(
    tmp_path: Path, before: tuple[str, ...], after: tuple[str, ...]
) -> None:
    good: Callable[[Request], Word] = lambda request: Word(word=f"good {row_of(request)}")  # noqa: E731
    last = {name: good if name == after[-1] else small for name in ("small", "big", "huge")}
    with scripted(**last) as scripts:
        first = chain(before).run(texts(ROWS), tmp_path / "run")
        kept = {row["row_id"]: row["word"] for row in first.rows("grade")}
        scripts[after[-1]].requests.clear()
        again = retry_rejected(tmp_path / "run", chain(after))
        assert {row_of(request) for request in scripts[after[-1]].requests} == HARD | HOPELESS
    words = {row["row_id"]: row["word"] for row in again.rows("grade")}
    assert words == kept | {row: f"good {row}" for row in HARD | HOPELESS}


def test_shards_with_fixed_columns_take_a_first_escalate_only_anew(tmp_path: Path) -> None:
    with scripted(small=small, big=big):
        chain(()).run(texts(ROWS), tmp_path / "run", format="parquet")
        with pytest.raises(ChainChanged, match=r"no column `_engine`.*--from grade"):
            retry_rejected(tmp_path / "run", chain())
        again = resume(tmp_path / "run", chain(), from_step="grade")
    assert said(again)["2"] == ("big 2", "big", 3)


@pytest.mark.parametrize("after", [(), ("huge",), ("huge", "big")])
def test_engines_that_are_taken_away_or_replaced_are_refused_with_the_step_to_recompute(
    tmp_path: Path, after: tuple[str, ...]
) -> None:
    with scripted(small=small, big=big, huge=big):
        chain().run(texts(ROWS), tmp_path / "run")
        with pytest.raises(ChainChanged, match="--from grade"):
            resume(tmp_path / "run", chain(after))


def test_another_model_behind_an_engine_that_is_asked_later_is_refused(tmp_path: Path) -> None:
    def with_model(model: str) -> Chain:
        with using_registry(EngineRegistry()):
            register_engine("first", "none", "simulated")
            register_engine("second", model, "simulated")
            step = Step(id="grade", input_model=Text, output_model=Word, engine_name="first", escalate=["second"])
            return Chain(name="c", steps=[step])

    with_model("a").run(texts(3), tmp_path / "run")
    with pytest.raises(ChainChanged, match="--from grade"):
        resume(tmp_path / "run", with_model("b"))


@pytest.mark.parametrize(
    ("escalate", "said"),
    [
        ("big", r"escalate is text; write escalate=\['big'\]"),
        (7, "escalate is 7, not a list of names of engines"),
        (["small"], "engine 'small' is asked twice"),
        (["big", "big"], "engine 'big' is asked twice"),
    ],
)
def test_escalate_that_cannot_work_is_refused_where_it_is_declared(escalate: Any, said: str) -> None:
    with pytest.raises(DeclarationError, match=f"test_escalate.py:.*step 'grade': {said}"):
        chain(escalate)


def test_an_engine_that_nobody_declared_is_named_with_the_step(tmp_path: Path) -> None:
    with scripted(small=small), pytest.raises(PlanError, match=r"step 'grade': .*'bog'"):
        chain(["bog"]).run(texts(1), tmp_path / "run")


def test_a_truncated_answer_is_asked_again_before_its_row_moves_on_if_its_seed_matters(tmp_path: Path) -> None:
    cut = Completion('{"wo', Finish.LENGTH, usage=COST)
    with scripted(small=lambda _: cut, big=big) as scripts:
        result = chain(sampling=SamplingParams(temperature=0.5)).run(texts(1), tmp_path / "run")
    assert len(scripts["small"].requests) == 2 and said(result)["0"] == ("big 0", "big", 3)
