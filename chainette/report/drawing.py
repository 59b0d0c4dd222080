"""The plan of a run as a drawing: boxes, arrows and the rows that went along them. Pure geometry, no markup."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from chainette.io.rundir.replay import NodeCounts, RunState
from chainette.records import CHAIN_INPUT

__all__ = ["Arrow", "Box", "Drawing", "Words", "draw"]

_WIDTH, _HEIGHT, _LINE = 168, 46, 16
_ACROSS, _DOWN, _LANE, _MARGIN = 28, 50, 26, 10
_PILL = 30


@dataclass(frozen=True)
class Box:
    """A node, or where rows begin, merge and end."""

    #: "input", "step", "apply", "join", "end"
    kind: str
    x: float
    y: float
    width: float
    height: float
    title: str
    subtitle: str = ""
    #: (rejected | dropped | stopped | expanded, rows), only where there are any.
    exits: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class Arrow:
    """Rows on their way."""

    path: str
    width: float
    rows: int
    #: Where the number of rows stands; None for the part of a way that goes on.
    spot: tuple[float, float] | None


@dataclass(frozen=True)
class Words:
    """A branch's name."""

    text: str
    x: float
    y: float


@dataclass
class Drawing:
    """Everything, in the order in which it is drawn, within (0, 0) and (width, height)."""

    width: float = 0
    height: float = 0
    boxes: list[Box] = field(default_factory=list)
    arrows: list[Arrow] = field(default_factory=list)
    words: list[Words] = field(default_factory=list)


@dataclass(frozen=True)
class _Tail:
    """Where arrows to what comes next start."""

    x: float
    y: float
    rows: int


def draw(state: RunState, lean: float) -> Drawing:
    """The run's graph, top to bottom, with what went through it so far.

    `lean` says where the main flow stands: 0.5 in the middle, 0 at the left edge, which a narrow screen shows first.
    """
    return _Pen(state, lean).draw()


@dataclass(frozen=True)
class _Column:
    """Where a sequence may draw."""

    left: float
    width: float


