"""The plan of a run as a drawing: boxes, and arrows with numbers of rows. Only geometry, no markup."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from chainette.io.rundir.accounting import NodeCounts
from chainette.io.rundir.graph import (
    Edge,
    EdgeToBranchEnd,
    EdgeToEnd,
    GraphChoice,
    GraphFork,
    GraphJoin,
    GraphNode,
    GraphRounds,
    GraphSamples,
    GraphSide,
)
from chainette.io.rundir.run_state import RunState
from chainette.records import CHAIN_INPUT
from chainette.utils.plurals import counted

__all__ = ["Arrow", "Box", "Drawing", "Words", "draw"]

_WIDTH, _HEIGHT, _LINE = 168, 46, 16
_ACROSS, _DOWN, _LANE, _MARGIN = 28, 50, 26, 10
_PILL = 30


@dataclass(frozen=True)
class Box:
    """A node, or a point at which rows begin, merge or end."""

    #: "input", "step", "apply", "decision", "join", "end"
    kind: str
    x: float
    y: float
    width: float
    height: float
    title: str
    subtitle: str = ""
    #: (rejected | dropped | stopped | expanded | invalid, rows), without zeros.
    exits: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class Arrow:
    """The rows that went from one box to another."""

    path: str
    width: float
    rows: int
    #: The position of the number of rows; None if the arrow continues elsewhere.
    spot: tuple[float, float] | None


@dataclass(frozen=True)
class Words:
    """A branch's name."""

    text: str
    x: float
    y: float


@dataclass
class Drawing:
    """All parts in the order in which they are drawn, within (0, 0) and (width, height)."""

    width: float = 0
    height: float = 0
    boxes: list[Box] = field(default_factory=list)
    arrows: list[Arrow] = field(default_factory=list)
    words: list[Words] = field(default_factory=list)


@dataclass(frozen=True)
class _Tail:
    """The start of an arrow to the next element."""

    x: float
    y: float
    rows: int


def draw(state: RunState, lean: float) -> Drawing:
    """Draws the run's graph from top to bottom, with the rows that have gone through it so far.

    `lean` places the main flow: 0.5 in the middle, 0 at the left edge, which a narrow screen shows first.
    """
    return _Pen(state, lean).draw()


@dataclass(frozen=True)
class _Column:
    """The area in which a sequence may draw."""

    left: float
    width: float


