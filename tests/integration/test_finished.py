"""Finished is decided from the log alone: a log that lacks anything is called finished by nobody, and can be gone on with."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner

from chainette import Branch, Chain, Step, apply, register_engine
from chainette.cli.main import app
from chainette.core.compile import compile_chain
from chainette.core.run_settings import Format
from chainette.engine.config import EngineRegistry, using_registry
from chainette.errors import DamagedRun, NotFinished, RunDirectoryError
from chainette.io.inputs.roots import Roots
from chainette.io.rundir.event_log import encode_line, read_log
from chainette.io.rundir.event_types import AnyEvent, RunFinished, UnitCommitted
from chainette.io.rundir.open import read_state, recover
from chainette.io.rundir.paths import RunDir
from chainette.io.rundir.run_state import Status
from chainette.run.executor import resume
from tests.support.chains import Facts, Text, content, count, everything, odd_only, split, write_inputs
from tests.support.crash import copies

ROWS = 26
ROOTS = 7

Change = Callable[[list[AnyEvent]], Iterable[AnyEvent]]


def rewrite(directory: Path, change: Change) -> None:
    """Writes the log again with other events: its numbers and checksums are right, whatever it says."""
    log = directory / "events.jsonl"
    events = change([event for _, event in read_log(log)])
    lines = [encode_line(msgspec.structs.replace(event, seq=seq)) for seq, event in enumerate(events)]
    log.write_bytes(b"".join(lines))


def units(events: list[AnyEvent], node: str) -> list[UnitCommitted]:
    return [event for event in events if isinstance(event, UnitCommitted) and event.node == node and event.given]


def without_a_unit(events: list[AnyEvent]) -> Iterable[AnyEvent]:
    gone = units(events, "extract")[1]
    return [event for event in events if event is not gone]


def without_the_last_unit(events: list[AnyEvent]) -> Iterable[AnyEvent]:
    gone = units(events, "extract")[-1]
    return [event for event in events if event is not gone]


def without_the_end_of_a_root(events: list[AnyEvent]) -> Iterable[AnyEvent]:
    done = [event for event in events if isinstance(event, UnitCommitted) and event.root_done]
    return [msgspec.structs.replace(event, root_done=None) if event is done[2] else event for event in events]


def with_another_count(events: list[AnyEvent]) -> Iterable[AnyEvent]:
    changed = units(events, "extract")[1]
    return [msgspec.structs.replace(event, given=event.given - 1) if event is changed else event for event in events]


def with_counts_that_agree_with_each_other(events: list[AnyEvent]) -> Iterable[AnyEvent]:
    """A step gave less, and the next one takes less, but only there."""
    changed = units(events, "extract")[1]
    for event in events:
        if event is changed:
            yield msgspec.structs.replace(event, taken=event.taken - 1, given=event.given - 1)
        else:
            yield event


def with_fewer_records(events: list[AnyEvent]) -> Iterable[AnyEvent]:
    for event in events:
        yield msgspec.structs.replace(event, records=ROWS + 1) if isinstance(event, RunFinished) else event


def with_a_unit_twice(events: list[AnyEvent]) -> Iterable[AnyEvent]:
    for event in events:
        yield event
        if event is units(events, "extract")[1]:
            yield event


CHANGES = [
    without_a_unit,
    without_the_last_unit,
    without_the_end_of_a_root,
    with_another_count,
    with_counts_that_agree_with_each_other,
    with_fewer_records,
    with_a_unit_twice,
]


@pytest.fixture
def chain() -> Chain:
    return everything()


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    return write_inputs(tmp_path / "inputs.jsonl", ROWS, bad=(3, 20))


def told(*words: str) -> tuple[int, str]:
    found = CliRunner().invoke(app, list(words))
    return found.exit_code, found.output


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_log_that_lacks_anything_is_called_finished_by_nobody(
    tmp_path: Path, chain: Chain, inputs: Path, change: Change
) -> None:
    directory = chain.run(inputs, tmp_path / "run").dir
    assert told("status", str(directory))[1].startswith("run ") and ": finished" in told("status", str(directory))[1]
    rewrite(directory, change)
    state, _ = read_state(RunDir(directory))
    assert state.status is Status.PAUSED and state.reason.startswith("not finished, although its log says so: ")
    _, words = told("status", str(directory))
    assert "not finished, although its log says so" in words and "chainette resume" in words, words
    assert told("rebuild", str(directory))[0] == 0
    metadata = json.loads((directory / "metadata.json").read_text())
    assert metadata["status"] == "paused" and metadata["reason"] == state.reason
    assert "of Chainette, paused." in (directory / "README.md").read_text()
    assert told("report", str(directory))[0] == 0
    assert "not finished, although its log says so" in (directory / "report.html").read_text()
    with pytest.raises((DamagedRun, RunDirectoryError), match="--from"):  # a step that keeps no rows has none any more
        resume(directory, chain)


def lasting(**engine: Any) -> Chain:
    """A chain all of whose rows stay: rejects, expands, joins, and has a side branch."""
    with using_registry(EngineRegistry()):
        register_engine("first", "none", "simulated", invalid_rate=0.2, **engine)
        extract = Step(
            id="extract", input_model=Text, output_model=Facts, engine_name="first", user_prompt="{{ text }}", max_attempts=1
        )
        branches = [Branch("pieces", [apply(split)]).join("parts"), Branch("side", [apply(odd_only)])]
        return Chain(name="lasting", batch_size=4, steps=[extract, branches, apply(count)])


MENDED = [without_the_end_of_a_root, with_another_count, with_counts_that_agree_with_each_other]


@pytest.mark.parametrize("change", MENDED, ids=lambda change: change.__name__)
def test_a_resume_mends_whatever_the_shards_still_hold(tmp_path: Path, inputs: Path, change: Change) -> None:
    chain = lasting()
    whole = chain.run(inputs, tmp_path / "run")
    expected, counts = content(whole), whole.counts
    rewrite(whole.dir, change)
    mended = resume(whole.dir, chain)
    assert mended.status is Status.FINISHED and content(mended) == expected
    assert {step: words["out"] for step, words in mended.counts.items()} == {
        step: words["out"] for step, words in counts.items()
    }


@pytest.mark.parametrize("change", [without_a_unit, without_the_last_unit], ids=lambda change: change.__name__)
def test_rows_that_the_log_does_not_mention_are_refused_and_recomputed(tmp_path: Path, inputs: Path, change: Change) -> None:
    chain = lasting()
    expected = content(chain.run(inputs, tmp_path / "run"))
    rewrite(tmp_path / "run", change)
    with pytest.raises(DamagedRun, match=r"lines of the log are missing: .*--from extract"):
        resume(tmp_path / "run", chain)
    mended = resume(tmp_path / "run", chain, from_step="extract")
    assert mended.status is Status.FINISHED and content(mended) == expected


def stopped_copies(tmp_path: Path, chain: Chain, inputs: Path) -> list[Path]:
    """Directories as a kill leaves them, of a run that is not yet at its end."""
    with copies(tmp_path / "run", tmp_path / "copies", every=3) as taken:
        chain.run(inputs, tmp_path / "run")
    return [
        copy for copy in taken if (copy / "extract/0.jsonl").exists() and read_state(RunDir(copy))[0].roots.done_count < ROOTS
    ]


@pytest.mark.long
@pytest.mark.parametrize("records", [None, ROWS], ids=["older version", "this version"])
def test_a_run_that_was_called_finished_too_early_is_told_and_completed(
    tmp_path: Path, inputs: Path, records: int | None
) -> None:
    chain = lasting()
    taken = stopped_copies(tmp_path, chain, inputs)
    expected = content(resume(tmp_path / "run", chain))
    assert len(taken) > 4
    for copy in taken:
        recover(RunDir(copy), compile_chain(chain)).close()
        rewrite(copy, lambda events: [*events, RunFinished(input_digest="d", records=records)])
        state, _ = read_state(RunDir(copy))
        assert state.status is Status.PAUSED and " not complete" in state.reason, copy.name
        completed = resume(copy, chain)
        assert completed.status is Status.FINISHED and content(completed) == expected, copy.name


def test_the_writer_refuses_to_finish_a_run_whose_log_lacks_roots(tmp_path: Path, inputs: Path) -> None:
    chain = lasting()
    copy = stopped_copies(tmp_path, chain, inputs)[3]
    writer = recover(RunDir(copy), compile_chain(chain))
    with pytest.raises(NotFinished, match=r"of 7 roots \(4 records each\) not complete: "):
        writer.finish("d", ROWS)
    writer.close()
    assert "run_finished" not in (copy / "events.jsonl").read_text()


def test_a_local_run_that_loses_a_root_exits_1_and_is_resumed(
    tmp_path: Path, inputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain = lasting()
    expected = content(chain.run(inputs, tmp_path / "whole"))
    pending = Roots.pending
    with monkeypatch.context() as patch:
        patch.setattr(Roots, "pending", lambda self, done: (root for root in pending(self, done) if root.number != 2))
        with pytest.raises(NotFinished, match=r"1 of 7 roots .* not complete: 2\. `chainette resume") as refused:
            chain.run(inputs, tmp_path / "run")
    assert refused.value.exit_code == 1
    metadata = json.loads((tmp_path / "run/metadata.json").read_text())
    assert (metadata["status"], metadata["reason"]) == ("paused", str(refused.value))
    assert content(resume(tmp_path / "run", chain)) == expected


def test_a_limit_and_an_empty_input_are_finished(tmp_path: Path, inputs: Path) -> None:
    chain = lasting()
    for limit in (3, 4, 8, 100):
        result = chain.run(inputs, tmp_path / f"run{limit}", limit=limit)
        assert result.status is Status.FINISHED and result.metadata["records"] == min(limit, ROWS)
        assert resume(result.dir, chain).status is Status.FINISHED
    (tmp_path / "empty.jsonl").touch()
    assert chain.run(tmp_path / "empty.jsonl", tmp_path / "empty").status is Status.FINISHED


@pytest.mark.parametrize("format", ["jsonl", "parquet", "csv"])
def test_a_shard_that_lost_a_row_is_named_by_every_command(tmp_path: Path, inputs: Path, format: Format) -> None:
    chain = lasting()
    directory = chain.run(inputs, tmp_path / "run", format=format).dir
    shard = directory / "extract" / f"0.{format}"
    shard.write_bytes(shard.read_bytes()[:-9])
    for command in ("status", "rebuild", "report"):
        code, words = told(command, str(directory))
        assert code == 1 and "rows were lost" in words, (command, words)
    with pytest.raises(DamagedRun, match=r"rows were lost|not a complete Parquet file"):
        resume(directory, chain)


def test_what_the_log_says_is_said_alike_everywhere(tmp_path: Path, inputs: Path) -> None:
    result = lasting().run(inputs, tmp_path / "run")
    state, _ = read_state(RunDir(result.dir))
    assert state.status is result.status is Status.FINISHED and not state.gaps()
    assert json.loads((result.dir / "metadata.json").read_text())["status"] == "finished"
    code, words = told("status", str(result.dir))
    assert code == 0 and ": finished" in words and "accounting: balanced" in words
