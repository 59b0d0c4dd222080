"""Backends, prompt builders and hooks of plugins: found by entry point, used like our own, and blamed by name if broken."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.support.cli import REPOSITORY, Project
from tests.support.pages import blocks
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
    """A project whose Python also finds the packages in `site`."""

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


def of_page(name: str) -> str:
    """A module the page shows."""
    return next(block.text for block in blocks(REPOSITORY / "docs/plugins.md") if block.title.endswith(f"/{name}"))


def declare(project: Project, keys: str = "word='hello'", model: str = "grey") -> None:
    (project.path / "chain.py").write_text(CHAIN.format(keys=keys, model=model))


def answers(project: Project) -> list[str]:
    shards = sorted((project.path / "out/ask").glob("*.jsonl"))
    return [json.loads(line)["word"] for shard in shards for line in shard.read_text().splitlines()]


@pytest.mark.long
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


@pytest.mark.long
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
    assert other.returncode != 0 and "word of engine bird: hello -> bye" in other.stderr and "--from ask" in other.stderr, (
        other.stderr
    )


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
        ("Parrot = 3", "is not a class derived from chainette.Engine"),
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


@pytest.mark.long
def test_two_plugins_with_one_name_and_a_backend_that_nobody_has_are_refused(project: Project, tmp_path: Path) -> None:
    said = project.chainette("run", "chain.py", "in.jsonl", "-o", "out").stderr
    assert "engine 'bird': unknown backend 'parrot'" in said, said
    install(tmp_path / "site")
    install(tmp_path / "site", PARROT, name="other-parrot", version="0.1")
    said = " ".join(project.chainette("run", "chain.py", "in.jsonl", "-o", "out").stderr.split())
    assert "comes from two plugins, " in said and "other-parrot 0.1" in said and "uninstall one of them" in said, said


SHOTS = "[chainette.prompt_builders]\nfew_shot = {module}:few_shot\n"
BELL = "[chainette.hooks]\nbell = {module}:Bell\n"


def of_prompts(project: Project, name: str = "few_shot") -> None:
    """A chain whose step names a prompt builder."""
    chain = (
        CHAIN.format(model="any", keys="")
        .replace('"parrot", ', '"simulated"')
        .replace('"bird")])', f'"bird", prompt_builder={name!r})])')
    )
    (project.path / "chain.py").write_text(chain)


def test_another_source_of_a_prompt_builder_makes_rows_stale(project: Project, tmp_path: Path) -> None:
    install(tmp_path / "site", of_page("chainette_shots.py"), "chainette-shots", "0.3", SHOTS)
    of_prompts(project)
    assert project.chainette("run", "chain.py", "in.jsonl", "-o", "out", "--quiet").returncode == 0
    module = tmp_path / "site/chainette_shots.py"
    module.write_text(module.read_text().replace("a red mug", "a blue mug"))
    refused = project.chainette("resume", "out")
    assert refused.returncode != 0 and "--from ask" in refused.stderr, refused.stderr


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (
            "raise SystemError('of the author')",
            "hook 'bell' of the plugin chainette-bell 2.0 (chainette_bell:Bell) cannot be imported",
        ),
        ("class Bell:\n    pass", "is neither a class derived from chainette.hooks.Hook"),
        ("def Bell():\n    raise ValueError('no bell')", "cannot be made: ValueError: no bell"),
    ],
)
def test_a_hook_that_is_broken_is_named_before_the_first_row(project: Project, tmp_path: Path, source: str, words: str) -> None:
    install(tmp_path / "site", source, "chainette-bell", "2.0", BELL)
    (project.path / "chain.py").write_text(CHAIN.format(model="any", keys="").replace('"parrot", ', '"simulated"'))
    said = project.chainette("run", "chain.py", "in.jsonl", "-o", "out", "--hook", "bell")
    assert said.returncode == 2 and words in said.stderr and "Traceback" not in said.stderr, said.stderr
    assert not (project.path / "out").exists()


def test_a_prompt_builder_or_hook_that_nobody_has_is_answered_with_the_nearest(project: Project, tmp_path: Path) -> None:
    install(tmp_path / "site", of_page("chainette_shots.py"), "chainette-shots", "0.3", SHOTS)
    of_prompts(project, "few_shots")
    said = project.chainette("inspect", "chain.py")
    assert (
        said.returncode == 2
        and "chain.py:15: step 'ask': unknown prompt builder 'few_shots'; did you mean 'few_shot'" in said.stderr
    )
    of_prompts(project)
    assert "unknown hook 'ring'" in project.chainette("run", "chain.py", "in.jsonl", "-o", "out", "--hook", "ring").stderr


def test_a_plugin_is_held_to_the_contract_by_a_command(project: Project, tmp_path: Path) -> None:
    install(tmp_path / "site")
    judged = project.chainette("conformance", "chain.py")
    assert judged.returncode == 1
    assert "passed          answers an empty call" in judged.stdout
    assert "failed          answers with a boolean: Field required" in judged.stdout, judged.stdout
