"""Draws the pictures of README.md from a real run: docs/live.svg, its screen half-way, and docs/report.png, its report.

The run asks the small model of `make demo` (examples/02_extraction) and takes about a minute. The report is looked at in
Chromium.
"""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright
from rich.console import Console
from rich.text import Text

from chainette.cli.launch import load_plan
from chainette.cli.screen.tree import draw
from chainette.core.run_settings import RunSettings
from chainette.io.rundir.event_types import Event
from chainette.run import executor
from chainette.screen.live_bars import Bars

ROOT = Path(__file__).parents[1]
EXAMPLE = Path("examples/02_extraction")
WIDTH = 92

#: Symbols that only a font for emoji has; without one, a browser draws boxes.
_EMOJI = re.compile("[\U0001f000-\U0001faff]\ufe0f? ?")

#: The part of the rows that is done when the screen is drawn.
SHARE = 0.5


class Snapshot(Bars):
    """Bars that are drawn once: as soon as so many rows are done."""

    def __init__(self, directory: Path, draw: Callable[[list[Text]], None]) -> None:
        super().__init__(directory)
        self._draw, self._drawn = draw, False

    def on_event(self, event: Event) -> None:
        super().on_event(event)
        total = self.progress.total()
        if not self._drawn and total.total and total.done >= SHARE * total.total:
            self._drawn = True
            self._draw(self.lines(WIDTH, 24))


def draw_run(directory: Path, target: Path) -> None:
    """Runs the example, and draws its screen half-way, as `chainette run` shows it."""
    loaded, plan = load_plan(str(EXAMPLE / "chain.py"), ROOT, None, RunSettings())

    def drawn(lines: list[Text]) -> None:
        console = Console(record=True, file=io.StringIO(), width=WIDTH, force_terminal=True, color_system="truecolor")
        console.print(Text.assemble(("$ ", "bold green"), f"chainette run {EXAMPLE}/chain.py {EXAMPLE}/inputs.jsonl -o out\n"))
        console.print(Text(_EMOJI.sub("", draw(plan))), "", *lines, sep="\n")
        svg = console.export_svg(title="chainette run")
        target.write_text(
            re.sub(r"\s*@font-face \{.*?\}", "", svg, flags=re.DOTALL), encoding="utf-8"
        )  # no other host is asked

    executor.run(
        plan,
        str(EXAMPLE / "inputs.jsonl"),
        directory,
        hooks=[Snapshot(directory, drawn)],
        chain_ref=loaded.reference,
        chain_root=str(ROOT),
        chain_claim=loaded.claim,
    )


def draw_report(directory: Path, target: Path) -> None:
    """The upper part of the report, as a browser shows it."""
    subprocess.run([sys.executable, "-m", "chainette", "report", str(directory)], check=True, cwd=ROOT)  # noqa: S603 - ours
    chromium = os.environ.get("CHROMIUM", "/usr/bin/chromium")
    with sync_playwright() as driver:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
        browser = driver.chromium.launch(executable_path=chromium, args=flags)
        page: Any = browser.new_page(viewport={"width": 1000, "height": 745})
        page.goto((directory / "report.html").as_uri())
        page.screenshot(path=str(target))
        browser.close()


def main() -> None:
    os.chdir(ROOT)
    with tempfile.TemporaryDirectory(prefix="chainette-") as folder:
        directory = Path(folder) / "out"
        draw_run(directory, ROOT / "docs/live.svg")
        draw_report(directory, ROOT / "docs/report.png")


if __name__ == "__main__":
    main()
