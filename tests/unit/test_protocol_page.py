"""docs/protocol.md names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_rule_of_the_page_names_tests_that_exist() -> None:
    page = (ROOT / "docs" / "protocol.md").read_text()
    defined = {name for file in (ROOT / "tests").rglob("test_*.py") for name in re.findall(r"def (test_\w+)", file.read_text())}
    rules = [line for line in page.splitlines() if re.match(r"\| \d+ \|", line)]
    assert [int(rule.split("|")[1]) for rule in rules] == list(range(1, len(rules) + 1)) and len(rules) >= 23
    for rule in rules:
        named = set(re.findall(r"`(test_\w+)`", rule))
        assert named and named <= defined, named - defined
    assert set(re.findall(r"`(test_\w+)`", page)) <= defined


def test_the_files_that_the_page_names_exist() -> None:
    page = (ROOT / "docs" / "protocol.md").read_text()
    for name in re.findall(r"`([\w/]+\.(?:py|md))`", page):
        assert (ROOT / name).exists() or list((ROOT / "tests").rglob(name)), name
