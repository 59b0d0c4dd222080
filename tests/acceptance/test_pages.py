"""Every page of the documentation, followed block by block (`tests/support/pages.py`)."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from tests.support.cli import REPOSITORY
from tests.support.models import needs_model
from tests.support.pages import REASONS, blocks, follow

PAGES = sorted(
    str(page.relative_to(REPOSITORY))
    for pattern in ("*.md", "docs/*.md", "examples/*/README.md")
    for page in REPOSITORY.glob(pattern)
)

#: Pages that need a fleet, or more than two seconds.
LONG = {
    "README.md",
    "docs/accept.md",
    "docs/agents.md",
    "docs/cost.md",
    "docs/fleet.md",
    "docs/index.md",
    "docs/metrics.md",
    "docs/operations.md",
    "docs/parameters.md",
    "docs/plugins.md",
    "docs/results.md",
    "docs/reuse.md",
    "docs/security.md",
    "docs/tutorial.md",
    "examples/07_one_device/README.md",
}

#: Pages that ask the small model, which takes ten seconds of a processor or more.
REAL = {"docs/engines.md"} | {
    f"examples/{name}/README.md" for name in ("01_sentiment", "02_extraction", "06_two_models", "15_accept")
}


def marks(page: str) -> list[pytest.MarkDecorator]:
    return [pytest.mark.long] * (page in LONG | REAL) + [needs_model] * (page in REAL)


@pytest.mark.parametrize("page", [pytest.param(page, marks=marks(page)) for page in PAGES])
def test_every_block_of_a_page_does_what_the_page_says(page: str, tmp_path: Path) -> None:
    if page.startswith("examples/"):  # whose readers stand in the checkout
        shutil.copytree((REPOSITORY / page).parent, (tmp_path / page).parent)
    follow(REPOSITORY / page, tmp_path)


def test_every_test_that_a_page_names_exists() -> None:
    modules = [*(REPOSITORY / "tests").rglob("test_*.py")]
    there = {module.stem for module in modules}
    there |= {name for module in modules for name in re.findall(r"def (test_\w+)", module.read_text(encoding="utf-8"))}
    for page in PAGES:
        text = (REPOSITORY / page).read_text(encoding="utf-8")
        named = set(re.findall(r"\btest_\w+", text)) - {"test_parrot", *re.findall(r"def (test_\w+)", text)}
        assert named <= there, f"{page}: {named - there}"


def test_a_block_that_is_not_run_has_a_reason() -> None:
    for page in PAGES:
        for block in blocks(REPOSITORY / page):
            assert block.reason in REASONS | {""}, f"{page}:{block.line}: {block.reason}"


def page_of(folder: Path, text: str) -> Path:
    page = folder / "page.md"
    page.write_text(text, encoding="utf-8")
    return page


def test_a_screen_that_differs_fails(tmp_path: Path) -> None:
    page = '```json title="a.json"\n{"a": 1}\n```\n\n```console\n$ cat a.json\n{...}\n```\n'
    assert follow(page_of(tmp_path, page), tmp_path) == 1
    with pytest.raises(AssertionError, match=r"page.md: \$ cat a.json"):
        follow(page_of(tmp_path, page.replace("{...}", "[...]")), tmp_path)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("```yaml\na: 1\n```\n", "page.md:1: this block is neither run nor marked"),
        ("Text:\n\n    $ ls\n", "page.md:3: code must stand between"),
        ("- A list:\n\n  ```sh\n  ls\n  ```\n", "page.md:3: code must stand between"),
        ("```console\n$ ls\n", "page.md:1: this block has no end"),
        ("<!-- not run: no time -->\n```yaml\na: 1\n```\n", "page.md:2: this block is neither run nor marked"),
    ],
)
def test_a_block_that_nobody_follows_is_found(tmp_path: Path, text: str, fault: str) -> None:
    with pytest.raises(ValueError, match=re.escape(fault)):
        follow(page_of(tmp_path, text), tmp_path)


def test_a_file_that_nothing_uses_is_found(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"nothing uses engines\.yml"):
        follow(page_of(tmp_path, '```yaml title="engines.yml"\na: 1\n```\n'), tmp_path)


def test_code_runs_with_what_stands_before_it_and_fails_its_page(tmp_path: Path) -> None:
    page = "<!-- hidden\n```python\na = 1\n```\n-->\n\n```python\nassert a == 1\n```\n"
    follow(page_of(tmp_path, page), tmp_path)
    with pytest.raises(AssertionError, match=r"assert a == 2"):
        follow(page_of(tmp_path, page.replace("a == 1", "a == 2")), tmp_path)


@pytest.mark.long
def test_a_service_runs_until_its_page_ends_and_tells_others_its_address(tmp_path: Path) -> None:
    page = (
        "```console\n$ chainette valkey\nexport CHAINETTE_REDIS_URL=redis://...\n$ export CHAINETTE_REDIS_URL=redis://here\n"
        "$ chainette runs\n...no live runs...\n```\n"
    )
    assert follow(page_of(tmp_path, page), tmp_path) == 3
