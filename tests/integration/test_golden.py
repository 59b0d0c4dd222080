"""Run directories written by an earlier version of the code: read, rebuilt, resumed and repeated by this one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.support.cli import Project

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A copy of the golden project, which may be written to."""
    project = Project(tmp_path)
    shutil.copytree(GOLDEN, tmp_path, dirs_exist_ok=True)
    return project


def rows_of(directory: Path) -> Mapping[str, list[dict[str, Any]]]:
    """Every folder's rows in the order of their ids; messages without the folder in which chain.py lay."""
    found: dict[str, list[dict[str, Any]]] = {}
    for shard in sorted(directory.glob("[!.]*/*.jsonl")):
        text = shard.read_text().replace(f"{directory.resolve().parent}/", "").replace("/golden/", "")
        found.setdefault(shard.parent.name, []).extend(map(json.loads, text.splitlines()))
    return {folder: sorted(rows, key=lambda row: str(row["row_id"])) for folder, rows in found.items()}


GOLDEN_ROWS = rows_of(GOLDEN / "finished")


def test_the_golden_run_has_rows_of_every_step() -> None:
    assert len(GOLDEN_ROWS["flattened"]) == 26
    assert len(GOLDEN_ROWS["rejected"]) == 7
    assert {"extract", "split", "short_only", "no_q", "summed_up"} <= GOLDEN_ROWS.keys()


def test_a_fresh_run_gives_the_golden_rows(project: Project) -> None:
    done = project.chainette("run", "chain.py", "inputs.jsonl", "-o", "fresh", "--seed", "3")
    assert done.returncode == 3, done.stderr
    assert rows_of(project.path / "fresh") == GOLDEN_ROWS


def test_an_interrupted_golden_run_is_resumed_to_the_golden_rows(project: Project) -> None:
    done = project.chainette("resume", "interrupted")
    assert done.returncode == 3, done.stderr
    assert rows_of(project.path / "interrupted") == GOLDEN_ROWS


def test_a_finished_golden_run_is_rebuilt_as_it_was(project: Project) -> None:
    run = project.path / "finished"
    graph = (run / "graph.json").read_bytes()
    (run / "graph.json").unlink()
    done = project.chainette("rebuild", "finished")
    assert done.returncode == 0, done.stderr
    assert rows_of(run) == GOLDEN_ROWS
    assert (run / "graph.json").read_bytes() == graph
