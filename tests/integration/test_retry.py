"""`rejected --retry`: the asks for a row go on where its rejection ended, so that no request is sent twice."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import BaseModel, Field, field_validator

from chainette import Branch, Chain, SamplingParams, Step, apply, register_engine
from chainette.core.run_settings import Format
from chainette.core.usercode.loading import load_chain
from chainette.engine.base import Completion, Request
from chainette.engine.config import EngineRegistry, using_registry
from chainette.errors import EngineUnavailable, RunStopped
from chainette.io.rundir.fork import Reopen, fork
from chainette.io.rundir.open import read_state
from chainette.io.rundir.paths import RunDir
from chainette.records import Message, Usage
from chainette.run.executor import resume, retry_rejected
from chainette.run.options import RunOptions
from chainette.run.planning import compile_plan
from chainette.run.steps import row_seed
from tests.support.chains import Text, Word, texts
from tests.support.cli import Project, lines
from tests.support.models import SMOL, needs_model
from tests.support.scripted import Script, ask_of, row_of, scripted

FORMATS = pytest.mark.parametrize("format", ["jsonl", "parquet", "csv"])


def good_from(ask: int) -> Callable[[Request], Completion]:
    """Answers badly before this ask; every ask takes (10, 1) tokens."""

    def answer(request: Request) -> Completion:
        text = '{"word": "yes"}' if ask_of(request) >= ask else "no"
        return Completion(text, usage=Usage(1, 10, 1, 0.5, 0.25))

    return answer


def asking(attempts: int = 3) -> Chain:
    step = Step(
        id="ask",
        input_model=Text,
        output_model=Word,
        engine_name="llm",
        sampling=SamplingParams(temperature=0.7),
        max_attempts=attempts,
    )
    return Chain(name="asking", batch_size=2, steps=[step])


def seeds(script: Script, row: str) -> list[int]:
    return [request.seed for request in script.asked(row)]


def expected_seeds(row: str, asks: int) -> list[int]:
    return [row_seed(0, "ask", row, number) for number in range(1, asks + 1)]


@FORMATS
def test_a_retry_goes_on_with_the_ask_numbers_of_the_run(tmp_path: Path, format: Format) -> None:
    with scripted(llm=good_from(4)) as scripts:
        run = asking().run(texts(5), tmp_path / "run", format=format)
        assert [row["attempts"] for row in run.rows("rejected")] == [3] * 5
        again = retry_rejected(run.dir, asking())
    for row in map(str, range(5)):
        assert seeds(scripts["llm"], row) == expected_seeds(row, 4)
    assert [row["_attempts"] for row in again.rows("ask")] == [4] * 5
    assert not [*again.rows("rejected")] and again.metadata["balanced"]


@FORMATS
def test_each_of_several_retries_has_all_its_attempts_and_says_the_total(tmp_path: Path, format: Format) -> None:
    with scripted(llm=good_from(9)) as scripts:
        run = asking(2).run(texts(3), tmp_path / "run", format=format, usage=True)
        for total in (4, 6, 8):
            run = retry_rejected(run.dir, asking(2))
            taken = [(row["attempts"], row["_prompt_tokens"], row["_seconds"]) for row in run.rows("rejected")]
            assert taken == [(total, 10 * total, 0.5 * total)] * 3
        run = retry_rejected(run.dir, asking(2))
    assert seeds(scripts["llm"], "1") == expected_seeds("1", 9)
    assert [(row["_attempts"], row["_prompt_tokens"]) for row in run.rows("ask")] == [(9, 90)] * 3
    assert run.metadata["usage"]["prompt_tokens"] == 3 * 90


def test_a_row_that_an_earlier_retry_left_rejected_keeps_its_asks(tmp_path: Path) -> None:
    def answer(request: Request) -> str:
        return "{}" if row_of(request) == "0" and ask_of(request) < 3 else "no"

    with scripted(llm=answer) as scripts:
        run = asking(2).run(texts(2), tmp_path / "run")
        retry_rejected(run.dir, asking(2), reasons=["not_json"])  # row 0 is invalid_output
        retry_rejected(run.dir, asking(2))
    assert seeds(scripts["llm"], "0") == expected_seeds("0", 4)
    assert seeds(scripts["llm"], "1") == expected_seeds("1", 6)


def test_from_a_step_numbers_its_asks_anew(tmp_path: Path) -> None:
    with scripted(llm=good_from(9)) as scripts:
        run = asking().run(texts(2), tmp_path / "run")
        retry_rejected(run.dir, asking())
        before = len(scripts["llm"].requests)
        resume(run.dir, asking(), from_step="ask")
    fresh = [request for request in scripts["llm"].requests[before:] if row_of(request) == "0"]
    assert [request.seed for request in fresh] == expected_seeds("0", 3)


def test_a_retry_that_dies_after_its_rows_were_opened_goes_on_with_their_numbers(tmp_path: Path) -> None:
    with scripted(llm=good_from(5)) as scripts:
        run = asking().run(texts(3), tmp_path / "run")
        scripts["llm"].open_errors = [EngineUnavailable("gone")] * 100
        with pytest.raises(RunStopped):
            retry_rejected(run.dir, asking(), engine_patience=0)
        shutil.copytree(run.dir, tmp_path / "copy")  # as kill -9 would leave it
        scripts["llm"].open_errors = []
        again = resume(tmp_path / "copy", asking())
    assert seeds(scripts["llm"], "2") == expected_seeds("2", 5)
    assert [row["_attempts"] for row in again.rows("ask")] == [5] * 3


def test_rows_below_an_expansion_and_in_a_branch_go_on_with_their_numbers(tmp_path: Path) -> None:
    def split(item: Text) -> list[Text]:
        return [item, item]

    def chain() -> Chain:
        step = asking().steps[0]
        return Chain(name="wide", steps=[apply(split), [Branch("b", [step]).join("said")]])

    with scripted(llm=good_from(4)) as scripts:
        run = chain().run(texts(2), tmp_path / "run")
        again = retry_rejected(run.dir, chain())
    children = {row_of(request) for request in scripts["llm"].requests}
    assert len(children) == 4
    for child in children:
        assert seeds(scripts["llm"], child) == expected_seeds(child, 4)
    assert len([*again.rows("flattened")]) == 4


def test_a_retried_row_that_fails_before_it_is_asked_keeps_its_asks(tmp_path: Path) -> None:
    broken = tmp_path / "broken"

    def build(step: object, row: object, history: object) -> list[Message]:
        if broken.exists():
            raise ValueError("no prompt today")
        return [Message("user", "say yes")]

    def chain() -> Chain:
        step = Step(id="ask", input_model=Text, output_model=Word, engine_name="llm", prompt_builder=build)
        return Chain(name="asking", steps=[step])

    with scripted(llm=good_from(5)) as scripts:
        run = chain().run(texts(1), tmp_path / "run")
        broken.touch()
        (row,) = retry_rejected(run.dir, chain()).rows("rejected")
        assert (row["reason"], row["attempts"]) == ("template_error", 3)
        broken.unlink()
        retry_rejected(run.dir, chain())
    assert seeds(scripts["llm"], "0") == expected_seeds("0", 5)


class Impossible(BaseModel):
    word: str = Field(max_length=12)

    @field_validator("word")
    @classmethod
    def never(cls, word: str) -> str:
        raise ValueError("not this one")


@pytest.mark.long
@needs_model
def test_a_retry_gets_other_answers_from_a_real_model(tmp_path: Path) -> None:
    with using_registry(EngineRegistry()):
        register_engine("smol", SMOL, capacity=1)
        sampling = SamplingParams(temperature=1.5, max_tokens=40)
        step = Step(id="ask", input_model=Text, output_model=Impossible, engine_name="smol", sampling=sampling, max_attempts=1)
        chain = Chain(name="real", steps=[step])
        run = chain.run([Text(text="any word")] * 4, tmp_path / "run")
        before = {row["row_id"]: row["raw"] for row in run.rows("rejected")}
        again = {row["row_id"]: (row["raw"], row["attempts"]) for row in retry_rejected(run.dir, chain).rows("rejected")}
    assert len(before) == len(again) == 4 and {attempts for _, attempts in again.values()} == {2}
    assert any(again[row_id][0] != raw for row_id, raw in before.items())


def rescued(directory: Path) -> None:
    """Reopens every rejection of a directory, and dies."""
    state, _ = read_state(run := RunDir(directory))
    plan = compile_plan(load_chain(state.run.chain_ref, Path(state.run.chain_root)).chain, RunOptions())
    fork(run, plan, state, Reopen(rejection=lambda step, reason: True))


def test_a_fleet_goes_on_with_the_ask_numbers_too(tmp_path: Path) -> None:
    project = Project(tmp_path, rows=24, invalid=0.5)
    assert project.chainette("run", "chain.py", "in.jsonl", "-o", "local", "--quiet").returncode == 3
    shutil.copytree(tmp_path / "local", tmp_path / "fleet")
    before = project.ids("local", "grade")
    project.chainette("rejected", "local", "--retry", "--quiet")
    assert len(project.ids("local", "grade")) > len(before)  # the simulated engine answers by the seed
    rescued(tmp_path / "fleet")
    done = project.chainette("resume", "fleet", "--workers", "1", "--quiet")
    assert done.returncode in (0, 3), done.stderr
    assert lines(project, "fleet") == lines(project, "local")
