"""Text from rows, models, servers, files and Redis reaches no terminal as a command: every way of showing it escapes it."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from tests.support.cli import Project

#: A title, a cleared screen, C1, reversed text, an invisible character, a carriage return, and rich's markup.
HOSTILE = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202egnp\u2066\u200b\rx[red]y[/red][link=http://127.0.0.1:9]z[/link]"
HIDDEN = re.compile("(?![\n\t])[\x00-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff]")

CHAIN = r"""
from pydantic import BaseModel

from chainette import Branch, Chain, Step, apply, register_engine

HOSTILE = __HOSTILE__


class Text(BaseModel):
    text: str


class Word(BaseModel):
    word: str


register_engine("sim", f"model {HOSTILE}", "simulated")


@apply
def echo(item: Text) -> Word:
    if "bad" in item.text:
        raise ValueError(f"refused: {item.text}")
    return Word(word=item.text)


def make(tone: str = "calm") -> Chain:
    say = Step(id="say", output_model=Word, engine_name="sim", user_prompt="Say {{ word }}", system_prompt=tone)
    return Chain(name="facts \u202e\u200b", steps=[echo, [Branch("b", [say]).join("said")]])
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A run whose rows, rejections, parameters and model name are hostile."""
    project = Project(tmp_path_factory.mktemp("screens"), rows=0)
    (project.path / "chain.py").write_text(CHAIN.replace("__HOSTILE__", ascii(HOSTILE)))
    texts = [{"text": f"good {HOSTILE}"}, {"text": f"bad {HOSTILE}"}, {"text": [HOSTILE]}]
    (project.path / "in.jsonl").write_text("".join(json.dumps(text) + "\n" for text in texts) + f"no json {HOSTILE}\n")
    return project


RUN = ("run", "chain.py:make", "in.jsonl", "--set", f"tone={HOSTILE}", "-o")


@pytest.fixture(scope="module")
def directory(project: Project) -> str:
    done = project.chainette(*RUN, "out")
    assert done.returncode == 3, done.stderr
    assert not HIDDEN.search(done.stdout + done.stderr)
    return "out"


@pytest.mark.parametrize("flags", [("--show",), ("--debug",), ("--stream", "--limit", "4"), ("--json-logs",), ("--quiet",)])
def test_a_run_shows_no_command_of_its_rows(project: Project, tmp_path: Path, flags: tuple[str, ...]) -> None:
    done = project.chainette(*RUN, str(tmp_path / "out"), *flags)
    assert done.returncode == 3, done.stderr
    assert not HIDDEN.search(done.stdout + done.stderr)
    if flags[0] in ("--show", "--debug", "--stream"):
        assert "\\x1b[2J" in done.stdout + done.stderr and "[red]" in done.stdout + done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ("rows", "out"),
        ("rows", "out", "--step", "echo"),
        ("rows", "out", "--records"),
        ("why", "out", "0"),
        ("diff", "out", "out", "echo"),
        ("why", "out", HOSTILE),
        ("ls", "."),
        ("rejected", "out"),
        ("status", "out"),
        ("engines", "chain.py:make"),
        ("inspect", "chain.py:make", "--set", f"tone={HOSTILE}"),
        ("inspect-dag", "chain.py:make"),
        ("inspect-dag", "chain.py:make", "--no-icons"),
        ("inspect-dag", "chain.py:make", "--mermaid"),
        ("warmup", "chain.py:make", "--engine", "sim"),
        ("resume", "out"),
        ("rebuild", "out"),
        ("report", "out"),
        ("status", HOSTILE),
        ("rows", "out", "--step", HOSTILE),
        ("run", "chain.py:make", HOSTILE),
        ("run", HOSTILE, "in.jsonl"),
        ("inspect", "broken.py", "--debug"),
    ],
    ids=lambda words: " ".join(words).encode("ascii", "backslashreplace").decode()[:40],
)
def test_no_command_shows_a_control_character(project: Project, directory: str, words: tuple[str, ...]) -> None:
    del directory
    (project.path / "broken.py").write_text(f"raise ValueError({HOSTILE!a})")
    done = project.chainette(*words)
    assert not HIDDEN.search(done.stdout + done.stderr), done.stdout + done.stderr
    assert "Traceback" not in done.stderr or "--debug" in words


def test_rows_and_rejections_show_the_text_escaped_and_json_has_it_exactly(project: Project, directory: str) -> None:
    shown = project.chainette("rows", directory, "--step", "echo").stdout
    assert "\\x1b]0;owned\\x07" in shown.replace("\n", "") and "[red]y[/red]" in shown.replace("\n", "")
    exact = project.chainette("rejected", directory, "--json").stdout
    assert not HIDDEN.search(exact)
    assert any(f"refused: bad {HOSTILE}" in json.loads(line)["message"] for line in exact.splitlines())


def test_a_directory_with_a_hostile_name_is_shown_escaped_and_given_to_scripts_exactly(
    project: Project, directory: str
) -> None:
    name = "out\x1b[2J\u202e"
    shutil.copytree(project.path / directory, project.path / name)
    for words in (("status", name), ("report", name), ("rebuild", name), ("rejected", name), ("resume", name)):
        done = project.chainette(*words)
        assert not HIDDEN.search(done.stdout + done.stderr), words
    fresh = "new\x1b[2J\u202e"
    assert project.chainette(*RUN, fresh, "--quiet").stdout == f"{fresh}\n"