class _Pen:
    def __init__(self, state: RunState, lean: float) -> None:
        self._state = state
        self._lean = lean
        self._nodes: dict[str, dict[str, Any]] = {node["id"]: node for node in state.graph["nodes"]}
        self._forks: dict[str, dict[str, Any]] = {fork["id"]: fork for fork in state.graph["forks"]}
        self._most = max([1, *(counts.taken for counts in state.nodes.values())])
        self._drawing = Drawing()

    def draw(self) -> Drawing:
        first = self._state.graph["first"]
        column = _Column(_MARGIN, max(self._width(first), _WIDTH))
        middle = self._middle(column)
        source = self._counts(CHAIN_INPUT)
        y = self._box(middle, _MARGIN, "input", CHAIN_INPUT, f"{source.taken:,} records", source)
        tails, y = self._sequence(first, column, y, [_Tail(middle, y, source.given)])
        for tail in tails:
            self._arrow(tail, middle, y + _DOWN, self._state.finished_rows)
        y = self._pill(middle, y + _DOWN, f"{self._state.finished_rows:,} finished rows")
        self._drawing.width, self._drawing.height = column.width + 2 * _MARGIN, y + _MARGIN
        return self._drawing

    def _counts(self, name: str) -> NodeCounts:
        return self._state.nodes.get(name) or NodeCounts()

    def _middle(self, column: _Column) -> float:
        return column.left + (column.width - _WIDTH) * self._lean + _WIDTH / 2

    # -- how wide

    def _width(self, target: Mapping[str, Any]) -> float:
        match target["to"]:
            case "ToNode":
                return max(_WIDTH, self._width(self._nodes[target["node"]]["next"]))
            case "ToFork":
                fork = self._forks[target["fork"]]
                return max(self._fork_width(fork), self._width(fork["after"]))
            case _:
                return 0

    def _fork_width(self, fork: Mapping[str, Any]) -> float:
        widths = [self._width(branch["first"]) for branch in self._branches(fork)]
        return sum(widths) + _ACROSS * (len(widths) - 1) + (0 if fork["joins"] else 2 * _LANE)

    def _branches(self, fork: Mapping[str, Any]) -> list[dict[str, Any]]:
        """In the order in which they were declared."""
        place = {node: index for index, node in enumerate(self._nodes)}
        return sorted([*fork["joins"], *fork["sides"]], key=lambda branch: place[self._head(branch["first"])])

    def _head(self, target: Mapping[str, Any]) -> str:
        while target["to"] == "ToFork":
            fork = self._forks[target["fork"]]
            target = [*fork["joins"], *fork["sides"]][0]["first"]
        return str(target["node"])

    # -- where

    def _sequence(self, target: Mapping[str, Any], column: _Column, y: float, tails: list[_Tail]) -> tuple[list[_Tail], float]:
        """Draws everything from `target` on; returns where what follows is tied to, and how far down it came."""
        while True:
            match target["to"]:
                case "ToNode":
                    node = self._nodes[target["node"]]
                    tails, y = self._node(node, self._middle(column), y, tails)
                    target = node["next"]
                case "ToFork":
                    fork = self._forks[target["fork"]]
                    tails, y = self._fork(fork, column, y, tails)
                    target = fork["after"]
                case _:
                    return tails, y

    def _node(self, node: Mapping[str, Any], middle: float, y: float, tails: list[_Tail]) -> tuple[list[_Tail], float]:
        counts = self._counts(node["id"])
        for tail in tails:
            self._arrow(tail, middle, y + _DOWN, counts.taken)
        y = self._box(middle, y + _DOWN, node["kind"], node["id"], node["engine"], counts)
        return [_Tail(middle, y, counts.given)], y

    def _fork(self, fork: Mapping[str, Any], column: _Column, y: float, tails: list[_Tail]) -> tuple[list[_Tail], float]:
        edge = column.left + (column.width - self._fork_width(fork)) * self._lean
        left, joined, lowest = edge + (0 if fork["joins"] else 2 * _LANE), [], y
        for branch in self._branches(fork):
            lane = _Column(left, self._width(branch["first"]))
            self._drawing.words.append(Words(branch["branch"], self._middle(lane) - 12, y + _DOWN + 4))
            ends, bottom = self._sequence(branch["first"], lane, y + 18, tails)
            if branch["to"] == "Join":
                joined += ends
            else:
                bottom = self._written(ends, self._middle(lane), bottom)
            lowest, left = max(lowest, bottom), left + lane.width + _ACROSS
        if fork["joins"]:
            return self._join(fork, self._middle(column), lowest, joined)
        if fork["after"]["to"] == "End" and fork["last"]:
            return [], lowest
        return self._pass(tails, edge + _LANE / 2, lowest), lowest

    def _written(self, ends: list[_Tail], middle: float, bottom: float) -> float:
        """The end of a branch that is not joined."""
        for end in ends:
            self._arrow(end, middle, bottom + _DOWN, end.rows)
        return self._pill(middle, bottom + _DOWN, f"{sum(end.rows for end in ends):,} rows written")

    def _join(self, fork: Mapping[str, Any], middle: float, y: float, joined: list[_Tail]) -> tuple[list[_Tail], float]:
        counts = self._counts(fork["id"])
        for tail in joined:
            self._arrow(tail, middle, y + _DOWN, tail.rows, (tail.x + 8, tail.y + 16))
        names = ", ".join(join["alias"] for join in fork["joins"])
        y = self._box(middle, y + _DOWN, "join", "join", names, counts)
        return [_Tail(middle, y, counts.given)], y

    def _pass(self, tails: list[_Tail], x: float, y: float) -> list[_Tail]:
        """The main flow beside branches that are not joined."""
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
        }
        exits = tuple((name, rows) for name, rows in amounts.items() if rows)
        height = _HEIGHT + _LINE * len(exits)
        self._drawing.boxes.append(Box(kind, middle - _WIDTH / 2, y, _WIDTH, height, title, subtitle, exits))
        return y + height

    def _pill(self, middle: float, y: float, title: str) -> float:
        self._drawing.boxes.append(Box("end", middle - _WIDTH / 2, y, _WIDTH, _PILL, title))
        return y + _PILL

    def _arrow(self, tail: _Tail, x: float, y: float, rows: int, spot: tuple[float, float] | None = None) -> None:
        """An arrow that goes down first where it is long; its number stands at its tip, or at `spot`."""
        start = max(tail.y, y - _DOWN)
        bend = 0.6 * (y - start)
        path = f"M{tail.x:g} {tail.y:g}V{start:g}C{tail.x:g} {start + bend:g} {x:g} {y - bend:g} {x:g} {y - 5:g}"
        beside = x + (24 if tail.x > x else 8)
        self._drawing.arrows.append(Arrow(path, self._weight(rows), rows, spot or (beside, y - 12)))

    def _weight(self, rows: int) -> float:
        return round(1.5 + 4.5 * float(rows / self._most) ** 0.5, 2) if rows else 1.0
