"""docs/tutorial.md, followed command by command."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.cli import REPOSITORY
from tests.support.pages import follow


@pytest.mark.long
def test_every_command_of_the_tutorial_prints_the_screen_below_it(tmp_path: Path) -> None:
    assert follow(REPOSITORY / "docs/tutorial.md", tmp_path) == 11


def test_a_page_with_another_screen_fails(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text('```json title="a.json"\n{"a": 1}\n```\n\n```console\n$ cat a.json\n{...}\n```\n')
    assert follow(page, tmp_path) == 1
    page.write_text("```console\n$ cat a.json\n[...]\n```\n")
    with pytest.raises(AssertionError, match=r"page.md: \$ cat a.json"):
        follow(page, tmp_path)
