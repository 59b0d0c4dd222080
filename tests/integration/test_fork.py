"""`--from` and `--retry`: rows are taken back, the rest stays as it is."""

from __future__ import annotations

import shutil
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
from pyarrow import parquet
from pydantic import BaseModel

from chainette import Branch, Chain, Step, apply, register_engine
from chainette.core.run_settings import Format
from chainette.engine.config import EngineRegistry, using_registry
from chainette.errors import ChainChanged, RunDirectoryError, RunDirectoryInUse
from chainette.io.rundir.directory_swap import finish_swap
from chainette.io.rundir.event_log import EventLog
from chainette.io.rundir.open import read_state
from chainette.io.rundir.paths import RunDir
from chainette.io.rundir.result import RunResult
from chainette.io.rundir.run_state import Status
from chainette.run.executor import resume, retry_rejected
from tests.support.chains import Facts, Text, Word, content, everything, write_inputs
from tests.support.replay import replay


class Label(BaseModel):
    label: str


def three_steps(label_prompt: str = "{{ extract.name }}", invalid: float = 0.3) -> Chain:
    """extract -> (word joined) -> label; about a third of the words are rejected."""
    with using_registry(EngineRegistry()):
        register_engine("sure", "none", "simulated")
        register_engine("shaky", "none", "simulated", invalid_rate=invalid)
        return Chain(
            name="three",
            batch_size=4,
            steps=[
                Step(id="extract", input_model=Text, output_model=Facts, engine_name="sure"),
                [Branch("b", [Step(id="word", output_model=Word, engine_name="shaky", max_attempts=1)]).join("said")],
                Step(id="label", output_model=Label, engine_name="sure", user_prompt=label_prompt),
                apply(shout),
            ],
        )


def shout(label: Label) -> Label:
    return Label(label=label.label.upper())


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    return write_inputs(tmp_path / "inputs.jsonl", 30, bad=(7,))


def derived_files_agree(result: RunResult) -> bool:
    graph, metadata = replay(result.dir / "events.jsonl")
    return (result.dir / "graph.json").read_bytes() == graph and (result.dir / "metadata.json").read_bytes() == metadata


@pytest.mark.parametrize("format", ["jsonl", "parquet", "csv"])
def test_from_a_changed_step_computes_it_and_what_follows_and_nothing_else(
    tmp_path: Path, inputs: Path, format: Format
) -> None:
    run = three_steps().run(inputs, tmp_path / "run", format=format, max_rows_per_file=8)
    before, asked = content(run), run.metadata["steps"]["extract"]["usage"]["requests"]
    changed = three_steps(label_prompt="Say it: {{ extract.name }}")
    with pytest.raises(ChainChanged, match=r"--from label"):
        resume(run.dir, changed)
    again = resume(run.dir, changed, from_step="label")
    after = content(again)
    assert again.metadata["balanced"] and derived_files_agree(again)
    assert {name: after[name] for name in ("extract", "word", "rejected")} == {
        name: before[name] for name in ("extract", "word", "rejected")
    }
    assert again.metadata["steps"]["extract"]["usage"]["requests"] == asked
    fresh = changed.run(inputs, tmp_path / "fresh", format=format, max_rows_per_file=8)
    assert after == content(fresh)
    assert "Say it" in (again.dir / "graph.json").read_text()


def test_from_a_step_refuses_when_another_one_changed_too(tmp_path: Path, inputs: Path) -> None:
    run = three_steps().run(inputs, tmp_path / "run")
    with pytest.raises(ChainChanged, match=r"word.*--from word"):
        resume(run.dir, three_steps(invalid=0.1), from_step="label")
    with pytest.raises(RunDirectoryError, match="no step 'lable'"):
        resume(run.dir, three_steps(), from_step="lable")


