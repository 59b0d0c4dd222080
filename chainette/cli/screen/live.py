"""The live view of a run in a terminal: the plan, then bars that move in place, then the result."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Self

from rich.console import Console
from rich.text import Text

from chainette.cli.printing import show_path
from chainette.cli.screen.plain import Reporter
from chainette.cli.screen.summary import summary_lines
from chainette.cli.screen.tables import counts_table
from chainette.io.rundir.result import RunResult
from chainette.screen.live_bars import TerminalBars
from chainette.utils.terminal_text import visible

__all__ = ["LiveView"]


class LiveView(TerminalBars, Reporter):
    """Bars for a terminal; `head` is printed once, above them."""

    def __init__(
        self, directory: os.PathLike[str], console: Console, head: str = "", clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(directory, console, clock)
        self._head = head

    def __enter__(self) -> Self:
        if self._head:
            self._console.print(Text(visible(self._head)), no_wrap=True, overflow="ellipsis", crop=True)
            self._console.print()
        return super().__enter__()

    def end(self, result: RunResult) -> None:
        metadata = result.metadata
        self._console.print(counts_table(metadata))
        self._console.print()
        for line in summary_lines(metadata, show_path(result.dir)):
            self._console.print(Text(visible(line), style=_line_style(line)), soft_wrap=True)


def _line_style(line: str) -> str:
    name = line.partition(":")[0]
    if name == "accounting":
        return "bold red" if "NOT" in line else "green"
    return {"rejected rows": "red", "directory": "bold"}.get(name, "")
