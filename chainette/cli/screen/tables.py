"""Tables for people, which rich prints. A run that is not watched on a terminal imports this at its end, if at all."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.style import Style
from rich.table import Table
from rich.text import Text

from chainette.cli.screen.summary import row_name
from chainette.utils.terminal_text import visible

__all__ = ["console", "counts_table", "new_table"]

#: The width of a table that is not printed to a terminal.
_FILE_WIDTH = 200

_COLUMNS = ("in", "out", "rejected", "dropped", "stopped", "expanded")


class _SafeConsole(Console):
    """Escapes control characters, and leaves a closed pipe to `guarded` instead of ending the process."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError

    def render_str(self, text: str, *, style: str | Style = "", **options: Any) -> Text:
        return super().render_str(visible(text), style=style, **options)  # before it is measured

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)


def console(*, stderr: bool = False) -> Console:
    """A rich console that prints text as it is: no markup, no highlighting, no emoji codes."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else _FILE_WIDTH
    return _SafeConsole(stderr=stderr, width=width, highlight=False, markup=False, emoji=False)


def new_table(columns: Sequence[str], *, numbers: Iterable[str] = (), cut: Iterable[str] = ()) -> Table:
    """An empty table without a frame. `numbers` are right-aligned; `cut` and `numbers` end in an ellipsis if too long."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
    numbers, cut = {*numbers}, {*cut}
    for column in columns:
        table.add_column(
            column,
            justify="right" if column in numbers else "left",
            no_wrap=column in cut or column in numbers,
            overflow="ellipsis" if column in cut or column in numbers else "fold",
        )
    return table


def counts_table(metadata: Mapping[str, Any]) -> Table:
    """Rows per step, as the accounting counts them."""
    table = new_table(("step", *_COLUMNS, "tokens"), numbers=(*_COLUMNS, "tokens"))
    for step, counts in metadata["steps"].items():
        cells = [f"{counts[column]:,}" if counts[column] or column in ("in", "out") else "-" for column in _COLUMNS]
        tokens = counts.get("usage", {}).get("completion_tokens", 0)
        table.add_row(row_name(step), *cells, f"{tokens:,}" if tokens else "-")
    return table
