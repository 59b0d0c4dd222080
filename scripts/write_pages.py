"""Writes the pages of the site into build/pages: those of docs/ as a reader of the site needs them, `commands.md` from
the command line, `examples.md` from examples/, `llms.txt` and `llms-full.txt` from all of them. `make docs` runs it.

Source of the last two: https://llmstxt.org
"""

from __future__ import annotations

import html
import re
import shutil
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
import yaml

from chainette.cli.main import COMMANDS, app

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
EXAMPLES = ROOT / "examples"
PAGES = ROOT / "build" / "pages"
WIDTH = 100
#: Suffix of an example's files -> the language of their block.
LANGUAGES = {".py": "python", ".yml": "yaml"}


def commands_page() -> str:
    """Every command with its help, as a terminal shows it."""
    group: Any = typer.main.get_command(app)
    above = group.make_context("chainette", [], resilient_parsing=True)
    parts = ["# Commands\n\nThe help of every command, as a terminal shows it.\n", "\n".join(_json_table())]
    for name in COMMANDS:
        _, command, _ = group.resolve_command(above, [name])
        context = command.make_context(name, [], parent=above, resilient_parsing=True)
        context.terminal_width = context.max_content_width = WIDTH
        parts.append(f"## {name}\n\n```text\n{command.get_help(context).rstrip()}\n```\n")
    return "\n".join(parts)


def _json_table() -> Iterator[str]:
    """The objects of `--json`, by command."""
    yield "## For programs: --json\n"
    yield "Every command that shows something prints it with `--json` too, one JSON object per line:\n"
    yield "| command | objects |\n|---|---|"
    yield from (f"| [`{name}`](#{name}) | {command.objects} |" for name, command in COMMANDS.items() if command.objects)
    yield "\n`run`, `resume` and `enqueue` print the events of their run with `--json-logs`.\n"


def examples_page() -> str:
    """Every example: its README, and the files that declare the chain. Its heading is the name of its folder."""
    parts = ["# Examples\n\nThe chains of `examples/`, each with inputs in the repository.\n"]
    for folder in sorted(path for path in EXAMPLES.iterdir() if (path / "README.md").is_file()):
        title, _, text = (folder / "README.md").read_text(encoding="utf-8").partition("\n")
        parts.append(f"## {folder.name}\n\n**{title.removeprefix('# ')}**: {text.strip()}\n")
        files = sorted(path for path in folder.iterdir() if path.suffix in LANGUAGES)
        parts += (f"`{file.name}`\n\n```{LANGUAGES[file.suffix]}\n{file.read_text('utf-8').rstrip()}\n```\n" for file in files)
    return "\n".join(parts)


def pages(nav: list[Any]) -> Iterator[str]:
    """The files of a navigation, in its order."""
    for entry in nav:
        inside = entry if isinstance(entry, str) else next(iter(entry.values()))
        yield from [inside] if isinstance(inside, str) else pages(inside)


def index(texts: dict[str, str], summary: str) -> str:
    """A line for each page: its title and first sentence."""
    lines = [f"# Chainette\n\n> {summary}\n\n## Pages\n"]
    for name, page in texts.items():
        title, _, text = page.partition("\n")
        text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
        paragraphs = [part.strip() for part in text.split("\n\n") if part.strip() and part.strip()[0] not in "|#<!:-"]
        first = " ".join((paragraphs or [""])[0].split()).partition(". ")[0].rstrip(".:")
        lines.append(f"- [{title.removeprefix('# ')}]({name}): {textwrap.shorten(first, 200, placeholder='...')}")
    return "\n".join(lines) + "\n"


def linked(text: str) -> str:
    """File names of pages as links to them, called by their titles."""

    def link(match: re.Match[str]) -> str:
        name, anchor = match.groups()
        title, _, _ = (DOCS / name).read_text(encoding="utf-8").removeprefix("# ").partition("\n")
        return f"[{title.partition(':')[0]}]({name}{anchor})"

    return re.sub(r"`docs/(\w+\.md)(#[\w-]+)?`", link, text)


def without_tests(text: str) -> str:
    """A page without the names of tests in headings and in the last column of tables: only the repository has the tests."""

    def narrowed(table: re.Match[str]) -> str:
        return re.sub(r"(?<!\\)\|[^|\n]*\|$", "|", table[0], flags=re.MULTILINE)

    text = re.sub(r"^(#+ .*?) \((?:`[\w/]*test_\w+\.py`(?:, )?)+\)$", r"\1", text, flags=re.MULTILINE)
    return re.sub(r"^\|.*\| test \|\n(?:\|.*\n)+", narrowed, text, flags=re.MULTILINE)


def with_bars(text: str) -> str:
    """Code in tables as HTML if it has an escaped bar, whose backslash the site would show."""

    def code(span: re.Match[str]) -> str:
        return "<code>" + html.escape(span[1]).replace("\\|", "&#124;") + "</code>"

    return re.sub(r"^\|.*$", lambda row: re.sub(r"`([^`]*\\\|[^`]*)`", code, row[0]), text, flags=re.MULTILINE)


def main() -> None:
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    shutil.rmtree(PAGES, ignore_errors=True)
    shutil.copytree(DOCS, PAGES)
    written = {page.name: page.read_text(encoding="utf-8") for page in DOCS.glob("*.md")}
    written |= {"commands.md": commands_page(), "examples.md": examples_page()}
    names = list(pages(site["nav"]))
    if missing := sorted(written.keys() - set(names)):
        sys.exit(f"mkdocs.yml: nav lacks {', '.join(missing)}")
    texts = {name: without_tests(linked(written[name])) for name in names}
    for name, text in texts.items():
        (PAGES / name).write_text(with_bars(text), encoding="utf-8")
    (PAGES / "llms.txt").write_text(index(texts, site["site_description"]), encoding="utf-8")
    full = re.sub(r"^<!--.*?-->\n+", "", "\n\n".join(texts.values()), flags=re.DOTALL | re.MULTILINE)
    (PAGES / "llms-full.txt").write_text(full, encoding="utf-8")


if __name__ == "__main__":
    main()
