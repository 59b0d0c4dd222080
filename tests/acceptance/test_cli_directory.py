"""`status`, `rejected` and `rebuild` on a run directory that has rejected rows."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.cli import Project, lines
from tests.support.patience import LONG


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """40 rows and a bad line; every fourth or so of the grades is invalid."""
    project = Project(tmp_path_factory.mktemp("finished"), invalid=0.25)
    with (project.path / "in.jsonl").open("a") as file:
        file.write('{"text": 3, "x": "' + "z" * 300 + '"}\n')
    for kind in ("jsonl", "csv", "parquet"):
        done = project.chainette("run", "chain.py", "in.jsonl", "-o", kind, "--format", kind, "--quiet")
        assert done.returncode == 3, done.stderr
    return project


@pytest.fixture
def project(finished: Project, tmp_path: Path) -> Project:
    """A copy a test may change."""
    shutil.copytree(finished.path, tmp_path, dirs_exist_ok=True)
    project = Project.__new__(Project)
    project.path = tmp_path
    return project


def rejected_rows(project: Project, *words: str) -> list[dict[str, object]]:
    done = project.chainette("rejected", "--json", *words)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_status_tells_counts_tokens_and_engines(finished: Project) -> None:
    done = finished.chainette("status", "jsonl")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert lines[0].endswith("of chain facts: finished")
    assert "41 of 41 records done" in lines[1]
    assert next(line.split()[:4] for line in lines if line.startswith("chain_input")) == ["chain_input", "41", "40", "1"]
    assert "accounting: balanced" in lines
    assert any(line.startswith("engine judge: simulated, judge-model, loaded once") for line in lines)
    assert lines[-1] == "rejected rows: chainette rejected jsonl"


def test_rejected_rows_are_listed_with_reason_and_a_cut_answer(finished: Project) -> None:
    done = finished.chainette("rejected", "jsonl")
    assert done.returncode == 0
    header, *rows = [line for line in done.stdout.splitlines() if line]
    assert header.split() == ["row", "line", "step", "reason", "tries", "message", "raw"]
    bad = next(line for line in rows if "chain_input" in line)
    assert bad.split()[:4] == ["40", "41", "chain_input", "invalid_input"]
    assert "z" * 300 not in done.stdout
    assert any("grade" in line and "invalid_output" in line for line in rows)


def test_json_gives_the_rows_whole(finished: Project) -> None:
    rows = rejected_rows(finished, "jsonl")
    shard = (finished.path / "jsonl/rejected/0.jsonl").read_text().splitlines()
    assert rows == [json.loads(line) for line in shard]
    assert any("z" * 300 in str(row["raw"]) for row in rows)


@pytest.mark.parametrize("format", ["csv", "parquet"])
def test_every_format_gives_the_same_rejected_rows(finished: Project, format: str) -> None:
    def key(row: dict[str, object]) -> str:
        return str(row["row_id"])

    assert sorted(rejected_rows(finished, format), key=key) == sorted(rejected_rows(finished, "jsonl"), key=key)


def test_filters_narrow_down(finished: Project) -> None:
    everything = rejected_rows(finished, "jsonl")
    graded = rejected_rows(finished, "jsonl", "--step", "grade")
    assert 0 < len(graded) == len(everything) - 1
    assert rejected_rows(finished, "jsonl", "--reason", "invalid_input") == [row for row in everything if row not in graded]
    assert rejected_rows(finished, "jsonl", "--step", "grade", "--reason", "invalid_input") == []
    assert len(rejected_rows(finished, "jsonl", "--limit", "2")) == 2


def test_a_cut_list_says_how_many_more_there_are(finished: Project) -> None:
    more = len(rejected_rows(finished, "jsonl")) - 1
    assert f"and {more} more" in finished.chainette("rejected", "jsonl", "--limit", "1").stdout


@pytest.mark.parametrize(
    "words",
    [["--step", "nothing"], ["--reason", "nothing"], ["--engine", "writer"], ["--engine-patience", "1"]],
    ids=["step", "reason", "engine", "patience"],
)
def test_filters_that_cannot_match_are_usage_errors(finished: Project, words: list[str]) -> None:
    done = finished.chainette("rejected", "jsonl", *words)
    assert done.returncode == 2
    assert words[0] in done.stderr


def test_retry_asks_again_with_another_engine(project: Project) -> None:
    graded = rejected_rows(project, "jsonl", "--step", "grade")
    done = project.chainette("rejected", "jsonl", "--retry", "--step", "grade", "--engine", "writer", "--quiet")
    assert done.returncode == 3, done.stderr  # the bad line stays
    assert [row["step_id"] for row in rejected_rows(project, "jsonl")] == ["chain_input"]
    assert {str(row["row_id"]) for row in graded} <= {*project.ids("jsonl", "grade")}
    assert len(project.ids("jsonl", "grade")) == 40


def test_a_retry_gives_up_on_a_dead_engine_after_its_patience(tmp_path: Path) -> None:
    project = Project(tmp_path, rows=2, invalid=1.0)
    with (tmp_path / "chain.py").open("a") as file:  # nobody listens on port 1
        file.write("\nregister_engine('gone', 'm', backend='openai', endpoint='http://127.0.0.1:1/v1')\n")
    assert project.chainette("run", "chain.py", "in.jsonl", "-o", "out", "--quiet").returncode == 3
    done = project.chainette("rejected", "out", "--retry", "--step", "grade", "--engine", "gone", "--engine-patience", "0.1")
    assert done.returncode == 1
    assert "engine 'gone' has not answered for" in done.stderr


def test_retry_without_anything_to_retry_is_an_error(project: Project) -> None:
    done = project.chainette("rejected", "jsonl", "--retry", "--step", "side")
    assert done.returncode == 1
    assert "no rejected rows that match" in done.stderr


def test_rollback_undoes_a_retry_and_status_says_which_versions_there_are(project: Project) -> None:
    before = lines(project, "jsonl")
    refused = project.chainette("rollback", "jsonl")
    assert refused.returncode == 1 and "jsonl has no earlier version to restore" in refused.stderr
    assert "version " not in project.chainette("status", "jsonl").stdout
    project.chainette("rejected", "jsonl", "--retry", "--step", "grade", "--engine", "writer", "--quiet")
    after = lines(project, "jsonl")
    done = project.chainette("status", "jsonl")
    finished = f"finished, {len(before['flattened'])} rows finished, {len(before['rejected'])} rejected"
    kept = [f"version 1 (jsonl/.versions/1): {finished}; restore it: chainette rollback jsonl", "at most 2 versions are kept"]
    assert done.stdout.splitlines()[-2:] == kept
    done = project.chainette("rollback", "jsonl")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == f"jsonl is as it was before: {finished}"
    assert "version 2 (jsonl/.versions/2): finished, 40 rows finished, 1 rejected" in done.stdout
    assert lines(project, "jsonl") == before
    inside = [sys.executable, "-m", "chainette", "rollback", "."]
    done = subprocess.run(inside, cwd=project.path / "jsonl", env=project.environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "version 3 (.versions/3)" in done.stdout and lines(project, "jsonl") == after


def test_rebuild_writes_the_same_files_out_of_the_log(project: Project) -> None:
    schemas = [f".schema/{path.name}" for path in (project.path / "jsonl/.schema").iterdir()]
    names = ("graph.json", "metadata.json", "README.md", *schemas)
    before = {name: (project.path / "jsonl" / name).read_bytes() for name in names}
    (project.path / "jsonl/graph.json").unlink()
    (project.path / "jsonl/metadata.json").write_text("{}")
    done = project.chainette("rebuild", "jsonl")
    assert done.returncode == 0, done.stderr
    verdicts = [line.rpartition(", ")[2] for line in done.stdout.splitlines()]
    assert verdicts == ["new)", "changed)", "unchanged)"] + ["unchanged)"] * len(schemas)
    assert "wrote jsonl/graph.json" in done.stdout
    assert {name: (project.path / "jsonl" / name).read_bytes() for name in names} == before


def test_a_reader_that_goes_away_ends_a_list_quietly(finished: Project) -> None:
    with finished.start("rejected", "jsonl", "--json") as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(LONG) == 0


@pytest.mark.parametrize(
    "words",
    [
        ("status", "jsonl"),
        ("rejected", "jsonl"),
        ("rebuild", "jsonl"),
        ("rows", "jsonl"),
        ("why", "jsonl", "0"),
        ("run", "chain.py", "in.jsonl", "-o", "jsonl"),
    ],
)
def test_a_directory_that_a_crash_left_between_two_names_is_found_by_every_command(
    project: Project, words: tuple[str, ...]
) -> None:
    before = (project.path / "jsonl/events.jsonl").read_bytes()
    (project.path / "jsonl").rename(project.path / ".jsonl.old")  # as `--from` does, one step before its end
    shutil.copytree(project.path / ".jsonl.old", project.path / ".jsonl.fork")
    done = project.chainette(*words)
    if words[0] == "run":
        assert done.returncode == 1 and "; continue it with `chainette resume jsonl`" in done.stderr
    else:
        assert done.returncode == 0, done.stderr
    assert (project.path / "jsonl/events.jsonl").read_bytes() == before
    assert not (project.path / ".jsonl.fork").exists()
