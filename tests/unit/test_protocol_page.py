"""docs/protocol.md, docs/guarantees.md and docs/security.md name tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.counts import record

ROOT = Path(__file__).parents[2]


def defined_tests() -> set[str]:
    return {name for file in (ROOT / "tests").rglob("test_*.py") for name in re.findall(r"def (test_\w+)", file.read_text())}


def test_every_rule_of_the_page_names_tests_that_exist() -> None:
    page, defined = (ROOT / "docs" / "protocol.md").read_text(), defined_tests()
    rules = [line for line in page.splitlines() if re.match(r"\| \d+ \|", line)]
    assert [int(rule.split("|")[1]) for rule in rules] == list(range(1, len(rules) + 1)) and len(rules) >= 23
    for rule in rules:
        named = set(re.findall(r"`(test_\w+)`", rule))
        assert named and named <= defined, named - defined
    assert set(re.findall(r"`(test_\w+)`", page)) <= defined


def test_every_promise_of_the_guarantees_names_tests_that_exist() -> None:
    tables = (ROOT / "docs" / "guarantees.md").read_text().split("| promise | mechanism | test |\n")[1:]
    rows = [line for table in tables for line in table.partition("\n\n")[0].splitlines()[1:]]
    defined = defined_tests()
    assert len(rows) >= 3
    for row in rows:
        named = set(re.findall(r"`(test_\w+)`", row))
        assert named and named <= defined, (row, named - defined)


def test_every_row_of_the_threat_model_names_tests_that_exist() -> None:
    model = (ROOT / "docs" / "security.md").read_text().partition("## Threat model")[2].partition("\n## ")[0]
    rows = [line for line in model.splitlines() if line.startswith("| ") and not line.startswith("| who |")]
    defined = defined_tests()
    assert len(rows) >= 4
    for row in rows:
        named = set(re.findall(r"`(test_\w+)`", row))
        assert named and named <= defined, (row, named - defined)


def test_a_command_puts_its_counts_in_place_of_its_last_ones(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text((ROOT / "docs" / "guarantees.md").read_text())
    before = page.read_text()
    for result in ("1 seed", "2 seeds"):
        record("make nothing", result, page)
    [row] = [line for line in page.read_text().splitlines() if "make nothing" in line]
    assert "2 seeds" in row
    assert page.read_text().replace(row + "\n", "") == before


@pytest.mark.parametrize("name", ["protocol.md", "guarantees.md", "security.md"])
def test_the_files_that_the_page_names_exist(name: str) -> None:
    page = (ROOT / "docs" / name).read_text()
    for file in re.findall(r"`([\w/]+\.(?:py|md))`", page):
        assert (ROOT / file).exists() or list((ROOT / "tests").rglob(file)), file