def test_from_a_step_of_a_joined_branch_computes_what_uses_its_alias(tmp_path: Path, inputs: Path) -> None:
    run = three_steps().run(inputs, tmp_path / "run")
    before = content(run)
    again = resume(run.dir, three_steps(invalid=0.0), from_step="word")
    assert content(again)["extract"] == before["extract"]
    assert len(list(again.rows("word"))) == 29
    assert len(list(again.rows("flattened"))) == 29
    assert again.metadata["balanced"]


@pytest.mark.parametrize("format", ["jsonl", "parquet", "csv"])
def test_retry_asks_only_for_rejected_rows(tmp_path: Path, inputs: Path, format: Format) -> None:
    run = three_steps().run(inputs, tmp_path / "run", format=format, max_rows_per_file=8)
    good, rejected = {row["row_id"] for row in run.rows("word")}, {row["row_id"] for row in run.rows("rejected")} - {"7"}
    assert rejected
    before = content(run)
    again = retry_rejected(run.dir, three_steps(), engine="sure", steps=["word"])
    after = content(again)
    assert {row["row_id"] for row in again.rows("word")} == good | rejected
    assert set(before["word"]) <= set(after["word"])
    assert after["extract"] == before["extract"]
    assert [row["row_id"] for row in again.rows("rejected")] == ["7"]
    assert len(after["flattened"]) == 29 and len(set(after["flattened"])) == 29
    assert again.metadata["balanced"] and derived_files_agree(again)


def test_retry_by_reason_leaves_the_others_rejected(tmp_path: Path, inputs: Path) -> None:
    run = three_steps().run(inputs, tmp_path / "run")
    reasons = {row["reason"] for row in run.rows("rejected")} - {"invalid_input"}
    assert len(reasons) > 1
    chosen = min(reasons)
    kept = sum(row["reason"] != chosen for row in run.rows("rejected"))
    again = retry_rejected(run.dir, three_steps(), reasons=[chosen], engine="sure")
    assert sum(1 for _ in again.rows("rejected")) == kept


def test_retry_without_a_match_says_so_and_changes_nothing(tmp_path: Path, inputs: Path) -> None:
    run = three_steps(invalid=0.0).run(inputs, tmp_path / "run")
    before = (run.dir / "events.jsonl").read_bytes()
    with pytest.raises(RunDirectoryError, match="only lines of the input were rejected; mend them there"):
        retry_rejected(run.dir, three_steps(invalid=0.0))
    assert (run.dir / "events.jsonl").read_bytes() == before


def test_a_swap_that_a_crash_cut_in_two_is_ended(tmp_path: Path, inputs: Path) -> None:
    run = three_steps().run(inputs, tmp_path / "run")
    expected = content(run)
    (tmp_path / "run").rename(tmp_path / ".run.old")
    shutil.copytree(tmp_path / ".run.old", tmp_path / ".run.fork")
    with closing(EventLog(RunDir(tmp_path / ".run.old").log)), pytest.raises(RunDirectoryInUse):
        finish_swap(RunDir(tmp_path / "run"))  # somebody is about to
    finish_swap(RunDir(tmp_path / "run"))
    assert content(resume(tmp_path / "run", three_steps())) == expected
    assert not (tmp_path / ".run.old").exists()


@pytest.mark.parametrize("gone", [False, True])
def test_a_swap_that_another_process_ends_meanwhile_is_ended_once(
    tmp_path: Path, inputs: Path, monkeypatch: pytest.MonkeyPatch, gone: bool
) -> None:
    run = three_steps().run(inputs, tmp_path / "run")
    expected = content(run)
    old, aside = tmp_path / ".run.old", tmp_path / ".run.fork"
    (tmp_path / "run").rename(old)
    shutil.copytree(old, aside)

    def lock(path: Path) -> EventLog:
        aside.rename(tmp_path / "run")
        if gone:
            shutil.rmtree(old)
        return EventLog(path)

    monkeypatch.setattr("chainette.io.rundir.fork.EventLog", lock)
    finish_swap(RunDir(tmp_path / "run"))
    monkeypatch.undo()
    assert content(resume(tmp_path / "run", three_steps())) == expected and not old.exists()


