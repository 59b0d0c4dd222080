"""The project's habits: hooks, workflows, templates and releases agree with the Makefile and pyproject.toml."""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from scripts.release_notes import notes
from tests.support.cli import REPOSITORY

MAKEFILE = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
WORKFLOWS = sorted((REPOSITORY / ".github/workflows").glob("*.yml"))


def loaded(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return found


def recipe(target: str) -> list[str]:
    found = re.search(rf"^{target}:.*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE)
    assert found is not None, target
    return [line.strip().replace("$(BIN)", ".venv/bin") for line in found[1].splitlines()]


def test_the_hooks_of_a_commit_are_the_programs_of_make_lint() -> None:
    [local] = loaded(REPOSITORY / ".pre-commit-config.yaml")["repos"]
    hooks = [hook["entry"] for hook in local["hooks"]]
    assert hooks == [line.removesuffix(" --check") for line in recipe("lint")]


def test_ci_runs_every_python_that_the_package_is_classified_for() -> None:
    pythons = loaded(REPOSITORY / ".github/workflows/ci.yml")["jobs"]["quick"]["strategy"]["matrix"]["python"]
    assert pythons == [name.rpartition(" ")[2] for name in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", name)]
    assert PROJECT["requires-python"] == f">={pythons[0]}"


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_calls_targets_and_files_that_are_there(path: Path) -> None:
    commands = [step["run"] for job in loaded(path)["jobs"].values() for step in job["steps"] if "run" in step]
    assert commands
    for command in commands:
        for target in re.findall(r"\bmake ([a-z-]+)", command):
            assert recipe(target)
        for file in re.findall(r"\b(scripts/\w+\.py|\.ci/run)", command):
            assert (REPOSITORY / file).is_file()


def test_a_form_for_issues_has_what_github_needs() -> None:
    forms = [path for path in (REPOSITORY / ".github/ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml"]
    assert len(forms) == 2
    for form in map(loaded, forms):
        assert form["name"] and form["description"]
        assert len({part["id"] for part in form["body"]}) == len(form["body"])
        assert all(part["type"] in ("textarea", "input") and part["attributes"]["label"] for part in form["body"])


CHANGELOG = """# Changelog

## Unreleased

- later

## 0.2.0 - 2026-12-01

### Added

- this

## 0.1.0 - 2026-11-30

- that
"""


def test_the_notes_of_a_release_are_its_section_alone() -> None:
    assert notes("v0.2.0", CHANGELOG, "0.2.0") == "### Added\n\n- this\n"


@pytest.mark.parametrize(
    ("tag", "version", "words"),
    [
        ("v0.2.0", "0.2.1", "the tag is v0.2.0, and pyproject.toml has version 0.2.1"),
        ("v0.3.0", "0.3.0", "no section `## 0.3.0 - YYYY-MM-DD` with a text; it has Unreleased, 0.2.0"),
    ],
)
def test_a_tag_without_a_section_or_of_another_version_is_not_released(tag: str, version: str, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        notes(tag, CHANGELOG, version)


def test_no_two_classes_share_a_name() -> None:
    modules = [*(REPOSITORY / "chainette").rglob("*.py"), *(REPOSITORY / "workers").rglob("*.py")]
    names = [
        name for path in modules for name in re.findall(r"^class ([A-Z]\w*)", path.read_text(encoding="utf-8"), re.MULTILINE)
    ]
    assert len(names) > 400
    assert [name for name, times in Counter(names).items() if times > 1] == []
