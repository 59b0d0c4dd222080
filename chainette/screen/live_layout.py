"""The layout of the live view: which steps get a bar, which are summed up in a line, and the columns that fit the width."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from chainette.engine.price import Cost
from chainette.io.rundir.costs import plain_cost
from chainette.io.rundir.progress import EngineView, NodeView, Progress, TotalView
from chainette.screen.numbers import amount, clock, short
from chainette.utils.plurals import counted, counted_of
from chainette.utils.terminal_text import visible_line

__all__ = ["fitting", "total_line", "view_lines"]

#: Widths of the columns right of the bar: rows, rows/s, left, tok/s, rejected.
_WIDTHS = (13, 7, 6, 7, 9)
_HEADS = ("rows", "rows/s", "left", "tok/s", "rejected")
_SHORTEST_BAR = 8
_LONGEST_BAR = 40


def view_lines(progress: Progress, width: int, height: int) -> list[Text]:
    """The whole view, at most `height - 1` lines (6 at least), each narrower than `width` (40 at least)."""
    width = max(40, width - 1)
    nodes, engines, total = progress.nodes(), progress.engines(), progress.total()
    if not nodes:
        return [Text("starting")]
    tail = [*map(_engine_line, engines), total_line(total)][-max(1, height - 4) :]
    shown, folded = _fold(nodes, max(1, height - 2 - len(tail)))
    columns = _Columns(nodes, width)
    lines = [columns.head(), *map(columns.line, shown)]
    if folded:
        done = sum(node.done == node.total for node in folded)
        lines.append(Text(f"+{counted(len(folded), 'more step')}, {done} of them done", style="dim"))
    return fitting([*lines, *tail], width)


def fitting(lines: Sequence[Text], width: int) -> list[Text]:
    """Each text on a single line of that width."""
    return [_fitted(line, width) for line in lines]


def _fitted(line: Text, width: int) -> Text:
    if (plain := visible_line(line.plain)) != line.plain:
        line.plain = plain
    line.no_wrap = True
    line.truncate(width, overflow="ellipsis")
    return line


def _fold(nodes: Sequence[NodeView], room: int) -> tuple[list[NodeView], list[NodeView]]:
    """(shown, folded): if not all nodes fit, moving ones are shown first, then unfinished ones."""
    if len(nodes) <= room:
        return list(nodes), []
    by_interest = sorted(nodes, key=lambda node: (node.rate <= 0, node.done == node.total))
    chosen = {node.id for node in by_interest[: room - 1]}
    return [node for node in nodes if node.id in chosen], [node for node in nodes if node.id not in chosen]


class _Columns:
    """The widths of the columns."""

    def __init__(self, nodes: Sequence[NodeView], width: int) -> None:
        numbers = list(zip(_HEADS, _WIDTHS, strict=True))
        longest = max(2 * node.depth + len(node.id) for node in nodes)
        for optional in ("tok/s", "left", "rows/s"):  # dropped one by one on narrow terminals
            if width - sum(size + 1 for _, size in numbers) >= min(longest, 16) + 1 + _SHORTEST_BAR:
                break
            numbers = [(head, size) for head, size in numbers if head != optional]
        rest = width - sum(size + 1 for _, size in numbers) - 1
        self.label = max(8, min(longest, rest - _SHORTEST_BAR))
        self.bar = max(0, min(_LONGEST_BAR, rest - self.label))
        self.numbers = numbers

    def head(self) -> Text:
        cells = "".join(f" {head:>{size}}" for head, size in self.numbers)
        return Text(f"{'':{self.label}} {'':{self.bar}}{cells}", style="dim")

    def line(self, node: NodeView) -> Text:
        label = Text("  " * node.depth + visible_line(node.id))
        label.truncate(self.label, overflow="ellipsis", pad=True)
        line = Text.assemble(label, " ", _bar(node, self.bar))
        cells = _cells(node)
        for head, size in self.numbers:
            style = "bold red" if head == "rejected" and node.rejected else ""
            line.append(f" {cells[head]:>{size}}", style=style)
        return line


def _cells(node: NodeView) -> dict[str, str]:
    finished = node.done == node.total
    return {
        "rows": f"{short(node.done)}/{short(node.total)}" if node.total is not None else short(node.done),
        "rows/s": short(node.rate) if node.rate else "",
        "left": "done" if finished and node.done else clock(node.left) if node.left is not None else "",
        "tok/s": short(node.tokens) if node.tokens else "",
        "rejected": short(node.rejected) if node.rejected else "",
    }


def _bar(node: NodeView, width: int) -> Text:
    share = node.done / node.total if node.total else 0.0
    full = round(width * min(1.0, share))
    style = "green" if share >= 1 else "cyan"
    return Text.assemble(("━" * full, style), ("─" * (width - full), "dim"))


def _engine_line(engine: EngineView) -> Text:
    return Text(f"engine {engine.name}: {' '.join(engine.text.split())}", style="yellow" if engine.trouble else "dim")


def total_line(total: TotalView) -> Text:
    parts = [
        f"{counted_of(total.done, total.total, 'row')} done",
        f"{counted(total.arrived, 'answer')} on the way to the disk" if total.arrived else "",
        clock(total.elapsed) if total.elapsed is not None else "",
        f"{clock(total.left)} left" if total.left is not None and total.done != total.total else "",
        f"{short(total.tokens)} tok/s" if total.tokens else "",
        amount(plain_cost(total.cost)) if total.cost != Cost() else "",
    ]
    line = Text(" · ".join(part for part in parts if part), style="bold")
    if total.rejected:
        line.append(f" · {total.rejected:,} rejected", style="bold red")
    return line
