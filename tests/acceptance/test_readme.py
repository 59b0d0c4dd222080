"""README.md: its table of other tools, and its pictures."""

from __future__ import annotations

import re

from tests.support.cli import REPOSITORY

README = REPOSITORY / "README.md"
COMPARISON = (REPOSITORY / "docs/comparison.md").read_text(encoding="utf-8")


def rows(text: str) -> list[str]:
    """The rows of the table beside other tools."""
    return text[text.index("| Chainette does this |") :].partition("\n\n")[0].splitlines()


def test_the_table_of_other_tools_is_that_of_its_page_and_every_cell_has_its_reason() -> None:
    table = rows(COMPARISON)
    assert [re.sub(r"<sup>\d+</sup>", "", row) for row in table] == rows(README.read_text(encoding="utf-8"))
    used = {int(number) for number in re.findall(r"<sup>(\d+)</sup>", "".join(table))}
    given = {int(number) for number in re.findall(r"^(\d+)\. ", COMPARISON, re.MULTILINE)}
    assert used == given
    bare = [cell.strip() for row in table[2:] for cell in row.split("|")[2:-1] if "<sup>" not in cell]
    assert {*bare} == {"no"}, "a cell that says more than no has a reason"


def test_the_pictures_ask_no_other_host() -> None:
    for name in re.findall(r"!\[[^\]]+\]\((docs/[\w.]+)\)", README.read_text(encoding="utf-8")):
        found = (REPOSITORY / name).read_bytes()
        assert b"font-face" not in found and len(found) < 200_000
