"""`chainette plan`: what it foresees is what the run that follows asks, and pays."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from shutil import rmtree
from typing import Any

import pytest

from chainette import Chain, Route, Step, apply, open_run, register_engine
from chainette.core.compile import compile_chain
from chainette.core.run_settings import Format
from chainette.engine.base import Request
from chainette.engine.config import EngineRegistry, using_registry
from chainette.errors import ChainetteError, EngineRefused, InputError, RunDirectoryError, RunStopped
from chainette.io.rundir.paths import RunDir
from chainette.io.rundir.result import RunResult
from chainette.run.blocking import block
from chainette.run.estimate import Estimate, estimate, save
from chainette.run.executor import resume
from chainette.run.options import RunOptions
from chainette.run.plan_sample import sample
from tests.integration.test_costs import EACH, PRICE, answer
from tests.integration.test_costs import chain as two_steps
from tests.support.chains import Facts, Text, Word, everything, split, write_inputs
from tests.support.cli import Project
from tests.support.scripted import row_of, scripted


def inputs(path: Path, rows: int) -> Path:
    """Rows whose prompts grow shorter and longer."""
    lines = [json.dumps({"text": f"{row} " + "word " * (row * 7919 % 61)}) for row in range(rows)]
    (file := path / "in.jsonl").write_text("\n".join(lines))
    return file


def planned(chain: Chain, file: Path, directory: Path, number: int) -> Estimate:
    plan, run = compile_chain(chain), RunDir(directory)
    state, capacities = block(sample, plan, file, RunDir(run.sample), RunOptions(), number)
    return foreseen(chain, file, directory, sampled=state, capacities=capacities)


def foreseen(
    chain: Chain,
    file: Path,
    directory: Path,
    options: RunOptions | None = None,
    **more: Any,
) -> Estimate:
    return block(partial(estimate, **more), compile_chain(chain), file, RunDir(directory), options or RunOptions())


def counted(plan: Estimate) -> dict[str, int]:
    """Step -> rows that are asked, without those that are only estimated."""
    found = Counter[str]()
    for step in plan.steps:
        found[step.step] += round(step.rows - step.guessed)
    return dict(found)


#: The second engine of a step of `everything`.
LATER = ("closing", "second")


def requests(result: RunResult) -> dict[str, int]:
    """Requests by step over all sessions."""
    steps = result.metadata["steps"].items()
    return {step: counts["usage"]["requests"] for step, counts in steps if "usage" in counts}


def retries() -> Chain:
    register_engine("first", "m", "simulated", invalid_rate=0.2, price={"in": 0.15, "out": 0.6})
    register_engine("second", "m", "simulated", price={"in": 3, "out": 15})
    ask = Step(id="ask", input_model=Text, output_model=Facts, engine_name="first", user_prompt="{{ text }}")
    then = Step(id="then", output_model=Facts, engine_name="second", user_prompt="{{ chain_input.text }} {{ ask.name }}")
    return Chain(name="retries", steps=[ask, then])


def ways() -> Chain:
    register_engine("first", "m", "simulated", price={"in": 0.15, "out": 0.6})
    register_engine("second", "m", "simulated", price={"in": 3, "out": 15})
    ask = Step(id="ask", input_model=Text, output_model=Facts, engine_name="first", user_prompt="{{ text }}")
    dear = Step(id="dear", output_model=Word, engine_name="second", user_prompt="{{ chain_input.text }} {{ ask.name }}")
    cheap = Step(id="cheap", output_model=Word, engine_name="first", user_prompt="{{ ask.name }}")
    route = Route("handle", on="{{ ask.score % 2 == 0 }}", cases={True: [dear], False: [cheap]})
    return Chain(name="ways", steps=[ask, route.join("handled")])


def more_rows() -> Chain:
    register_engine("first", "m", "simulated", price={"in": 0.15, "out": 0.6})
    ask = Step(id="ask", input_model=Text, output_model=Facts, engine_name="first", user_prompt="{{ text }}")
    prompt = "{{ input.word }} {{ chain_input.text }} {{ row_id }}"
    each = Step(id="each", output_model=Word, engine_name="first", user_prompt=prompt)
    return Chain(name="more", steps=[ask, apply(split), each])


@pytest.mark.long
@pytest.mark.parametrize("scenario", [retries, ways, more_rows])
def test_a_plan_after_a_sample_is_within_a_tenth_of_the_bill(tmp_path: Path, scenario: Callable[[], Chain]) -> None:
    rows = 2000
    with using_registry(EngineRegistry()):
        chain = scenario()
        file = inputs(tmp_path, rows)
        plan = planned(chain, file, tmp_path / "out", 400)
        result = chain.run(file, tmp_path / "out")
    assert plan.sampled == 400
    print(f"{scenario.__name__}: ${plan.usd:.6f} planned, ${result.cost.usd:.6f} spent")
    assert plan.usd == pytest.approx(result.cost.usd, rel=0.1)
    assert plan.requests == pytest.approx(result.metadata["usage"]["requests"], rel=0.1)


def test_what_a_sample_asked_is_not_asked_again(tmp_path: Path) -> None:
    file = inputs(tmp_path, 40)
    with scripted({"price": PRICE, "capacity": 4}, llm=lambda _request: answer()) as scripts:
        chain, asked = two_steps(prompt="{{ text }}"), scripts["llm"].requests
        plan = planned(chain, file, tmp_path / "out", 10)
        assert sorted({int(row_of(request)) for request in asked}) == list(range(0, 40, 4)) and len(asked) == 20
        again = planned(chain, file, tmp_path / "out", 10)
        assert len(asked) == 20 and again.usd == plan.usd
        result = chain.run(file, tmp_path / "out")
    assert plan.requests == 60 and plan.usd == pytest.approx(60 * EACH) and plan.sample_usd == pytest.approx(20 * EACH)
    steps = result.metadata["steps"]
    assert {step: counts["out"] for step, counts in steps.items()} == {"chain_input": 40, "ask": 40, "then": 40}
    assert len({request.messages for request in asked if request.schema_name == "ask"}) == 40 and steps["ask"]["reused"] == 10


def test_a_run_that_took_a_sample_is_recomputed_and_moved_with_it(tmp_path: Path) -> None:
    file, out = inputs(tmp_path, 12), tmp_path / "out"
    with scripted({"capacity": 4}, llm=lambda _request: answer()) as scripts:
        chain, asked = two_steps(prompt="{{ text }}"), scripts["llm"].requests
        save(RunDir(out), planned(chain, file, out, 4))
        chain.run(file, out)
        before = len(asked)
        plan = foreseen(chain, file, out, select=["ask+"])
        again = resume(out, chain, select="ask+")
        assert counted(plan)["ask"] == 8 == again.metadata["steps"]["ask"]["usage"]["requests"]
        assert len(asked) - before == 8 and RunDir(out).estimate.exists()
        out.rename(tmp_path / "moved")
        assert foreseen(chain, file, tmp_path / "moved", select=["ask+"]).requests == plan.requests
        moved = resume(tmp_path / "moved", chain, select="ask+")
        assert moved.metadata["steps"]["ask"]["reused"] == 4
        with pytest.raises(InputError, match="there is no run in it"):
            rmtree(RunDir(tmp_path / "moved").sample)
            resume(tmp_path / "moved", chain, select="ask+")


def test_a_changed_step_is_asked_again_and_the_plan_says_why(tmp_path: Path) -> None:
    out, file = tmp_path / "out", inputs(tmp_path, 20)
    with scripted({"price": PRICE}, llm=lambda _request: answer()) as scripts:
        two_steps(prompt="{{ text }}").run(file, out)
        asked = len(scripts["llm"].requests)
        same = foreseen(two_steps(prompt="{{ text }}"), file, out)
        (tmp_path / "more").mkdir()
        grown = foreseen(two_steps(prompt="{{ text }}"), inputs(tmp_path / "more", 30), out)
        changed = foreseen(two_steps(prompt="Say {{ text }}"), file, out)
        selected = foreseen(two_steps(prompt="{{ text }}"), file, out, select=["then+"])
        assert len(scripts["llm"].requests) == asked
    assert same.requests == 0 == same.usd and [step.why for step in same.steps] == ["", ""]
    assert grown.requests == pytest.approx(20) and [step.guessed for step in grown.steps] == [0, 10]
    assert changed.requests == 40 and counted(changed) == {"ask": 20, "then": 0} and changed.select == ["changed+"]
    assert [step.why for step in changed.steps] == ["prompt of ask: 1 line changed", "follows ask"]
    assert counted(selected) == {"ask": 0, "then": 20} == {step.step: step.rows for step in selected.steps}


def test_rows_behind_a_join_wait_for_what_is_asked_inside_it(tmp_path: Path) -> None:
    def made(prompt: str) -> Chain:
        ask = Step(id="ask", input_model=Text, output_model=Facts, engine_name="llm", user_prompt="{{ text }}")
        dear = Step(id="dear", output_model=Word, engine_name="say", user_prompt=prompt)
        route = Route("handle", on="{{ ask.score == 1 }}", cases={True: [dear], False: []})
        last = Step(id="last", output_model=Word, engine_name="say", user_prompt="{{ chain_input.text }} {{ handled }}")
        return Chain(name="joined", steps=[ask, route.join("handled"), last])

    def score(request: Request) -> Facts:
        return Facts(name="x", score=int(row_of(request)) % 3)

    with scripted(llm=score, say=lambda request: Word(word=request.messages[-1].content)):
        made("{{ ask.name }}").run(file := inputs(tmp_path, 9), tmp_path / "out")
        plan = foreseen(made("Say {{ ask.name }}"), file, tmp_path / "new", RunOptions(reuse=(str(tmp_path / "out"),)))
    assert [(step.step, step.reused, step.rows, step.guessed) for step in plan.steps] == [
        ("ask", 9, 0, 0),
        ("dear", 0, 3, 0),
        ("last", 6, 3, 3),
    ]
    assert plan.steps[1].why == "prompt of dear: 1 line changed" and plan.steps[2].why == "follows a step that changed"


def test_rows_that_may_come_are_marked_also_if_none_is_expected(tmp_path: Path) -> None:
    def drop(_facts: Facts) -> list[Word]:
        return []

    with scripted(llm=lambda _request: Facts(name="x", score=1)):
        ask = Step(id="ask", input_model=Text, output_model=Facts, engine_name="llm", user_prompt="{{ text }}")
        chain = Chain(name="drops", steps=[ask, apply(drop), Step(id="then", output_model=Facts, engine_name="llm")])
        chain.run(inputs(tmp_path, 3), tmp_path / "out")
        plan = foreseen(chain, inputs(tmp_path, 4), tmp_path / "new", RunOptions(reuse=(str(tmp_path / "out"),)))
    assert [(step.step, step.rows, step.exact) for step in plan.steps] == [("ask", 1, True), ("then", 0, False)]


def test_without_a_sample_or_an_earlier_run_a_plan_is_an_upper_bound(tmp_path: Path) -> None:
    with scripted({"price": PRICE}, llm=lambda _request: answer()):
        plan = foreseen(two_steps(prompt="{{ text }}"), inputs(tmp_path, 100), tmp_path / "out")
    first, second = plan.steps
    assert (plan.basis, plan.requests, first.completion_tokens) == ("at most", 200, 100 * 1024)
    assert (first.counted_by, second.counted_by, second.prompt_tokens, second.guessed) == ("bytes", "", None, 100)
    assert first.prompt_tokens is not None
    assert plan.usd == pytest.approx((first.prompt_tokens * 2 + 200 * 1024 * 10) / 1e6)


@pytest.mark.parametrize("format", ["jsonl", "parquet"])
def test_a_plan_of_a_run_with_reuse_counts_every_row_that_the_run_asks(tmp_path: Path, format: Format) -> None:
    """The simulated engines reject the same rows again, so nothing but counted rows is asked before a function is called that
    may have no row for one."""
    file, old, new = write_inputs(tmp_path / "in.jsonl", 30, bad=(7,)), tmp_path / "old", tmp_path / "new"
    everything(hidden=False).run(file, old, format=format)
    plan = foreseen(everything(hidden=False), file, new, RunOptions(reuse=(str(old),)))
    result = everything(hidden=False).run(file, new, reuse=str(old))
    found, steps = (
        {step.step: step for step in plan.steps if step.engine != "second" or step.step == "hidden"},
        result.metadata["steps"],
    )
    for step in ("extract", "hidden", "guess_candidates"):
        assert (counted(plan)[step], found[step].reused) == (requests(result).get(step, 0), steps[step]["reused"]), step
    assert counted(plan)["extract"] and counted(plan)["guess_candidates"]
    assert found["closing"].guessed and found["closing"].reused < steps["closing"]["reused"] and plan.functions
    more = write_inputs(tmp_path / "more.jsonl", 33, bad=(7,))
    grown = foreseen(everything(hidden=False), more, tmp_path / "newer", RunOptions(reuse=(str(new), str(old))))
    assert counted(grown)["extract"] == counted(plan)["extract"] + 3
    assert {step.step for step in grown.steps if step.guessed} == counted(grown).keys() - {"extract"}


def test_a_plan_of_an_interrupted_run_counts_the_rows_that_a_resume_asks(tmp_path: Path) -> None:
    with scripted({"price": PRICE, "capacity": 4}, llm=lambda _request: answer()) as scripts:
        chain, asked = two_steps(prompt="{{ text }}"), scripts["llm"].requests
        with pytest.raises(RunStopped):
            chain.run(inputs(tmp_path, 40), tmp_path / "out", budget="31req")
        before = len(asked)
        plan = foreseen(chain, tmp_path / "in.jsonl", tmp_path / "out")
        assert foreseen(chain, tmp_path / "in.jsonl", tmp_path / "out", RunOptions(limit=1)) == plan  # say of chainette.toml
        resume(tmp_path / "out", chain, budget="none")
    since = Counter(request.schema_name for request in asked[before:])
    assert counted(plan)["ask"] == since["ask"]
    assert {step.step: round(step.rows) for step in plan.steps} == since and counted(plan)["then"] < since["then"]
    assert plan.resumed and plan.select == [] and plan.asked == 31


def test_a_plan_for_a_directory_refuses_another_input_than_its_run_has(tmp_path: Path) -> None:
    other = tmp_path / "other.jsonl"
    with scripted({"price": PRICE}, llm=lambda _request: answer()):
        chain = two_steps(prompt="{{ text }}")
        chain.run(inputs(tmp_path, 4), tmp_path / "out")
        other.write_text((tmp_path / "in.jsonl").read_text().replace("word", "work"))
        with pytest.raises(InputError, match=r"other\.jsonl is not the input of the run in .*out"):
            foreseen(chain, other, tmp_path / "out")


def test_a_plan_of_a_selection_counts_the_rows_that_it_asks(tmp_path: Path) -> None:
    chain, file, out = everything(hidden=False), write_inputs(tmp_path / "in.jsonl", 30, bad=(7,)), tmp_path / "out"
    first = chain.run(file, out)
    rejected: dict[str, set[str]] = {"extract": set(), "guess": set()}
    for row in first.rows("rejected"):
        rejected.setdefault(row["step_id"], set()).add(row["row_id"])
    few = [row for row in first.rows("guess_candidates") if row["row_id"].partition("~")[0] in rejected["guess"]]
    bad = [row for row in few if row["_reason"]]
    plan = foreseen(chain, file, out, select=["rejected"])
    assert rejected["extract"] and bad
    assert counted(plan) == {"extract": len(rejected["extract"]), "hidden": 0, "guess_candidates": len(bad), "closing": 0}
    plan = foreseen(chain, file, out, select=["guess_candidates+"])
    result = resume(out, chain, select="guess_candidates+")
    asked = requests(result)["guess_candidates"]
    assert counted(plan) == {"extract": 0, "hidden": 0, "guess_candidates": asked, "closing": 0} and not plan.functions


def test_rows_that_a_plan_needs_and_a_finished_run_deleted_are_named(tmp_path: Path) -> None:
    file = write_inputs(tmp_path / "in.jsonl", 8)
    everything().run(file, tmp_path / "out")
    with pytest.raises(RunDirectoryError, match=r"the rows of hidden .* were deleted .* --from hidden"):
        foreseen(everything(), file, tmp_path / "out", select=["closing+"])


def test_the_commands_walk_from_plan_to_bill(tmp_path: Path) -> None:
    project = Project(tmp_path, rows=40)
    words = ("chain.py", "in.jsonl", "-o", "out", "--price", "judge=out:1000", "--price", "writer=out:1000")
    bound = project.chainette("plan", *words)
    assert bound.returncode == 0 and "at most, for 40 records" in bound.stdout, bound.stderr
    assert "~ rows of side, grade are estimated: they follow from answers that nobody has yet" in bound.stdout
    plan = project.chainette("plan", *words, "--sample", "8", "--json")
    found = json.loads(plan.stdout.splitlines()[-1])
    assert found["basis"] == "sample" and found["sampled"] == 8 and found["requests"] > 0
    done = project.chainette("run", *words)
    assert done.returncode == 0, done.stderr
    usage = open_run(tmp_path / "out").metadata["usage"]
    assert f"plan (sample): {found['requests']:,.0f} requests, and {usage['requests']:,} were asked" in done.stdout
    again = json.loads(project.chainette("plan", *words, "--select", "grade+", "--json").stdout.splitlines()[-1])
    asked = round(again["requests"])
    assert again["select"] == ["grade+"] and 0 < asked < 40  # the sample has the others
    done = project.chainette("resume", "out", "--select", "grade+")
    assert f"plan (earlier run): {asked} requests, and {asked} were asked" in done.stdout
    report = project.chainette("report", "out")
    assert report.returncode == 0 and "plan (earlier run): " in (tmp_path / "out/report.html").read_text()
    priceless = project.chainette("plan", "chain.py", "in.jsonl", "-o", "none")
    assert "requests, cost unknown (a price, say --price writer=in:0.15,out:0.6, tells it)" in priceless.stdout
    piped = project.chainette("plan", "chain.py", "-", stdin="{}")
    assert piped.returncode == 1 and "write standard input" in piped.stderr


def test_a_sample_that_no_engine_answers_leaves_nothing_behind(tmp_path: Path) -> None:
    def refuse(_: object) -> str:
        raise EngineRefused("401: no key")

    with scripted(llm=refuse), pytest.raises(ChainetteError, match="401: no key"):
        planned(two_steps(prompt="{{ text }}"), inputs(tmp_path, 4), tmp_path / "runs/out", 2)
    assert not (tmp_path / "runs").exists()
