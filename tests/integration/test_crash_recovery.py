"""Killed at any disk step, a run resumes to the very rows of a run that was not."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from chainette.errors import DamagedRun, DiskError, RunDirectoryError
from chainette.io.rundir.derived_files import render_files
from chainette.io.rundir.open import read_state
from chainette.io.rundir.paths import RunDir
from chainette.io.rundir.result import RunResult
from chainette.run.executor import resume
from tests.support.chains import content, everything, write_inputs
from tests.support.crash import copies
from tests.support.replay import replay
from tests.support.tools import many, some

ROWS = 26


def derived_files_agree(result: RunResult) -> bool:
    graph, metadata = replay(result.dir / "events.jsonl")
    return (result.dir / "graph.json").read_bytes() == graph and (result.dir / "metadata.json").read_bytes() == metadata


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    return write_inputs(tmp_path / "inputs.jsonl", ROWS, bad=(3, 20))


@pytest.mark.long
@pytest.mark.parametrize("format", ["jsonl", "parquet", "csv"])
def test_a_crash_at_any_disk_step_costs_nothing(tmp_path: Path, inputs: Path, format: str) -> None:
    chain = everything()
    options: dict[str, Any] = {"format": format, "max_rows_per_file": 10}
    whole = content(chain.run(inputs, tmp_path / "whole", **options))
    with copies(tmp_path / "run", tmp_path / "copies", every=7 if format == "jsonl" else 11) as taken:
        chain.run(inputs, tmp_path / "run", **options)
    assert len(taken) > 10
    resumed = 0
    for copy in some(taken, 3):
        try:
            result = resume(copy, chain)
        except (RunDirectoryError, DamagedRun):
            assert (copy / "events.jsonl").stat().st_size == 0, copy.name
            continue
        resumed += 1
        assert content(result) == whole, copy.name
        assert result.metadata["balanced"], copy.name
        assert derived_files_agree(result), copy.name
    assert resumed > len(taken) // 4


def test_a_directory_whose_first_line_was_torn_is_begun_again(tmp_path: Path, inputs: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "events.jsonl").write_bytes(b'{"type":"run_created","at":"' + b"x" * 100_000)
    result = everything().run(inputs, tmp_path / "run")
    assert result.metadata["balanced"] and derived_files_agree(result)


def test_a_directory_that_could_not_be_synced_is_let_go(tmp_path: Path, inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_file: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        with pytest.raises(DiskError):
            everything().run(inputs, tmp_path / "run")
    assert everything().run(inputs, tmp_path / "run").metadata["balanced"]


@pytest.mark.long
def test_a_log_cut_at_any_byte_resumes_to_the_same_rows(tmp_path: Path, inputs: Path) -> None:
    chain = everything()
    whole = chain.run(inputs, tmp_path / "whole", max_rows_per_file=10)
    expected = content(whole)
    log = (whole.dir / "events.jsonl").read_bytes()
    first = log.index(b"\n") + 1
    import shutil

    # the hidden step's journal is deleted at the end, so cut a run that was stopped just before
    with copies(tmp_path / "run", tmp_path / "copies") as taken:
        chain.run(inputs, tmp_path / "run", max_rows_per_file=10)
    before_end = next(copy for copy in reversed(taken) if "run_finished" not in (copy / "events.jsonl").read_text())
    log = (before_end / "events.jsonl").read_bytes()
    for number, size in enumerate(range(first, len(log), max(1, (len(log) - first) // many(12, 20, 40)))):
        cut = tmp_path / f"cut-{number}"
        shutil.copytree(before_end, cut)
        (cut / "events.jsonl").write_bytes(log[:size])
        assert content(resume(cut, chain)) == expected, size


@pytest.mark.long
def test_a_second_crash_during_the_resume_costs_nothing(tmp_path: Path, inputs: Path) -> None:
    chain = everything()
    whole = content(chain.run(inputs, tmp_path / "whole", max_rows_per_file=10))
    with copies(tmp_path / "run", tmp_path / "copies") as taken:
        chain.run(inputs, tmp_path / "run", max_rows_per_file=10)
    middle = taken[len(taken) // 2]
    with copies(middle, tmp_path / "again", every=9) as again:
        resume(middle, chain)
    assert again
    for copy in some(again, 4, 3):
        assert content(resume(copy, chain)) == whole, copy.name


@pytest.mark.long
def test_a_resumed_run_asks_nothing_that_is_durable_again(tmp_path: Path, inputs: Path) -> None:
    chain = everything()
    whole = chain.run(inputs, tmp_path / "whole")
    with copies(tmp_path / "run", tmp_path / "copies") as taken:
        chain.run(inputs, tmp_path / "run")
    for copy in taken[len(taken) // 3 :: 12]:
        asked = resume(copy, chain).metadata["usage"]["requests"]
        assert asked == whole.metadata["usage"]["requests"], copy.name


def test_resuming_a_finished_run_changes_nothing(tmp_path: Path, inputs: Path) -> None:
    chain = everything()
    first = chain.run(inputs, tmp_path / "run")
    before = {path: path.read_bytes() for path in sorted(first.dir.rglob("*")) if path.is_file()}
    resume(first.dir, chain)
    after = {path: path.read_bytes() for path in sorted(first.dir.rglob("*")) if path.is_file()}
    assert before == after


def test_damage_in_the_middle_of_the_log_is_refused_with_its_place(tmp_path: Path, inputs: Path) -> None:
    chain = everything()
    run = chain.run(inputs, tmp_path / "run")
    log = run.dir / "events.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    offset = sum(map(len, lines[:5]))
    lines[5] = lines[5].replace(b'"seq":5', b'"seq":6')
    log.write_bytes(b"".join(lines))
    with pytest.raises(DamagedRun, match=f"byte {offset} is damaged"):
        resume(run.dir, chain)


def test_a_shard_that_lost_rows_is_refused(tmp_path: Path, inputs: Path) -> None:
    chain = everything()
    with copies(tmp_path / "run", tmp_path / "copies", every=20) as taken:
        chain.run(inputs, tmp_path / "run")
    copy = taken[-1]
    shard = copy / "extract" / "0.jsonl"
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(DamagedRun, match="rows were lost"):
        resume(copy, chain)


def test_the_derived_files_follow_from_the_log_alone(tmp_path: Path, inputs: Path) -> None:
    result = everything().run(inputs, tmp_path / "run")
    assert derived_files_agree(result)
    state, _ = read_state(RunDir(result.dir))
    assert {name: (result.dir / name).read_bytes() for name in render_files(state)} == render_files(state)
