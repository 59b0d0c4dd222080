"""Ids in any script, and names of chains and engines that are any text, through every command and a fleet."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from chainette.engine.config import make_config
from chainette.errors import EngineConfigError
from chainette.fleet.protocol.keys import RunKeys, engine_of
from chainette.fleet.protocol.member_fields import Member, listed
from tests.support.cli import Project

ENGINE = "meta/llama 3, v1.5=x*"

CHAIN = f"""
from pydantic import BaseModel
from chainette import Branch, Chain, Step, apply, register_engine

register_engine({ENGINE!r}, "m", "simulated")
register_engine("gpt-4.1", "m", "simulated")

class Text(BaseModel):
    text: str

@apply(id="разбить")
def cut(item: Text) -> list[Text]:
    return [item, item]

chain = Chain(name="RAG <b>Demo</b>: \\"v2\\" [bold] | 'x'", steps=[
    Step(id="步骤", input_model=Text, output_model=Text, engine_name={ENGINE!r}),
    Branch("ветвь", [cut]).join("части"),
    Step(id="हिन्दी", output_model=Text, engine_name="gpt-4.1", user_prompt="{{{{ 步骤.text }}}} {{{{ части }}}}"),
])
"""


@pytest.fixture
def project(tmp_path: Path) -> Project:
    made = Project(tmp_path, rows=6)
    (tmp_path / "chain.py").write_text(CHAIN, encoding="utf-8")
    return made


def rows(project: Project, directory: str) -> dict[str, list[str]]:
    found = {path.parent.name: path for path in (project.path / directory).glob("*/*.jsonl")}
    return {folder: sorted(path.read_text(encoding="utf-8").splitlines()) for folder, path in found.items()}


def test_names_of_any_script_and_any_text_work_in_every_command(project: Project) -> None:
    done = project.chainette("run", "chain.py", "in.jsonl", "-o", "here")
    assert done.returncode == 0, done.stderr
    before = rows(project, "here")
    assert set(before) == {"步骤", "разбить", "हिन्दी", "flattened"}
    assert [len(before[folder]) for folder in ("步骤", "разбить", "हिन्दी", "flattened")] == [6, 12, 6, 6]
    assert project.chainette("rows", "here", "--step", "步骤").stdout.count("\n") >= 6
    assert "gpt-4.1" in project.chainette("inspect", "chain.py").stdout
    assert "步骤<br/>" in project.chainette("inspect-dag", "chain.py", "--mermaid").stdout
    assert project.chainette("report", "here", "--price", f"{ENGINE}=in:1,out:2").returncode == 0
    page = (project.path / "here" / "report.html").read_text(encoding="utf-8")
    assert "&lt;b&gt;Demo" in page and "<b>Demo" not in page and "हिन्दी" in page
    assert "unchanged" in project.chainette("rebuild", "here").stdout
    assert project.chainette("resume", "here", "--from", "步骤").returncode == 0
    assert rows(project, "here") == before


def test_a_process_whose_locale_cannot_name_the_folder_says_so_before_it_begins(project: Project) -> None:
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = project.chainette("run", "chain.py", "in.jsonl", "-o", "here", **ascii_only)
    assert done.returncode == 2 and "set PYTHONUTF8=1" in done.stderr
    assert not (project.path / "here").exists()


@pytest.mark.long
def test_an_engine_of_any_name_is_served_by_workers(project: Project) -> None:
    assert project.chainette("run", "chain.py", "in.jsonl", "-o", "here").returncode == 0
    done = project.chainette("run", "chain.py", "in.jsonl", "-o", "there", "--workers", f"{ENGINE}=1,gpt-4.1=1")
    assert done.returncode == 0, done.stderr
    assert rows(project, "there") == rows(project, "here")
    way = json.loads((project.path / "there" / "events.jsonl").read_text(encoding="utf-8").splitlines()[0])["way"]
    assert way == {"workers": f"{ENGINE}=1,gpt-4.1=1"}
    (project.path / "chain.py").write_text(CHAIN.replace("части }}", "части }} anew"), encoding="utf-8")
    done = project.chainette("resume", "there", "--from", "हिन्दी")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("engine", ["llama", "gpt-4.1", ENGINE, "模型 一", "100%", "a\u00a0b", "é%2E."])
def test_a_queue_is_three_words_whatever_its_engine_is_called(engine: str) -> None:
    queue = RunKeys("20261128-184305-d000cf82", 1).queue(engine, "步骤")
    assert re.fullmatch(r"[^\s.,]+\.步骤\.20261128-184305-d000cf82", queue)
    assert engine_of(queue) == engine
    assert Member(names=listed([engine, "b"])).engines == sorted([engine, "b"])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("", "is empty"),
        (" ", "is empty"),
        ("a\x1b[2Jb", "control characters"),
        ("a\nb", "control characters"),
        ("a\u2028b", "control characters"),
        (4.1, "put it in quotes"),
        ("python", "stands for functions"),
    ],
)
def test_an_engine_name_that_nobody_could_read_is_refused(name: object, words: str, project: Project) -> None:
    with pytest.raises(EngineConfigError, match=words):
        make_config(name, "m", "simulated")  # type: ignore[arg-type]


def test_a_worker_refuses_an_engine_name_that_none_can_have(project: Project) -> None:
    done = project.chainette("worker", "--engine", "a\tb")
    assert done.returncode == 2 and "control characters" in done.stderr
