"""Writes the pages of docs/ that follow from others: `commands.md` from the command line, `examples.md` from examples/,
`llms.txt` and `llms-full.txt` from the pages. `make docs` runs it; nothing it writes is committed.

Source of the last two: https://llmstxt.org
"""

from __future__ import annotations

import re
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


def index(names: list[str], summary: str) -> str:
    """A line for each page: its title and first sentence."""
    lines = [f"# Chainette\n\n> {summary}\n\n## Pages\n"]
    for name in names:
        title, _, text = (DOCS / name).read_text(encoding="utf-8").partition("\n")
        text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
        paragraphs = [part.strip() for part in text.split("\n\n") if part.strip() and part.strip()[0] not in "|#<!:-"]
        first = " ".join((paragraphs or [""])[0].split()).partition(". ")[0].rstrip(".:")
        lines.append(f"- [{title.removeprefix('# ')}]({name}): {textwrap.shorten(first, 200, placeholder='...')}")
    return "\n".join(lines) + "\n"


def main() -> None:
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    (DOCS / "commands.md").write_text(commands_page(), encoding="utf-8")
    (DOCS / "examples.md").write_text(examples_page(), encoding="utf-8")
    names = list(pages(site["nav"]))
    if missing := sorted({page.name for page in DOCS.glob("*.md")} - set(names)):
        sys.exit(f"mkdocs.yml: nav lacks {', '.join(missing)}")
    (DOCS / "llms.txt").write_text(index(names, site["site_description"]), encoding="utf-8")
    full = "\n\n".join((DOCS / name).read_text(encoding="utf-8") for name in names)
    (DOCS / "llms-full.txt").write_text(re.sub(r"^<!--.*?-->\n+", "", full, flags=re.DOTALL | re.MULTILINE), encoding="utf-8")


if __name__ == "__main__":
    main()
