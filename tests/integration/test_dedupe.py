"""Rows with equal requests are asked once: in flight and afterwards, whatever happens to the row that asks."""

from __future__ import annotations

import asyncio
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any, Literal

import anyio
import pytest
from pydantic import BaseModel

from chainette import Chain, Loop, RunResult, SamplingParams, Step, open_run
from chainette.core.compile import compile_chain
from chainette.engine.base import Cause, Completion, Finish, Request
from chainette.errors import DeclarationError, DiskError, EngineUnavailable
from chainette.io.rundir.chain_changes import changes_between
from chainette.io.rundir.graph_of_plan import graph_of
from chainette.io.rundir.paths import RunDir
from chainette.io.rundir.run_state import Status
from chainette.run.blame import FAILURES
from chainette.run.blocking import block
from chainette.run.estimate import estimate
from chainette.run.executor import resume, retry_rejected
from chainette.run.options import RunOptions
from chainette.run.plan_sample import sample
from chainette.run.step_estimates import StepEstimate
from tests.support.patience import LONG
from tests.support.scripted import Script, ask_of, row_of, scripted, user_text


class Text(BaseModel):
    text: str


class Word(BaseModel):
    word: str


def chain(**keys: Any) -> Chain:
    settings: dict[str, Any] = {"engine_name": "llm", "dedupe": True} | keys
    ask = Step(id="ask", input_model=Text, output_model=Word, user_prompt="{{ text }}", **settings)
    return Chain(name="dedupe", batch_size=16, steps=[ask])


def repeated(rows: int, distinct: int) -> list[Text]:
    """Rows of which the n-th asks the same as the n + `distinct`-th."""
    return [Text(text=f"question {number % distinct}") for number in range(rows)]


def word(request: Request) -> Word:
    return Word(word=user_text(request).upper())


def asked(script: Script) -> Counter[str]:
    return Counter(map(user_text, script.requests))


def by_id(result: RunResult) -> dict[str, dict[str, Any]]:
    return {row["row_id"]: row for row in result.rows("ask")}


def test_equal_requests_are_asked_once_and_counted_apart(tmp_path: Path) -> None:
    with scripted(llm=word) as scripts:
        result = chain().run(repeated(200, 10), tmp_path / "out")
        plain = chain(dedupe=False).run(repeated(200, 10), tmp_path / "plain")
    assert len(scripts["llm"].requests) == 10 + 200
    assert by_id(result) == by_id(plain) and len(by_id(plain)) == 200
    counts, metadata = result.counts["ask"], open_run(tmp_path / "out").metadata
    assert (counts["shared"], counts["asked_again"], counts["usage"]["requests"]) == (190, 0, 10)
    assert metadata["rows_shared"] == 190 and metadata["balanced"] and metadata["usage"]["prompt_tokens"] == 100
    assert "rows_shared" not in open_run(tmp_path / "plain").metadata


def test_rows_wait_for_the_answer_to_a_question_in_flight_and_leave_room_for_others(tmp_path: Path) -> None:
    """The first answer comes once four questions are in flight; without that room, two units would fill the engine."""
    held: list[str] = []
    ready = asyncio.Event()

    async def answer(request: Request) -> Word:
        held.append(user_text(request))
        if len(held) == 4:
            ready.set()
        with anyio.fail_after(LONG):
            await ready.wait()
        return word(request)

    rows = [Text(text=f"question {number // 16 % 4}") for number in range(128)]
    with scripted({"capacity": 2}, llm=answer) as scripts:
        result = chain().run(rows, tmp_path / "out")
    assert len(by_id(result)) == 128 and asked(scripts["llm"]) == dict.fromkeys(held, 1)


def test_without_dedupe_every_row_asks_and_a_step_may_say_otherwise_than_the_run(tmp_path: Path) -> None:
    with scripted(llm=word) as scripts:
        chain(dedupe=None).run(repeated(20, 2), tmp_path / "plain")
        chain(dedupe=None).run(repeated(20, 2), tmp_path / "run", dedupe=True)
        chain(dedupe=False).run(repeated(20, 2), tmp_path / "step", dedupe=True)
    assert len(scripts["llm"].requests) == 20 + 2 + 20


