"""`chainette plan`: what it foresees is what the run that follows asks, and pays."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from chainette import Chain, Route, Step, apply, open_run, register_engine
from chainette.core.compile import compile_chain
from chainette.engine.config import EngineRegistry, using_registry
from chainette.io.rundir.open import read_state
from chainette.io.rundir.paths import RunDir
from chainette.run.blocking import block
from chainette.run.estimate import Estimate, at_most, from_state, sample
from chainette.run.options import RunOptions
from tests.integration.test_costs import EACH, PRICE, answer
from tests.integration.test_costs import chain as two_steps
from tests.support.chains import Facts, Text, Word, split
from tests.support.cli import Project
from tests.support.scripted import row_of, scripted


def inputs(path: Path, rows: int) -> Path:
    """Rows whose prompts grow shorter and longer."""
    lines = [json.dumps({"text": f"{row} " + "word " * (row * 7919 % 61)}) for row in range(rows)]
    (file := path / "in.jsonl").write_text("\n".join(lines))
    return file


def planned(chain: Chain, file: Path, directory: Path, number: int, rows: int) -> Estimate:
    plan, run = compile_chain(chain), RunDir(directory)
    state, capacities = block(sample, plan, file, RunDir(run.sample), RunOptions(), number)
    return from_state(plan, state, rows, capacities)


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
        plan = planned(chain, file, tmp_path / "out", 400, rows)
        result = chain.run(file, tmp_path / "out")
    assert plan.sampled == 400
    print(f"{scenario.__name__}: ${plan.usd:.6f} planned, ${result.cost.usd:.6f} spent")
    assert plan.usd == pytest.approx(result.cost.usd, rel=0.1)
    assert plan.requests == pytest.approx(result.metadata["usage"]["requests"], rel=0.1)


def test_what_a_sample_asked_is_not_asked_again(tmp_path: Path) -> None:
    file = inputs(tmp_path, 40)
    with scripted({"price": PRICE, "capacity": 4}, llm=lambda _request: answer()) as scripts:
        chain, asked = two_steps(prompt="{{ text }}"), scripts["llm"].requests
        plan = planned(chain, file, tmp_path / "out", 10, 40)
        assert sorted({int(row_of(request)) for request in asked}) == list(range(0, 40, 4)) and len(asked) == 20
        again = planned(chain, file, tmp_path / "out", 10, 40)
        assert len(asked) == 20 and again.usd == plan.usd
        result = chain.run(file, tmp_path / "out")
    assert plan.requests == 60 and plan.usd == pytest.approx(60 * EACH) and plan.sample_usd == pytest.approx(20 * EACH)
    steps = result.metadata["steps"]
    assert {step: counts["out"] for step, counts in steps.items()} == {"chain_input": 40, "ask": 40, "then": 40}
    assert len({request.messages for request in asked if request.schema_name == "ask"}) == 40 and steps["ask"]["reused"] == 10


def test_a_changed_step_is_asked_again_and_the_plan_says_why(tmp_path: Path) -> None:
    file = inputs(tmp_path, 20)
    with scripted({"price": PRICE}, llm=lambda _request: answer()):
        two_steps(prompt="{{ text }}").run(file, tmp_path / "out")
        state, _ = read_state(RunDir(tmp_path / "out"))
        same = from_state(compile_chain(two_steps(prompt="{{ text }}")), state, 20)
        grown = from_state(compile_chain(two_steps(prompt="{{ text }}")), state, 30)
        changed = from_state(compile_chain(two_steps(prompt="Say {{ text }}")), state, 20)
    assert same.requests == 0 == same.usd and [step.why for step in same.steps] == ["", ""]
    assert grown.requests == pytest.approx(20)
    assert changed.requests == 40 and changed.usd == pytest.approx(40 * EACH)
    assert changed.steps[0].why == "prompt of ask: 1 line changed"


def test_without_a_sample_or_an_earlier_run_a_plan_is_an_upper_bound() -> None:
    with scripted({"price": PRICE}, llm=lambda _request: answer()):
        plan = at_most(compile_chain(two_steps()), 100)
    assert (plan.basis, plan.requests) == ("at most", 200)
    assert plan.usd == pytest.approx(2 * 100 * 1024 * 10 / 1e6)
    assert [step.prompt_tokens for step in plan.steps] == [None, None]


def test_the_commands_walk_from_plan_to_bill(tmp_path: Path) -> None:
    project = Project(tmp_path, rows=40)
    words = ("chain.py", "in.jsonl", "-o", "out", "--price", "judge=out:1000", "--price", "writer=out:1000")
    bound = project.chainette("plan", *words)
    assert bound.returncode == 0 and "at most, for 40 records" in bound.stdout, bound.stderr
    plan = project.chainette("plan", *words, "--sample", "8", "--json")
    found = json.loads(plan.stdout.splitlines()[-1])
    assert found["basis"] == "sample" and found["sampled"] == 8 and found["requests"] > 0
    done = project.chainette("run", *words)
    assert done.returncode == 0, done.stderr
    usage = open_run(tmp_path / "out").metadata["usage"]
    assert f"plan (sample): {found['requests']:,.0f} requests, and {usage['requests']:,} were asked" in done.stdout
    report = project.chainette("report", "out")
    assert report.returncode == 0 and "plan (sample): " in (tmp_path / "out/report.html").read_text()
    piped = project.chainette("plan", "chain.py", "-", stdin="{}")
    assert piped.returncode == 1 and "write standard input to a file first" in piped.stderr
