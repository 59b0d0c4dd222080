"""The commands and the code of every page: commands and flags exist, and each block can be read by its language."""

import ast
import re
import tomllib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
import typer
import yaml
from typer.core import TyperGroup

from chainette.cli.main import app
from tests.support.cli import REPOSITORY

PAGES = sorted(
    [*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/*.md"), *REPOSITORY.glob("examples/*/README.md")],
    key=lambda page: page.relative_to(REPOSITORY),
)

#: Text between fences, indented blocks, and spans of code.
_CODE = re.compile(r"^```.*?^```|^(?: {4}.*\n)+|`[^`\n]+`", re.DOTALL | re.MULTILINE)
_MAKE = re.compile(r"(?:^|`)make ([a-z][a-z-]*)((?: [A-Z]+=\S+)*)", re.MULTILINE)
_COMMAND = re.compile(r"(?<!from )(?<![\w./-])chainette ([a-z][a-z-]*)((?:[^\n`|;&#]|\\\n)*)")


def _commands(page: Path) -> Iterator[tuple[str, set[str]]]:
    """Each command of a page with its flags."""
    for code in _CODE.findall(page.read_text(encoding="utf-8")):
        for name, rest in _COMMAND.findall(code):
            yield name, set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", rest))


@cache
def _flags(name: str) -> set[str]:
    """The flags of a command; click names the nearest if there is none of that name."""
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    _, command, _ = group.resolve_command(typer.Context(group), [name])
    assert command is not None
    return {"--help"} | {flag for option in command.params for flag in (*option.opts, *option.secondary_opts)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_every_command_of_a_page_exists_with_its_flags(page: Path) -> None:
    for name, flags in _commands(page):
        assert flags <= _flags(name), f"chainette {name} {' '.join(flags - _flags(name))}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_every_block_of_code_can_be_read_by_its_language(page: Path) -> None:
    readers: dict[str, Callable[[str], object]] = {
        "python": ast.parse,
        "toml": tomllib.loads,
        "yaml": yaml.safe_load,
    }
    for language, text in re.findall(r"^```(\w+)[^\n]*\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE):
        if language in readers:
            readers[language](text)


def test_every_target_of_make_exists_with_its_variables() -> None:
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    code = "\n".join(found for page in PAGES for found in _CODE.findall(page.read_text(encoding="utf-8")))
    named = {target: re.findall(r"([A-Z]+)=", variables) for target, variables in _MAKE.findall(code)}
    assert named.keys() > {"check", "demo", "test"}
    for target, variables in named.items():
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"make {target}"
        assert all(f"$({name})" in makefile for name in variables), f"make {target} {variables}"