def test_the_seed_comes_from_the_request_and_not_from_the_row(tmp_path: Path) -> None:
    hot = SamplingParams(temperature=1.0)
    with scripted(llm=word) as scripts:
        for name, rows in (("one", repeated(8, 4)), ("two", repeated(8, 4)[::-1])):
            chain(sampling=hot).run(rows, tmp_path / name)
    seeds = {(user_text(request), request.seed) for request in scripts["llm"].requests}
    assert len(scripts["llm"].requests) == 8 and len(seeds) == 4 == len({seed for _, seed in seeds})


def test_a_bad_answer_is_shared_with_all_its_asks(tmp_path: Path) -> None:
    def answer(request: Request) -> Word | str:
        return "no JSON" if user_text(request) != "question 1" else word(request)

    with scripted(llm=answer) as scripts:
        result = chain().run(repeated(40, 2), tmp_path / "out")
    assert Counter(map(ask_of, scripts["llm"].requests)) == {1: 2, 2: 1, 3: 1}
    assert len(by_id(result)) == 20
    rejected = [*result.rejected]
    assert len(rejected) == 20 and {(one["reason"], one["attempts"], one["raw"]) for one in rejected} == {
        ("not_json", 3, "no JSON")
    }
    assert result.counts["ask"]["shared"] == 38 and result.counts["ask"]["asked_again"] == 2


