"""docs/cost.md shows what its commands print."""

from __future__ import annotations

import re
import shutil
import textwrap
from pathlib import Path

from tests.support.cli import REPOSITORY, Project

#: Numbers that depend on the clock: times, GPU time, and dollars and percentages that come of it.
_OF_THE_CLOCK = re.compile(r"\d+:\d\d|[\d.e-]+ GPU-seconds|\$[\d.]+|[-+][\d.]+%| {2,}")


def masked(line: str) -> str:
    return _OF_THE_CLOCK.sub(" ~ ", line.strip())


def blocks() -> list[list[str]]:
    """The commands of the page, each with the lines it is said to print."""
    page = (REPOSITORY / "docs" / "cost.md").read_text()
    found = re.findall(r"(?:^    .*\n)+", page, re.MULTILINE)
    return [lines for block in found if (lines := textwrap.dedent(block).splitlines())[0].startswith("$ chainette ")]


def test_the_page_shows_what_its_commands_print(tmp_path: Path) -> None:
    project = Project(tmp_path)
    folder = tmp_path / "examples" / "16_cost"
    shutil.copytree(REPOSITORY / "examples" / "16_cost", folder)
    source = (folder / "chain.py").read_text()
    (folder / "edited.py").write_text(source.replace("Would the writer buy it again?", "Would you buy it?"))
    assert len(blocks()) == 6
    for command, *lines in blocks():
        done = project.chainette(*command.removeprefix("$ chainette ").split())
        printed = [masked(line) for line in (done.stdout + done.stderr).splitlines()]
        for line in lines:
            assert masked(line) in printed, (command, line, printed)
