"""Budgets: nothing is asked that does not fit, over all sessions of a directory, whatever is killed."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from unittest import mock

import pytest

from chainette import Chain, Step, open_run, register_engine
from chainette.cli.screen.summary import cost_line
from chainette.engine.base import Completion, Request
from chainette.engine.budget import Amounts, Budget, Reserved, parse_budget
from chainette.engine.config import EngineRegistry, using_registry
from chainette.engine.price import Price, Rate
from chainette.engine.shared_time import SharedTime
from chainette.errors import EngineConfigError, EngineRefused, EngineUnavailable, InputError, RunStopped
from chainette.io.rundir.event_log import read_log
from chainette.io.rundir.open import read_state
from chainette.io.rundir.paths import RunDir
from chainette.io.rundir.run_state import Status
from chainette.records import Message, Usage
from chainette.run.budget_reservation import BudgetReservation
from chainette.run.executor import resume, run_iter
from tests.integration.test_costs import EACH, PRICE, answer, chain, picky
from tests.support.chains import Text, texts
from tests.support.scripted import row_of, scripted

#: The most a request of `chain` is reserved for: its prompt is short, and its answer may have 1,024 tokens.
MOST = 0.0115


def used(directory: Path) -> Amounts:
    return read_state(RunDir(directory))[0].used()


def test_a_run_stops_at_its_budget_and_goes_on_with_a_larger_one(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with scripted(llm=lambda _request: answer()) as scripts:
        costly = chain()
        with pytest.raises(RunStopped, match=r"10 of 10 req used.*--budget 20req"):
            costly.run(texts(20), out, budget="10req")
        assert len(scripts["llm"].requests) == 10 == open_run(out).metadata["usage"]["requests"]
        assert open_run(out).status is Status.PAUSED and open_run(out).metadata["budget"] == ["10req"]
        assert [*cost_line(open_run(out).metadata)] == ["budget: 10req"]
        with pytest.raises(RunStopped, match="10 of 10 req used"):
            resume(out, costly)
        assert len(scripts["llm"].requests) == 10
        with pytest.raises(RunStopped, match="15 of 15 req used"):
            resume(out, costly, budget="15req")
        assert len(scripts["llm"].requests) == 15
        result = resume(out, costly, budget="none")
    assert result.status is Status.FINISHED and len(scripts["llm"].requests) == 40


def test_rows_that_fit_are_asked_though_their_unit_does_not(tmp_path: Path) -> None:
    with scripted(llm=lambda _request: answer()) as scripts, pytest.raises(RunStopped):
        chain().run(texts(4), tmp_path / "out", budget="3req")
    assert len(scripts["llm"].requests) == 3
    assert open_run(tmp_path / "out").counts["ask"]["out"] == 3


@pytest.mark.parametrize(("budget", "most"), [("0.1usd", 0.1), ("0.0475usd", 0.0475)])
def test_money_is_reserved_before_a_request_is_sent(tmp_path: Path, budget: str, most: float) -> None:
    with scripted({"price": PRICE}, llm=picky) as scripts, pytest.raises(RunStopped, match="usd used"):
        chain().run(texts(40), tmp_path / "out", budget=budget)
    cost = open_run(tmp_path / "out").cost.usd
    assert cost == pytest.approx(len(scripts["llm"].requests) * EACH)
    assert most - MOST < cost <= most


def test_the_smallest_of_several_limits_holds(tmp_path: Path) -> None:
    with scripted({"price": PRICE}, llm=picky) as scripts, pytest.raises(RunStopped):
        chain().run(texts(40), tmp_path / "out", budget=("1usd", "5e6tok", "7req"))
    assert len(scripts["llm"].requests) == 7


def test_tokens_are_settled_by_usage(tmp_path: Path) -> None:
    with scripted(llm=lambda _request: answer()), pytest.raises(RunStopped, match="tok used"):
        chain().run(texts(40), tmp_path / "out", budget="2e4tok")
    usage = open_run(tmp_path / "out").metadata["usage"]
    assert 20_000 - 1_300 < usage["prompt_tokens"] + usage["completion_tokens"] <= 20_000


def two_engines() -> Chain:
    ask = Step(id="ask", input_model=Text, output_model=Text, engine_name="llm", user_prompt="{{ text }}")
    then = Step(id="then", output_model=Text, engine_name="other")
    return Chain(name="two", batch_size=4, steps=[ask, then])


def test_the_budget_of_an_engine_stops_a_run_and_the_command_line_goes_before_the_declaration(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with scripted({"budget": "5req", "capacity": 1}, llm=lambda _: answer(), other=lambda _: answer()) as scripts:
        asked, chain = {name: script.requests for name, script in scripts.items()}, two_engines()
        with pytest.raises(RunStopped, match=r"engine 'llm' is spent: 5 of 5 req used.*--budget llm=10req"):
            chain.run(texts(20), out)
        assert len(asked["llm"]) == 5
        assert open_run(out).metadata["budget"] == ["llm=5req", "other=5req"]
        with pytest.raises(RunStopped, match=r"engine 'llm' is spent: 9 of 9 req used"):
            resume(out, chain, budget=("llm=9req", "other=none", "30req"))
        assert len(asked["llm"]) == 9 and open_run(out).metadata["budget"] == ["30req", "llm=9req"]
        with pytest.raises(RunStopped, match=r"the budget is spent: 30 of 30 req used"):  # the run's, of the session before
            resume(out, chain, budget="llm=none")
        assert len(asked["llm"]) + len(asked["other"]) == 30
        result = resume(out, chain, budget="none")
    assert result.status is Status.FINISHED and len(asked["llm"]) == len(asked["other"]) == 20


def test_a_budget_of_an_engine_that_cannot_be_kept_is_an_error(tmp_path: Path) -> None:
    with scripted(llm=lambda _: answer()), pytest.raises(InputError, match=r"no engine 'lmm'.*llm"):
        chain().run(texts(1), tmp_path / "out", budget="lmm=5req")
    with scripted({"budget": ["5usd", "7req"]}, llm=lambda _: answer()), pytest.raises(InputError, match="needs the price"):
        chain().run(texts(1), tmp_path / "out")
    with using_registry(EngineRegistry()), pytest.raises(EngineConfigError, match=r"budget 5: expected 20usd"):
        register_engine("llm", "m", "simulated", budget="5")
    assert not (tmp_path / "out").exists()


def test_gpu_time_is_reserved_as_the_engine_has_needed_it_so_far(tmp_path: Path) -> None:
    on_gpu = {"price": {"gpu_hour": 1.0}, "capacity": 64}
    with (
        mock.patch.multiple(SharedTime, end=lambda *_: 36.0, per_request=36.0),  # seconds of each request
        scripted(on_gpu, llm=lambda _request: answer()) as scripts,
        pytest.raises(RunStopped, match=r"0\.1 of 0\.1 gpuh used"),
    ):
        chain().run(texts(40), tmp_path / "out", budget="0.1gpuh")
    assert len(scripts["llm"].requests) == 10  # though all of a unit would have been in flight together


@pytest.mark.parametrize(
    ("budget", "words"), [("5usd", "needs the price of engine 'llm'"), ("1gpuh", "engine 'llm' runs on a GPU")]
)
def test_a_budget_that_cannot_be_kept_is_an_error_before_the_first_row(tmp_path: Path, budget: str, words: str) -> None:
    with scripted(llm=picky) as scripts:
        with pytest.raises(InputError, match=words):
            chain().run(texts(4), tmp_path / "out", budget=budget)
        assert scripts["llm"].calls == [] and not (tmp_path / "out").exists()


def test_what_is_reserved_is_durable_before_it_is_sent(tmp_path: Path) -> None:
    """A process that is killed now may have sent these requests, and the next session counts them."""
    asked: list[Request] = []

    def look(request: Request) -> Completion:
        asked.append(request)
        known = [event.used for _, event in read_log(tmp_path / "out" / "events.jsonl") if hasattr(event, "used")]
        assert known and known[-1].requests >= len(asked)
        return picky(request)

    with scripted(llm=look):
        chain().run(texts(8), tmp_path / "out", budget="1000req")
    assert len(asked) > 16 and used(tmp_path / "out").requests >= len(asked)


@pytest.mark.parametrize("error", [EngineRefused("401, once"), EngineUnavailable("gone, once")])
def test_a_run_whose_engine_fails_once_ends_at_its_budget(
    tmp_path: Path, error: EngineUnavailable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chainette.run.in_flight._FIRST_REST", 0.01)
    failures, answered = [error], list[Request]()

    def fails_once(request: Request) -> Completion:
        if row_of(request) == "9" and failures:
            raise failures.pop()
        answered.append(request)
        return picky(request)

    with scripted(llm=fails_once), pytest.raises(RunStopped, match="40 of 40 req used"):
        chain().run(texts(100), tmp_path / "out", budget="40req")
    assert 36 < len(answered) <= 40  # requests that a refusal cancels stay spent


def test_a_run_without_a_directory_has_a_budget_too() -> None:
    with scripted(llm=picky) as scripts, pytest.raises(RunStopped, match="5 of 5 req used"):
        list(run_iter(chain(), texts(20), budget="5req"))
    assert len(scripts["llm"].requests) == 5


# -- the words


@pytest.mark.parametrize(
    ("texts", "limits"),
    [
        ((), (-1, -1, -1, -1)),
        (("none",), (-1, -1, -1, -1)),
        (("20usd",), (-1, -1, 20 * 10**9, -1)),
        (("1.5gpuh", "5e6tok"), (-1, 5_000_000, -1, 5_400_000)),
        (("1000req",), (1000, -1, -1, -1)),
    ],
)
def test_a_budget_has_a_number_and_a_unit(texts: Iterable[str], limits: tuple[int, ...]) -> None:
    assert parse_budget(texts) == limits


@pytest.mark.parametrize("texts", [("20",), ("usd",), ("-1usd",), ("0req",), ("1e40tok",), ("1usd", "2usd"), ("nan usd",)])
def test_another_form_is_refused_in_words(texts: Iterable[str]) -> None:
    with pytest.raises(InputError, match="--budget "):
        parse_budget(texts)


async def _nothing(*_: object) -> Reserved:
    raise AssertionError("nothing is sent")


def test_a_request_is_reserved_for_its_prompt_and_its_longest_answer() -> None:
    budget = Budget((-1, -1, -1, -1), {"llm": Rate(Price(prompt=1, answer=10))})
    need = BudgetReservation(budget, "llm", _nothing).need([Message("user", "x" * 290)], 100, 0.0)
    prompt = 97 + 8
    assert need == Amounts(1, prompt + 100, 1000 * prompt + 10_000 * 100, 0)
    on_gpus = Budget((-1, -1, -1, -1), {"llm": Rate(Price(gpu_hour=3.6), gpus=2)})
    assert BudgetReservation(on_gpus, "llm", _nothing).need([], 100, 0.5) == Amounts(1, 100, 1_000_000, 1000)
    assert budget.spent("llm", Usage(1, 5, 2)) == Amounts(1, 7, 25_000)
