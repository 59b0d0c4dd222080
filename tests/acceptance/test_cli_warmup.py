"""`chainette warmup` as a process: one engine, whether it works, in a few lines."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.cli import Project
from tests.support.models import SMOL, needs_model

ENGINES = f"""
engines:
  smol: {{model: "{SMOL}", n_ctx: 512}}
  gone: {{model: /nowhere/x.gguf}}
  keyed: {{model: m, backend: openai, api_key_env: NO_SUCH_KEY, endpoint: "http://127.0.0.1:1/v1"}}
  two: {{model: m, backend: openai, api_key_env: NO_KEY, headers: {{X: "${{NO_OTHER}}"}}, endpoint: "http://127.0.0.1:1/v1"}}
  away: {{model: m, backend: openai, endpoint: "http://127.0.0.1:1/v1"}}
"""


@pytest.fixture
def project(tmp_path: Path) -> Project:
    (tmp_path / "engines.yml").write_text(ENGINES)
    return Project(tmp_path)


def test_an_engine_of_a_chain_is_asked_and_its_numbers_are_said(project: Project) -> None:
    done = project.chainette("warmup", "chain.py", "--engine", "judge")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[1] == "engine judge: simulated, judge-model"
    assert re.fullmatch(r"answer: \d+\.\d\d s, \d+ \+ \d+ tokens, [\d.]+ tokens/s", lines[4])
    assert lines[5].startswith('text: {"answer":')
    assert "requests at once: 4" in lines


@needs_model
def test_a_real_model_says_its_version_and_memory(project: Project) -> None:
    done = project.chainette("warmup", "--engines", "engines.yml", "--engine", "smol")
    assert (done.returncode, done.stderr) == (0, "")
    said = dict(line.split(": ", 1) for line in done.stdout.splitlines())
    assert int(said["memory"].removesuffix(" MB")) > 100
    assert said["n_ctx"] == "512" and said["xllamacpp"]
    assert said["text"].startswith('{"answer":"')


def test_simulate_asks_in_the_place_of_an_engine_that_is_not_there(project: Project) -> None:
    done = project.chainette("warmup", "--engines", "engines.yml", "--engine", "away", "--simulate")
    assert done.returncode == 0
    assert "engine away: simulated, m" in done.stdout


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--engine", "smoll"], 2, "error: no engine 'smoll'; did you mean 'smol'?"),
        (["--engine", "gone"], 2, "error: engine 'gone': there is no model file /nowhere/x.gguf"),
        (["--engine", "keyed"], 2, "error: engine 'keyed': the environment variable NO_SUCH_KEY is not set"),
        (["--engine", "two"], 2, "error: engine 'two': "),
        (["--engine", "away", "--engine-patience", "0.1"], 1, "error: engine 'away' did not become ready"),
        ([], 2, "--engine says which: smol, gone, keyed, two, away"),
    ],
)
def test_what_does_not_work_is_one_clear_line(project: Project, words: list[str], code: int, said: str) -> None:
    done = project.chainette("warmup", "--engines", "engines.yml", *words)
    assert done.returncode == code
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert ("NO_KEY" in done.stderr and "NO_OTHER" in done.stderr) is ("two" in words), "everything that is missing, at once"
    assert sum(line.startswith("error:") for line in done.stderr.splitlines()) <= 1


def test_without_a_chain_or_a_file_there_is_nothing_to_warm(project: Project) -> None:
    done = project.chainette("warmup", "--engine", "smol")
    assert done.returncode == 2
    assert "--engines" in done.stderr
