"""`--json`: the same as the screen shows, one object per line, for each command that shows something."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from chainette.cli.main import COMMANDS
from tests.support.cli import Project
from tests.support.valkey import Database

#: Words -> the exit code, and the number of objects if it is known.
LOCAL: dict[tuple[str, ...], tuple[int, int | None]] = {
    ("config",): (0, None),
    ("plan", "chain.py", "in.jsonl"): (0, 1),
    ("inspect", "chain.py"): (0, 1),
    ("inspect-dag", "chain.py"): (0, 1),
    ("engines",): (0, None),
    ("engines", "chain.py"): (0, 2),
    ("warmup", "chain.py", "--engine", "writer"): (0, 1),
    ("conformance", "chain.py", "--engine", "writer"): (0, None),
    ("status", "out"): (0, 1),
    ("ls", "."): (0, 1),
    ("rows", "out"): (0, None),
    ("why", "out", "3"): (0, 1),
    ("diff", "out", "out"): (0, 0),
    ("rejected", "out"): (0, None),
}
FLEET = {("runs",), ("status",)}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = Project(tmp_path_factory.mktemp("json"), rows=20, invalid=0.25)
    assert project.chainette("run", "chain.py", "in.jsonl", "-o", "out", "--quiet").returncode == 3
    return project


def objects(project: Project, *words: str, code: int = 0) -> list[dict[str, Any]]:
    done = project.chainette(*words, "--json")
    assert done.returncode == code, done.stderr
    text = done.stdout.removeprefix("the chain was loaded\n")  # by the chain itself
    return [json.loads(line) for line in text.splitlines()]


def test_every_command_that_has_the_flag_is_tried_here() -> None:
    assert {words[0] for words in (*LOCAL, *FLEET)} == {name for name, command in COMMANDS.items() if command.objects} - {
        "schema"
    }


@pytest.mark.parametrize("words", [words for words in LOCAL if words[0] != "conformance"], ids=" ".join)
def test_each_line_is_an_object(project: Project, words: tuple[str, ...]) -> None:
    code, number = LOCAL[words]
    found = objects(project, *words, code=code)
    assert all(isinstance(one, dict) for one in found)
    assert len(found) == number if number is not None else found


@pytest.mark.long
def test_conformance_prints_a_verdict_per_line(project: Project) -> None:
    verdicts = objects(project, "conformance", "chain.py", "--engine", "writer")
    assert {verdict["outcome"] for verdict in verdicts} <= {"passed", "not applicable"} and len(verdicts) > 20


def test_the_state_of_a_directory_is_its_metadata(project: Project) -> None:
    [status] = objects(project, "status", "out")
    metadata = json.loads((project.path / "out/metadata.json").read_bytes())
    assert status == metadata | {"standing": "finished", "expected": status["expected"]}


def test_inspect_names_problems_with_file_and_line_also_if_the_chain_cannot_run(project: Project, tmp_path: Path) -> None:
    [found] = objects(project, "inspect", "chain.py")
    assert [node["id"] for node in found["nodes"]] == ["extract", "split", "side", "grade"]
    assert found["nodes"][1]["gives"] == "list[Fact]" and found["nodes"][1]["branch"] == ["pieces_of"]
    wrong = Project(tmp_path)
    (tmp_path / "chain.py").write_text((tmp_path / "chain.py").read_text().replace("{{ text }}", "{{ txet }}"))
    [refused] = objects(wrong, "inspect", "chain.py", code=2)
    [problem] = [problem for problem in refused["problems"] if not problem["warning"]]
    assert "txet" in problem["message"] and problem["file"] == "chain.py"
    assert "extract = Step(" in (tmp_path / "chain.py").read_text().splitlines()[problem["line"] - 1]


def test_the_drawn_chain_is_the_graph_of_the_directory(project: Project) -> None:
    [graph] = objects(project, "inspect-dag", "chain.py")
    assert graph == json.loads((project.path / "out/graph.json").read_bytes())
    refused = project.chainette("inspect-dag", "chain.py", "--json", "--mermaid")
    assert refused.returncode == 2 and "leave out --mermaid" in " ".join(refused.stderr.split())


def test_engines_of_a_chain_have_their_steps(project: Project) -> None:
    found = {engine["name"]: engine["steps"] for engine in objects(project, "engines", "chain.py")}
    assert found == {"writer": ["extract", "side"], "judge": ["grade"]}
    kinds = {(found["kind"], found["name"]): found["here"] for found in objects(project, "engines")}
    assert kinds["backend", "simulated"] is True


def test_an_empty_fleet_is_an_object_without_members(project: Project, database: Database) -> None:
    assert objects(project, "status", "--redis", database.url) == [{"members": [], "runs": []}]
    assert objects(project, "runs", "--redis", database.url) == []
    unknown = project.chainette("status", "nowhere", "--redis", database.url, "--json")
    assert unknown.returncode == 1 and unknown.stdout == "" and "no live run 'nowhere'" in unknown.stderr
