"""docs/tutorial.md, followed command by command."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.cli import REPOSITORY, Project
from tests.support.pages import follow


@pytest.mark.long
def test_every_command_of_the_tutorial_prints_the_screen_below_it(tmp_path: Path) -> None:
    assert follow(REPOSITORY / "docs/tutorial.md", tmp_path) == 13


def test_the_first_chain_of_the_page_on_routes_has_no_problems(tmp_path: Path) -> None:
    assert follow(REPOSITORY / "docs/routes.md", tmp_path) == 1


def test_the_page_for_coding_agents_shows_a_chain_without_problems(tmp_path: Path) -> None:
    page = (REPOSITORY / "docs/agents.md").read_text(encoding="utf-8")
    chain, functions, *_ = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    (tmp_path / "whole.py").write_text(
        f"{chain}\n\n{functions}\n\nwhole = Chain(name='whole', steps=[clean, sentences, score])\n"
        "shot = Step(id='shot', input_model=Ticket, output_model=Kind, engine_name='llm', prompt_builder=few_shot,\n"
        "            n=7, pick='majority:kind', sampling=SamplingParams(temperature=0.8, max_tokens=30))\n"
        "shots = Chain(name='shots', steps=[shot], accept=100)\n"
    )
    project = Project(tmp_path)
    for name in ("chain", "whole", "shots"):
        done = project.chainette("inspect", f"whole.py:{name}")
        assert (done.returncode, done.stderr, done.stdout.splitlines()[-1]) == (0, "", "no problems")