def test_a_retry_asks_once_for_all_rows_that_were_rejected_alike(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with scripted(llm=lambda _request: "no JSON") as scripts:
        asking = chain()
        asking.run(repeated(40, 2), out)
        scripts["llm"].answer = word
        result = retry_rejected(out, asking)
    assert Counter(map(ask_of, scripts["llm"].requests)) == {1: 2, 2: 2, 3: 2, 4: 2}
    assert len({request.seed for request in scripts["llm"].requests}) == 8
    assert len(by_id(result)) == 40 and {row["_attempts"] for row in result.rows("ask")} == {4}
    assert result.metadata["balanced"] and result.counts["ask"]["shared"] == 38


# -- the row that asks gets no answer


def test_a_row_that_is_itself_at_fault_shares_its_fate_with_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each row is asked for until it is convicted by itself, as without dedupe; after that nobody waits for another."""
    monkeypatch.setattr("chainette.run.unit_worker._FIRST_WAIT", 0.01)
    broken = Completion("", Finish.FAILED, error="500", by="here", cause=Cause.BROKEN)

    def answer(request: Request) -> Completion | Word:
        return broken if user_text(request) == "question 1" else word(request)

    with scripted(llm=answer) as scripts:
        result = chain().run(repeated(30, 10), tmp_path / "out")
    failing = Counter(row_of(request) for request in scripts["llm"].requests if user_text(request) == "question 1")
    assert failing.keys() == {"1", "11", "21"} and min(failing.values()) >= FAILURES
    assert {one["row_id"]: one["reason"] for one in result.rejected} == dict.fromkeys(failing, "engine_error")
    assert len(by_id(result)) == 27 and result.counts["ask"]["shared"] == 18


def test_rows_ask_for_themselves_if_the_first_request_of_all_is_refused(tmp_path: Path) -> None:
    """Whose fault that is shows later, and its row must not hold up those that wait for it."""
    refused = Completion("", Finish.ERROR, error="400: no")

    async def run(chain: Chain) -> RunResult:
        with anyio.fail_after(LONG):
            return await chain.arun(repeated(40, 2), tmp_path / "out")

    with scripted(llm=lambda request: refused if user_text(request) == "question 0" else word(request)):
        result = asyncio.run(run(chain()))
    assert {one["reason"] for one in result.rejected} == {"engine_error"} and len([*result.rejected]) == 20
    assert result.counts["ask"]["shared"] == 19


def test_rows_wait_for_the_next_try_if_the_engine_does_not_answer(tmp_path: Path) -> None:
    silent = [EngineUnavailable("nobody there")] * 2

    def answer(request: Request) -> Word:
        if silent:
            raise silent.pop()
        return word(request)

    with scripted(llm=answer) as scripts:
        result = chain().run(repeated(48, 1), tmp_path / "out")
    assert len(by_id(result)) == 48 and len(scripts["llm"].requests) == 3 and result.counts["ask"]["shared"] == 47


def test_a_budget_reserves_only_for_the_row_that_asks(tmp_path: Path) -> None:
    with scripted(llm=word) as scripts:
        result = chain().run(repeated(100, 5), tmp_path / "out", budget="5req")
    assert result.status is Status.FINISHED and len(scripts["llm"].requests) == 5


def test_an_interrupted_run_goes_on(tmp_path: Path) -> None:
    """Rows wait for one that is cancelled; a later session asks in its place."""
    out = tmp_path / "out"
    held = asyncio.Event()

    async def answer(request: Request) -> Word:
        if user_text(request) == "question 1":
            held.set()
            await asyncio.Event().wait()
        return word(request)

    async def interrupted(chain: Chain) -> None:
        run = asyncio.ensure_future(chain.arun(repeated(40, 2), out))
        await held.wait()
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run

    with scripted(llm=answer) as scripts:
        stopped = chain()
        asyncio.run(interrupted(stopped))
        assert asked(scripts["llm"])["question 1"] == 1
        scripts["llm"].answer = word
        result = resume(out, stopped)
    assert result.status is Status.FINISHED and len(by_id(result)) == 40
    assert asked(scripts["llm"])["question 1"] == 2


# -- answers and the rows they are shared with


def test_rows_that_are_not_answered_go_on_to_the_next_engine_and_share_there(tmp_path: Path) -> None:
    with scripted(small=lambda _request: "no JSON", large=word) as scripts:
        result = chain(engine_name="small", escalate=["large"]).run(repeated(40, 2), tmp_path / "out")
    assert len(scripts["small"].requests) == 2 * 3 and len(scripts["large"].requests) == 2
    assert {(row["_engine"], row["_attempts"]) for row in result.rows("ask")} == {("large", 4)}
    assert result.counts["ask"]["shared"] == 38 and result.metadata["balanced"]


def test_candidates_are_never_shared(tmp_path: Path) -> None:
    with scripted(llm=word) as scripts:
        with pytest.raises(DeclarationError, match=r"n=3 asks each row several times, and dedupe asks equal rows once"):
            chain(n=3)
        chain(n=3, dedupe=None).run(repeated(4, 2), tmp_path / "out", dedupe=True)
    assert len(scripts["llm"].requests) == 12


def test_rounds_and_steps_do_not_share(tmp_path: Path) -> None:
    """In every round the prompt is the same, and so it is in the step behind the loop."""
    same: dict[str, Any] = {"output_model": Word, "engine_name": "llm", "user_prompt": "{{ chain_input.text }}", "dedupe": True}
    with scripted(llm=word) as scripts:
        draft = Step(id="draft", input_model=Text, **same)
        steps = [
            Loop(name="again", steps=[draft], until="{{ round == 3 }}", max_rounds=3).join("drafted"),
            Step(id="last", **same),
        ]
        Chain(name="rounds", batch_size=16, steps=steps).run(repeated(20, 2), tmp_path / "out")
    assert asked(scripts["llm"]) == {"question 0": 4, "question 1": 4}


@pytest.mark.parametrize(("temperature", "is_stale"), [(0.0, False), (0.5, True)])
def test_the_setting_decides_rows_above_temperature_zero_only(temperature: float, is_stale: bool) -> None:
    sampling = SamplingParams(temperature=temperature)
    with scripted(llm=word):
        old, new = (graph_of(compile_chain(chain(dedupe=dedupe, sampling=sampling))) for dedupe in (False, True))
    changes = changes_between(old, new)
    assert (changes is not None) is is_stale
    assert changes is None or (changes.sentences, changes.stale) == (("dedupe of ask: not set -> True",), ("ask",))


@pytest.mark.parametrize("format", ["jsonl", "parquet"])
def test_a_resumed_run_asks_no_question_whose_answer_is_durable(tmp_path: Path, format: Literal["jsonl", "parquet"]) -> None:
    """Above temperature 0 too, and only within the step: the second one has the same model, messages and sampling."""
    out, hot = tmp_path / "out", SamplingParams(temperature=1.0)
    same: dict[str, Any] = {
        "output_model": Word,
        "engine_name": "llm",
        "user_prompt": "{{ chain_input.text }}",
        "sampling": hot,
    }
    with scripted(llm=word) as scripts:
        steps = [Step(id="one", input_model=Text, dedupe=True, **same), Step(id="two", **same)]
        two = Chain(name="two", batch_size=16, steps=steps)
        two.run(repeated(32, 4), out, format=format, limit=16)
        assert asked(scripts["llm"]) == {f"question {number}": 1 + 4 for number in range(4)}
        result = resume(out, two, limit=32)
    assert asked(scripts["llm"]) == {f"question {number}": 1 + 8 for number in range(4)}
    assert (result.counts["one"]["shared"], result.counts["one"]["asked_again"]) == (28, 0)
    assert "shared" not in result.counts["two"] and "rows_reused" not in result.metadata
    assert not any("_reused_from" in row for row in result.rows("one"))


def test_an_index_that_the_disk_does_not_let_go_is_an_error_of_the_disk(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with scripted(llm=word):
        sharing = chain()
        sharing.run(repeated(48, 4), out, limit=16)
        resume(out, sharing, limit=32)
        [index] = RunDir(out).answers.glob("*.index")
        index.unlink()
        index.mkdir()
        with pytest.raises(DiskError, match=index.name):
            resume(out, sharing, limit=48)


def test_a_stored_answer_serves_every_row_that_shares(tmp_path: Path) -> None:
    hot = SamplingParams(temperature=1.0)
    with scripted(llm=word) as scripts:
        chain(sampling=hot, dedupe=False).run(repeated(2, 2), tmp_path / "old")
        result = chain(sampling=hot).run(repeated(20, 2), tmp_path / "new", reuse=tmp_path / "old")
    assert len(scripts["llm"].requests) == 2 and result.metadata["rows_reused"] == 20


# -- the plan


def plan_of(chain: Chain, file: Path, directory: Path, *, dedupe: bool, **more: Any) -> dict[str, StepEstimate]:
    plan = compile_chain(chain, dedupe=dedupe)
    found = block(partial(estimate, **more), plan, file, RunDir(directory), RunOptions(limit=100))
    return {step.step: step for step in found.steps}


def written(path: Path, rows: list[Text]) -> Path:
    (file := path / "in.jsonl").write_text("".join(f"{row.model_dump_json()}\n" for row in rows))
    return file


def test_a_plan_counts_the_requests_that_dedupe_saves(tmp_path: Path) -> None:
    """Of a fresh run, and of the rest of one that stopped."""
    file, out = written(tmp_path, repeated(100, 30)), tmp_path / "out"
    with scripted(llm=word) as scripts:
        asking = chain(dedupe=None)
        plain, saving = (plan_of(asking, file, out, dedupe=dedupe)["ask"] for dedupe in (False, True))
        assert (plain.rows, plain.requests, plain.repeated, plain.shared) == (100, 100, 70, 0)
        assert (saving.rows, saving.requests, saving.repeated, saving.shared) == (30, 30, 0, 70)
        asking.run(file, out, dedupe=True, limit=16)
        rest = plan_of(asking, file, out, dedupe=True)["ask"]
        before = len(scripts["llm"].requests)
        resume(out, asking, limit=100)
    assert (rest.rows, rest.requests, rest.shared) == (14, 14, 70) and len(scripts["llm"].requests) - before == 14


def test_a_plan_estimates_what_dedupe_saves_where_rows_are_not_known(tmp_path: Path) -> None:
    file, out = written(tmp_path, repeated(80, 20)), tmp_path / "out"
    with scripted(llm=word):
        two = Chain(
            name="two", batch_size=16, steps=[*chain(dedupe=None).steps, Step(id="more", output_model=Word, engine_name="llm")]
        )
        assert plan_of(two, file, out, dedupe=False)["more"].repeated == 0  # nobody knows a row of it
        state, _ = block(sample, compile_chain(two), file, RunDir(RunDir(out).sample), RunOptions(), 40)
        found = plan_of(two, file, out, dedupe=False, sampled=state)["more"]
        result = two.run(file, out, dedupe=True)
        two.run(file, fresh := tmp_path / "fresh", dedupe=True)
        again = plan_of(two, file, fresh, dedupe=True, select=["ask+"])["more"]
    assert (found.rows, found.guessed, found.repeated) == (40, 40, 30)
    assert (again.rows, again.shared) == (20, 60), "as many as shared before, since no row of it is known"
    assert result.counts["more"]["shared"] == 30 and result.counts["more"]["usage"]["requests"] == 10