class _Pen:
    def __init__(self, state: RunState, lean: float) -> None:
        self._state = state
        self._lean = lean
        self._graph = state.graph
        self._most = max([1, *(counts.taken for counts in state.nodes.values())])
        self._drawing = Drawing()

    def draw(self) -> Drawing:
        first = self._graph.first
        column = _Column(_MARGIN, max(self._width(first), _WIDTH))
        middle = self._middle(column)
        source = self._counts(CHAIN_INPUT)
        y = self._box(middle, _MARGIN, "input", CHAIN_INPUT, counted(source.taken, "record"), source)
        tails, y = self._sequence(first, column, y, [_Tail(middle, y, source.given)])
        for tail in tails:
            self._arrow(tail, middle, y + _DOWN, self._state.finished_rows)
        y = self._pill(middle, y + _DOWN, counted(self._state.finished_rows, "finished row"))
        self._drawing.width, self._drawing.height = column.width + 2 * _MARGIN, y + _MARGIN
        return self._drawing

    def _counts(self, name: str) -> NodeCounts:
        return self._state.nodes.get(name) or NodeCounts()

    def _middle(self, column: _Column) -> float:
        return column.left + (column.width - _WIDTH) * self._lean + _WIDTH / 2

    # -- widths

    def _width(self, target: Edge) -> float:
        widths = (_WIDTH if isinstance(found, GraphNode) else self._fork_width(found) for found in self._graph.line(target))
        return max(widths, default=0.0)

    def _fork_width(self, fork: GraphFork) -> float:
        if isinstance(fork, GraphSamples):
            return self._width(fork.joins[0].first)
        if isinstance(fork, GraphRounds):
            return self._width(fork.entry) + (0 if fork.joins else 2 * _LANE)
        widths = [self._lane_width(branch.first) for branch in fork.branches]
        return sum(widths) + _ACROSS * (len(widths) - 1) + (0 if fork.joins else 2 * _LANE)

    def _lane_width(self, first: Edge) -> float:
        """The width of a branch. An empty way of a route is wide enough for its name."""
        return _WIDTH / 2 if isinstance(first, EdgeToBranchEnd) else self._width(first)

    # -- positions

    def _sequence(self, target: Edge, column: _Column, y: float, tails: list[_Tail]) -> tuple[list[_Tail], float]:
        """Draws all elements from `target` on; returns the starts of the next arrows and the lowest y."""
        for found in self._graph.line(target):
            if isinstance(found, GraphNode):
                tails, y = self._node(found, self._middle(column), y, tails)
            else:
                tails, y = self._fork(found, column, y, tails)
        return tails, y

    def _node(self, node: GraphNode, middle: float, y: float, tails: list[_Tail]) -> tuple[list[_Tail], float]:
        counts = self._counts(node.id)
        for tail in tails:
            self._arrow(tail, middle, y + _DOWN, counts.taken)
        y = self._box(middle, y + _DOWN, node.kind, node.id, " then ".join(node.engines), counts)
        return [_Tail(middle, y, counts.given)], y

    def _fork(self, fork: GraphFork, column: _Column, y: float, tails: list[_Tail]) -> tuple[list[_Tail], float]:
        if isinstance(fork, GraphSamples):
            return self._sequence(fork.joins[0].first, column, y, tails)
        edge = column.left + (column.width - self._fork_width(fork)) * self._lean
        left, joined, before = edge + (0 if fork.joins else 2 * _LANE), list[_Tail](), tails
        if isinstance(fork, GraphChoice):
            tails, y = self._sequence(fork.entry, column, y, tails)
        lowest = y
        for branch in () if isinstance(fork, GraphRounds) else fork.branches:
            lane = _Column(left, self._lane_width(branch.first))
            name, came = self._way(fork, branch, tails) if isinstance(fork, GraphChoice) else (branch.branch, tails)
            self._drawing.words.append(Words(name, self._middle(lane) - 12, y + _DOWN + 4))
            ends, bottom = self._sequence(branch.first, lane, y + 18, came)
            if isinstance(branch, GraphJoin):
                joined += ends
            elif not isinstance(branch.first, EdgeToBranchEnd):
                bottom = self._written(ends, self._middle(lane), bottom)
            lowest, left = max(lowest, bottom), left + lane.width + _ACROSS
        if isinstance(fork, GraphRounds):
            joined = tails
        if fork.joins:
            return self._join(fork, self._middle(column), lowest, joined)
        if isinstance(fork.after, EdgeToEnd) and fork.last:
            return [], lowest
        return self._pass(before, edge + _LANE / 2, lowest), lowest

    def _way(self, route: GraphChoice, branch: GraphJoin | GraphSide, tails: list[_Tail]) -> tuple[str, list[_Tail]]:
        """The name of a way with its number of rows, and the starts of its arrows."""
        way = route.way(branch)
        rows = self._counts(route.decision).ways.get(way, 0)
        return f"{way or 'no case'}: {rows:,}", [replace(tail, rows=rows) for tail in tails]

    def _written(self, ends: list[_Tail], middle: float, bottom: float) -> float:
        """Draws the end of a branch that is not joined."""
        for end in ends:
            self._arrow(end, middle, bottom + _DOWN, end.rows)
        return self._pill(middle, bottom + _DOWN, f"{counted(sum(end.rows for end in ends), 'row')} written")

    def _join(self, fork: GraphFork, middle: float, y: float, joined: list[_Tail]) -> tuple[list[_Tail], float]:
        counts = self._counts(fork.id)
        for tail in joined:
            self._arrow(tail, middle, y + _DOWN, tail.rows, (tail.x + 8, tail.y + 16))
        names = ", ".join(fork.aliases)
        y = self._box(middle, y + _DOWN, "join", "join", names, counts)
        return [_Tail(middle, y, counts.given)], y

    def _pass(self, tails: list[_Tail], x: float, y: float) -> list[_Tail]:
        """Draws the main flow beside branches that are not joined."""
        for tail in tails:
            down = tail.y + _DOWN
            path = f"M{tail.x:g} {tail.y:g}C{tail.x:g} {down - 15:g} {x:g} {tail.y + 15:g} {x:g} {down:g}V{y:g}"
            self._drawing.arrows.append(Arrow(path, self._weight(tail.rows), tail.rows, None))
        return [_Tail(x, y, tail.rows) for tail in tails]

    # -- marks

    def _box(self, middle: float, y: float, kind: str, title: str, subtitle: str, counts: NodeCounts) -> float:
        amounts = {
            "rejected": counts.rejected,
            "dropped": counts.dropped,
            "stopped": counts.stopped,
            "expanded": counts.expanded,
            "invalid": counts.invalid,
        }
        exits = tuple((name, rows) for name, rows in amounts.items() if rows)
        height = _HEIGHT + _LINE * len(exits)
        self._drawing.boxes.append(Box(kind, middle - _WIDTH / 2, y, _WIDTH, height, title, subtitle, exits))
        return y + height

    def _pill(self, middle: float, y: float, title: str) -> float:
        self._drawing.boxes.append(Box("end", middle - _WIDTH / 2, y, _WIDTH, _PILL, title))
        return y + _PILL

    def _arrow(self, tail: _Tail, x: float, y: float, rows: int, spot: tuple[float, float] | None = None) -> None:
        """Draws an arrow; a long one goes straight down first. Its number is at its tip, or at `spot`."""
        start = max(tail.y, y - _DOWN)
        bend = 0.6 * (y - start)
        path = f"M{tail.x:g} {tail.y:g}V{start:g}C{tail.x:g} {start + bend:g} {x:g} {y - bend:g} {x:g} {y - 5:g}"
        beside = x + (24 if tail.x > x else 8)
        self._drawing.arrows.append(Arrow(path, self._weight(rows), rows, spot or (beside, y - 12)))

    def _weight(self, rows: int) -> float:
        return round(1.5 + 4.5 * float(rows / self._most) ** 0.5, 2) if rows else 1.0
