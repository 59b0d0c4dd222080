"""Prices: what the answers of a run cost, whatever became of them, over all sessions of its directory."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from chainette import Chain, Step, load_engines, open_run, register_engine
from chainette.core.usercode.loading import load_chain
from chainette.engine.base import Completion, Request
from chainette.engine.config import EngineRegistry, using_registry
from chainette.engine.price import Cost, Price, parse_price
from chainette.errors import EngineConfigError, EngineUnavailable, RunStopped
from chainette.records import Usage
from chainette.run.executor import resume, retry_rejected
from tests.support.chains import Text, texts
from tests.support.cli import Project
from tests.support.scripted import ask_of, row_of, scripted

GOOD = '{"text": "ok"}'
#: Dollars per million: a prompt of 1,000 tokens, half of them cached, costs 1.5 thousandths, and an answer of 100 one.
PRICE = {"in": 2.0, "out": 10.0, "cached": 1.0}
USAGE = Usage(1, 1000, 100, 0.1, cached_tokens=500)
EACH = 0.0025


def answer(text: str = GOOD) -> Completion:
    return Completion(text, usage=USAGE)


def chain(max_attempts: int = 2, prompt: str = "{{ text }}") -> Chain:
    ask = Step(id="ask", input_model=Text, output_model=Text, engine_name="llm", max_attempts=max_attempts, user_prompt=prompt)
    then = Step(id="then", output_model=Text, engine_name="llm", max_attempts=max_attempts)
    return Chain(name="costs", batch_size=4, steps=[ask, then])


def picky(request: Request) -> Completion:
    """Row 1 is answered badly at first, row 2 always."""
    bad = row_of(request) == "2" or (row_of(request) == "1" and ask_of(request) == 1)
    return answer("no json") if bad and request.schema_name == "ask" else answer()


def test_every_answer_is_charged_also_bad_ones_and_those_of_rejected_rows(tmp_path: Path) -> None:
    with scripted({"price": PRICE}, llm=picky) as scripts:
        result = chain().run(texts(4), tmp_path / "out")
        asked = len(scripts["llm"].requests)
    assert asked == 6 + 3  # row 1 and row 2 twice, then the three that are left
    assert result.cost.usd == pytest.approx(asked * EACH)
    steps = result.metadata["steps"]
    assert steps["ask"]["cost"]["usd"] == pytest.approx(6 * EACH) and steps["then"]["cost"]["usd"] == pytest.approx(3 * EACH)
    assert result.metadata["cost"]["usd"] == pytest.approx(9 * EACH)
    assert open_run(tmp_path / "out").cost == result.cost


def test_without_a_price_nothing_is_said_of_cost(tmp_path: Path) -> None:
    with scripted(llm=picky):
        result = chain().run(texts(4), tmp_path / "out")
    assert "cost" not in result.metadata and result.cost == Cost()


def stops_at(row: str, step: str) -> Callable[[Request], Completion]:
    def refuse(request: Request) -> Completion:
        if row_of(request) == row and request.schema_name == step:
            raise EngineUnavailable("gone")
        return answer()

    return refuse


def test_a_new_price_holds_for_the_answers_after_it(tmp_path: Path) -> None:
    with scripted({"price": PRICE, "capacity": 1}, llm=stops_at("4", "ask")) as scripts:
        costly = chain()
        with pytest.raises(RunStopped):
            costly.run(texts(8), tmp_path / "out", engine_patience=0)
        before = open_run(tmp_path / "out")
        scripts["llm"].answer = lambda _request: answer()
        result = costly.run(texts(8), tmp_path / "out", resume=True, price="llm=in:0,out:0")
    assert before.cost.usd == pytest.approx(before.metadata["usage"]["requests"] * EACH) and before.cost.usd > 0
    assert result.cost == before.cost
    assert result.metadata["usage"]["requests"] == 16


def test_answers_from_before_a_price_was_known_are_charged_at_the_first_one(tmp_path: Path) -> None:
    with scripted({"capacity": 1}, llm=stops_at("4", "ask")) as scripts:
        costly = chain()
        with pytest.raises(RunStopped):
            costly.run(texts(8), tmp_path / "out", engine_patience=0)
        scripts["llm"].answer = lambda _request: answer()
        result = costly.run(texts(8), tmp_path / "out", resume=True, price="llm=in:2,out:10,cached:1")
    assert result.cost.usd == pytest.approx(16 * EACH)


def test_rows_that_are_taken_back_stay_on_the_bill(tmp_path: Path) -> None:
    with scripted({"price": PRICE}, llm=picky):
        chain().run(texts(4), tmp_path / "out")
        again = resume(tmp_path / "out", chain(prompt="Say: {{ text }}"), from_step="ask")
        assert again.metadata["usage"]["requests"] == 9
        assert again.cost.usd == pytest.approx(18 * EACH)
        retried = retry_rejected(tmp_path / "out", chain(prompt="Say: {{ text }}"))
    assert retried.cost.usd == pytest.approx(20 * EACH)


def test_gpu_hours_are_the_seconds_with_requests_times_the_gpus(tmp_path: Path) -> None:
    """Eight requests side by side share their seconds, of which each counts once."""
    with using_registry(EngineRegistry()):
        register_engine("llm", "m", "simulated", latency=0.05, capacity=8, gpu_ids=[0, 1], price={"gpu_hour": 3600})
        began = time.monotonic()
        result = Chain(
            name="c", batch_size=8, steps=[Step(id="ask", input_model=Text, output_model=Text, engine_name="llm")]
        ).run(texts(32), tmp_path / "out")
        elapsed = time.monotonic() - began
    assert 0.2 <= 1800 * result.cost.gpu_hours <= elapsed and result.metadata["usage"]["seconds"] == pytest.approx(1.6)
    assert result.cost.usd == pytest.approx(3600 * result.cost.gpu_hours)


# -- declaring them


def test_a_price_is_declared_in_code_in_yaml_and_as_a_flag(tmp_path: Path) -> None:
    wanted = Price(prompt=0.15, answer=0.6)
    (tmp_path / "engines.yml").write_text("engines:\n  gpt: {model: m, backend: simulated, price: {in: 0.15, out: 0.6}}\n")
    (tmp_path / "chain.yml").write_text(
        "name: c\nengines:\n  gpt: {model: m, backend: simulated, price: {in: 0.15, out: 0.6}}\n"
        "models:\n  Text: {text: str}\nsteps:\n  - {step: ask, input_model: Text, output_model: Text, engine_name: gpt}\n"
    )
    with using_registry(EngineRegistry()):
        assert register_engine("code", "m", "simulated", price={"in": 0.15, "out": 0.6}).price == wanted
        assert [config.price for config in load_engines(tmp_path / "engines.yml")] == [wanted]
    assert [config.price for config in load_chain("chain.yml", tmp_path).chain.registry] == [wanted]
    assert parse_price("gpt=in:0.15,out:0.6") == ("gpt", wanted)
    assert parse_price("llama=gpu_hour:2.5") == ("llama", Price(gpu_hour=2.5))


@pytest.mark.parametrize("text", ["gpt", "gpt=", "=in:1", "gpt=in", "gpt=in:x", "gpt=ins:1", "gpt=in:-1", "gpt=in:1,in:2"])
def test_a_price_of_another_form_is_refused_with_the_right_one(text: str) -> None:
    with pytest.raises(EngineConfigError, match=r"expected ENGINE=in:0\.15,out:0\.6"):
        parse_price(text)


def test_a_price_decides_no_row(tmp_path: Path) -> None:
    with using_registry(EngineRegistry()):
        cheap = register_engine("a", "m", "simulated", price={"in": 1})
        dear = register_engine("b", "m", "simulated", price={"in": 2})
    assert cheap.describe() | {"name": ""} == dear.describe() | {"name": ""} and "price" not in cheap.describe()


def test_the_command_line_takes_prices_and_shows_the_cost(tmp_path: Path) -> None:
    project = Project(tmp_path, rows=8)
    wrong = project.chainette("run", "chain.py", "in.jsonl", "-o", "out", "--price", "jugde=in:1")
    assert wrong.returncode == 2 and "the chain has no engine 'jugde'; did you mean 'judge'?" in wrong.stderr
    assert not (tmp_path / "out").exists()
    done = project.chainette("run", "chain.py", "in.jsonl", "-o", "out", "--price", "judge=out:1e6")
    assert done.returncode == 0, done.stderr
    tokens = open_run(tmp_path / "out").metadata["steps"]["grade"]["usage"]["completion_tokens"]
    shown = f"cost: ${tokens:,.2f}"
    assert shown in done.stdout and shown in project.chainette("status", "out").stdout
    assert f"${tokens:,.2f}" in project.chainette("ls", ".").stdout
