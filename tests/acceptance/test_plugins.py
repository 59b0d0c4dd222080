"""Backends of plugins: found by their entry point, used like built-in ones, and blamed by name if they are broken."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.support.cli import REPOSITORY, Project
from tests.support.plugin import PARROT, install

CHAIN = """
from pydantic import BaseModel
from chainette import Chain, Step, register_engine


class Question(BaseModel):
    text: str


class Answer(BaseModel):
    word: str


register_engine("bird", {model!r}, "parrot", {keys})
chain = Chain(name="zoo", steps=[Step(id="ask", input_model=Question, output_model=Answer, engine_name="bird")])
"""


class Zoo(Project):
    """A project whose Python also finds what is installed in `site`."""

    def chainette(self, *words: str, stdin: str | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
        path = f"{REPOSITORY}{os.pathsep}{self.path.parent / 'site'}"
        return super().chainette(*words, stdin=stdin, PYTHONPATH=path, **variables)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    (tmp_path / "project").mkdir()
    project = Zoo(tmp_path / "project")
    (project.path / "in.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n')
    declare(project)
    return project


def declare(project: Project, keys: str = "word='hello'", model: str = "grey") -> None:
    (project.path / "chain.py").write_text(CHAIN.format(keys=keys, model=model))


def answers(project: Project) -> list[str]:
    shards = sorted((project.path / "out/ask").glob("*.jsonl"))
    return [json.loads(line)["word"] for shard in shards for line in shard.read_text().splitlines()]


def test_a_chain_runs_on_the_backend_of_a_plugin_and_commands_show_it(project: Project, tmp_path: Path) -> None:
    install(tmp_path / "site")
    done = project.chainette("run", "chain.py", "in.jsonl", "-o", "out")
    assert done.returncode == 0, done.stderr
    assert answers(project) == ["hello", "hello"]
    metadata = json.loads((project.path / "out/metadata.json").read_text())
    assert metadata["engines"]["bird"]["backend"] == "parrot" and metadata["engines"]["bird"]["deterministic"] is True
    backends = project.chainette("engines").stdout
    assert "parrot" in backends and "chainette-parrot 1.2" in backends and "word, pause, patience" in backends
    assert "parrot" in project.chainette("engines", "chain.py").stdout
    assert project.chainette("inspect", "chain.py").returncode == 0


def test_the_plugin_of_the_page_works_as_it_stands_there(project: Project, tmp_path: Path) -> None:
    page = (REPOSITORY / "docs/plugins.md").read_text()
    install(tmp_path / "site", page.split("```python\n")[1].partition("```")[0])
    assert project.chainette("run", "chain.py", "in.jsonl", "-o", "out").returncode == 0
    assert answers(project) == ["hello", "hello"]


def test_keys_of_a_plugin_decide_rescue_or_are_free_as_its_class_says(project: Project, tmp_path: Path) -> None:
    install(tmp_path / "site")
    assert project.chainette("run", "chain.py", "in.jsonl", "-o", "out").returncode == 0
    declare(project, "word='hello', pause=0.1, patience=2.0")
    assert project.chainette("resume", "out").returncode == 0
    declare(project, "word='hello', patience=0.5")
    worse = project.chainette("resume", "out")
    assert worse.returncode != 0 and "ask has patience=0.5 now (was 1.0" in worse.stderr, worse.stderr
    declare(project, "word='bye'")
    other = project.chainette("resume", "out")
    assert other.returncode != 0 and "another word of its engine" in other.stderr and "--from ask" in other.stderr, other.stderr


def test_a_key_that_a_plugin_does_not_have_and_its_obstacles_are_told_before_the_first_row(
    project: Project, tmp_path: Path
) -> None:
    install(tmp_path / "site")
    declare(project, "words='hello'")
    said = project.chainette("run", "chain.py", "in.jsonl", "-o", "out").stderr
    assert "engine 'bird' (backend 'parrot'): unknown key" in said and "did you mean 'word'" in said, said
    declare(project, model="dodo")
    said = project.chainette("run", "chain.py", "in.jsonl", "-o", "out").stderr
    assert "engine 'bird': the dodo is extinct; name another bird" in said, said


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("import no_such_module", "cannot be imported: ModuleNotFoundError: No module named 'no_such_module'"),
        ("raise SystemError('of the author')", "cannot be imported: SystemError: of the author"),
        ("Parrot = 3", "is no class derived from chainette.Engine"),
    ],
)
def test_a_plugin_that_is_broken_is_named_and_costs_nothing_else(
    project: Project, tmp_path: Path, source: str, words: str
) -> None:
    install(tmp_path / "site", source)
    said = project.chainette("run", "chain.py", "in.jsonl", "-o", "out")
    assert said.returncode != 0 and "Traceback" not in said.stderr
    plain = " ".join(said.stderr.split())
    assert "chain.py:14" in plain and "plugin chainette-parrot 1.2 (chainette_parrot:Parrot)" in plain and words in plain, plain
    backends = " ".join(project.chainette("engines").stdout.split())
    assert "simulated" in backends and "chainette-parrot" in backends


def test_two_plugins_with_one_name_and_a_backend_that_nobody_has_are_refused(project: Project, tmp_path: Path) -> None:
    said = project.chainette("run", "chain.py", "in.jsonl", "-o", "out").stderr
    assert "engine 'bird': unknown backend 'parrot'" in said, said
    install(tmp_path / "site")
    install(tmp_path / "site", PARROT, name="other-parrot", version="0.1")
    said = " ".join(project.chainette("run", "chain.py", "in.jsonl", "-o", "out").stderr.split())
    assert "comes from two plugins, " in said and "other-parrot 0.1" in said and "uninstall one of them" in said, said