def test_a_directory_is_read_by_those_who_may_not_write_beside_it(tmp_path: Path, inputs: Path) -> None:
    run = three_steps().run(inputs, tmp_path / "run")
    (tmp_path / ".run.fork").mkdir()
    for path in (tmp_path, tmp_path / "run", tmp_path / "run/events.jsonl"):
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        state, _ = read_state(RunDir(run.dir))
    finally:
        for path in (tmp_path, tmp_path / "run", tmp_path / "run/events.jsonl"):
            path.chmod(0o755 if path.is_dir() else 0o644)
    assert state.status is Status.FINISHED and (tmp_path / ".run.fork").exists()


def test_a_fork_that_a_crash_left_unfinished_goes_with_the_next_resume_unless_somebody_builds_it(
    tmp_path: Path, inputs: Path
) -> None:
    run = three_steps().run(inputs, tmp_path / "run")
    aside = tmp_path / ".run.fork"
    shutil.copytree(tmp_path / "run", aside)
    with closing(EventLog(RunDir(run.dir).log)), pytest.raises(RunDirectoryInUse):
        resume(run.dir, three_steps(), from_step="word")
    with closing(EventLog(RunDir(run.dir).log)):
        resume(run.dir, three_steps())  # there is nothing to do
    assert aside.exists()
    assert content(resume(run.dir, three_steps())) == content(run)
    assert not aside.exists()


def test_rows_of_a_hidden_step_that_are_gone_are_named(tmp_path: Path, inputs: Path) -> None:
    chain = everything()
    run = chain.run(inputs, tmp_path / "run")
    with pytest.raises(RunDirectoryError, match="--from hidden"):
        resume(run.dir, chain, from_step="count")
    again = resume(run.dir, chain, from_step="hidden")
    assert content(again) == content(everything().run(inputs, tmp_path / "fresh"))


def double(text: Text) -> list[Text]:
    return [text, text]


def with_dots(run: Path, format: Format) -> None:
    """Names expanded rows as an older Chainette did: `7.0`."""
    for shard in run.glob(f"double/*.{format}"):
        if format == "parquet":
            table = parquet.read_table(shard)
            ids = [row_id.replace("~", ".") for row_id in table["row_id"].to_pylist()]
            parquet.write_table(table.set_column(0, table.schema.field(0), [ids]), shard)
        else:
            shard.write_text(shard.read_text().replace("~", "."))


@pytest.mark.parametrize("format", ["jsonl", "parquet", "csv"])
def test_a_directory_with_ids_like_7_0_is_refused_and_left_as_it_is(tmp_path: Path, inputs: Path, format: Format) -> None:
    chain = Chain(name="old", steps=[apply(double)])
    run = chain.run(inputs, tmp_path / "run", format=format)
    assert resume(run.dir, chain).status is Status.FINISHED
    with_dots(run.dir, format)
    before = {path: path.read_bytes() for path in run.dir.rglob("*") if path.is_file()}
    for go_on in (resume, retry_rejected, partial(resume, from_step="double")):
        with pytest.raises(RunDirectoryError, match=r"run .* names rows like 0\.0, which is now 0~0"):
            go_on(run.dir, chain)
    assert {path: path.read_bytes() for path in run.dir.rglob("*") if path.is_file()} == before


def test_a_log_that_was_read_before_is_read_on_if_it_is_still_the_same_file(tmp_path: Path, inputs: Path) -> None:
    chain = three_steps()
    directory = RunDir(chain.run(inputs, tmp_path / "run", limit=20).dir)
    known, _ = read_state(directory)
    resume(directory.path, chain, limit=30)
    state, end = read_state(directory, known)
    assert state is known
    assert (state, end) == read_state(directory)
    assert end == directory.log.stat().st_size
    resume(directory.path, chain, from_step="label")
    state, end = read_state(directory, known)
    assert state is not known
    assert (state, end) == read_state(directory)
