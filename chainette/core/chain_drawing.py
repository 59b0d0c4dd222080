"""A plan as text for people: an ASCII tree, a Unicode tree with icons, a Mermaid flowchart.

Pure functions. The text has every node, branch and join of the plan; if `max_branches` folds some away, it says how
many. All trees are drawn from one shape, so they always agree.
"""

from __future__ import annotations

import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from chainette.core.apply import Cardinality
from chainette.core.batch_apply import BatchApply
from chainette.core.forks import Choice, Fork, Join, Rounds, Samples, Side
from chainette.core.plan import Plan
from chainette.core.plan_node import NodeKind, PlanNode
from chainette.core.targets import End, Target, ToBranchEnd, ToFork, ToNode, ToWays
from chainette.records import CHAIN_INPUT
from chainette.utils.plurals import counted

__all__ = [
    "describe_engines",
    "describe_folder",
    "describe_models",
    "describe_rows",
    "render_ascii",
    "render_mermaid",
    "render_unicode",
]


class _Kind(Enum):
    """The kind of a tree's line, and its icon."""

    INPUT = "📄"
    STEP = "🤖"
    APPLY = "🐍"
    FORK = "🔀"
    JOIN = "🪢"
    SIDE = "🌿"
    ROUTE = "🔱"
    WAY = "👉"
    LOOP = "🔁"
    MORE = "…"


@dataclass(frozen=True)
class _Line:
    kind: _Kind
    text: str
    #: The user's own icon.
    emoji: str = ""
    below: tuple[_Line, ...] = ()


@dataclass(frozen=True)
class _Glyphs:
    """The characters of a tree: before a line, before the last line, and before the children of each."""

    tee: str
    elbow: str
    bar: str
    gap: str
    arrow: str
    icons: bool


_ASCII = _Glyphs("+-- ", "`-- ", "|   ", "    ", "->", icons=False)
_UNICODE = _Glyphs("├─ ", "└─ ", "│  ", "   ", "→", icons=True)


def render_ascii(plan: Plan, max_branches: int | None = None) -> str:
    """The plan as a tree of plain ASCII, top to bottom in the order of the rows."""
    return _draw(_tree(plan, max_branches), _ASCII)


def render_unicode(plan: Plan, max_branches: int | None = None) -> str:
    """The same tree with box characters and icons; a node's own emoji wins."""
    return _draw(_tree(plan, max_branches), _UNICODE)


# -- lines


def describe_models(node: PlanNode) -> tuple[str, str]:
    """The models of a node as people write them: ("Document", "list[Chunk]")."""
    if node.picker is not None:
        model = _type_name(node.picker.step.output_model)
        given = f"list[{model}]" if node.passes else model
        return f"list[{model}]", f"{given} | None" if node.cardinality is Cardinality.OPTIONAL else given
    given = _type_name(node.output_model)
    match node.cardinality:
        case Cardinality.ONE:
            return _type_name(node.input_type), given
        case Cardinality.OPTIONAL:
            return _type_name(node.input_type), f"{given} | None"
        case Cardinality.MANY:
            return _type_name(node.input_type), f"list[{given}]"


def describe_engines(node: PlanNode) -> str:
    """The engine of the node, and those that are asked after it."""
    return " then ".join(node.engines)


def describe_rows(node: PlanNode) -> str:
    """How the node takes rows and changes their number; "" if it gives one row for each."""
    notes = ["in batches"] if isinstance(node.node, BatchApply) else []
    notes += [f"{node.samples} candidates a row"] if node.samples > 1 else []
    notes += [node.picker.said] if node.picker is not None else []
    match node.cardinality:
        case Cardinality.ONE:
            changes = []
        case Cardinality.OPTIONAL:
            changes = ["may drop rows"]
        case Cardinality.MANY:
            changes = ["expands rows"]
    return ", ".join([*notes, *changes])


def describe_folder(node: PlanNode) -> str:
    """Whether the node's rows are kept out of the outputs; "" if they are written."""
    return "not written" if node.hidden and not node.passes else ""


def _type_name(kind: Any) -> str:
    if kind is None or kind is Any:
        return "?"
    if typing.get_origin(kind) is not None:
        return str(kind).replace(f"{__name__}.", "")
    return str(getattr(kind, "__name__", kind))


def _node_text(node: PlanNode, arrow: str = "->") -> str:
    taken, given = describe_models(node)
    notes = [describe_rows(node), describe_folder(node)]
    extra = "".join(f", {note}" for note in notes if note)
    label = node.id if node.node.name == node.node.id else f"{node.id} ({node.node.name})"
    return f"{label}  {taken} {arrow} {given}  [{describe_engines(node)}{extra}]"


def _branch_text(branch: Join | Side) -> str:
    if isinstance(branch, Side):
        return f"{branch.branch}  not joined"
    return f"{branch.branch}  joined as {{{{ {branch.alias} }}}}{', a list' if branch.many else ''}"


# -- the shape


def _stages(plan: Plan, target: Target) -> Iterator[PlanNode | Fork]:
    """The stages from `target` to the end of the main flow or of the branch."""
    while True:
        match target:
            case ToNode():
                node = plan.nodes[target.node]
                target = node.next
                yield node
            case ToFork():
                fork = plan.forks[target.fork]
                target = fork.after
                yield fork
            case ToBranchEnd() | ToWays() | End():
                return


def _route_text(route: Choice) -> str:
    if isinstance(route, Rounds):
        ends = [*route.joins, *route.sides]
        alias = f"joined as {{{{ {route.alias} }}}}" if route.joins else "not joined"
        return f"loop {route.decision}, {counted(len(ends), 'round')} at most, {alias}"
    alias = next((f", joined as {{{{ {join.alias} }}}}" for join in route.joins), ", not joined")
    return f"route {route.decision}{alias}{', a list' if route.many else ''}"


def _way_text(branch: Join | Side) -> str:
    way = branch.branch.partition(":")[2] or "no case"
    return way if isinstance(branch.first, ToNode | ToFork) else f"{way}: goes on as it is"


def _branches(plan: Plan, fork: Fork, most: int | None) -> tuple[list[Join | Side], list[Join | Side]]:
    """(shown, folded) branches in the order in which they were declared."""
    if isinstance(fork, Choice):
        ways: list[Join | Side] = [*fork.joins, *fork.sides]
        return (ways, []) if most is None else (ways[: max(most, 0)], ways[max(most, 0) :])
    place = {node: index for index, node in enumerate(plan.nodes)}

    def position(branch: Join | Side) -> int:
        first = next(_nodes_below(plan, branch.first))
        return place[first.id]

    every: list[Join | Side] = sorted([*fork.joins, *fork.sides], key=position)
    shown = len(every) if most is None else max(most, 0)
    return every[:shown], every[shown:]


def _nodes_below(plan: Plan, target: Target) -> Iterator[PlanNode]:
    for stage in _stages(plan, target):
        if isinstance(stage, PlanNode):
            yield stage
        else:
            for start in (*stage.joined_starts, *stage.side_starts):
                yield from _nodes_below(plan, start)


def _tree(plan: Plan, most: int | None) -> _Line:
    below = tuple(_lines(plan, plan.first, most))
    return _Line(_Kind.INPUT, f"{plan.chain}  {_type_name(plan.input_model)}", plan.emoji, below)


def _lines(plan: Plan, target: Target, most: int | None) -> Iterator[_Line]:
    for stage in _stages(plan, target):
        if isinstance(stage, Samples):
            yield from _lines(plan, stage.joins[0].first, most)
        elif isinstance(stage, Fork):
            yield _fork_line(plan, stage, most)
        else:
            kind = _Kind.STEP if stage.kind is NodeKind.STEP else _Kind.APPLY
            yield _Line(kind, _node_text(stage), stage.node.emoji)


def _fork_line(plan: Plan, fork: Fork, most: int | None) -> _Line:
    if isinstance(fork, Rounds):
        rounds = tuple(_lines(plan, fork.entry, most))
        return _Line(_Kind.LOOP, _route_text(fork), plan.nodes[fork.decision].node.emoji, rounds)
    shown, folded = _branches(plan, fork, most)
    route = isinstance(fork, Choice)
    below = [
        _Line(
            _Kind.WAY if route else _Kind.JOIN if isinstance(branch, Join) else _Kind.SIDE,
            _way_text(branch) if route else _branch_text(branch),
            below=tuple(_lines(plan, branch.first, most)),
        )
        for branch in shown
    ]
    if folded:
        below.append(_Line(_Kind.MORE, f"+{len(folded)} more"))
    if isinstance(fork, Choice):
        return _Line(_Kind.ROUTE, _route_text(fork), plan.nodes[fork.decision].node.emoji, tuple(below))
    count = len(shown) + len(folded)
    return _Line(_Kind.FORK, f"{count} branch{'es' * (count > 1)}", below=tuple(below))


def _draw(top: _Line, glyphs: _Glyphs) -> str:
    return "\n".join([_text(top, glyphs), *_draw_below(top.below, "", glyphs)])


def _draw_below(lines: Sequence[_Line], lead: str, glyphs: _Glyphs) -> Iterator[str]:
    for line in lines:
        last = line is lines[-1]
        yield f"{lead}{glyphs.elbow if last else glyphs.tee}{_text(line, glyphs)}"
        yield from _draw_below(line.below, lead + (glyphs.gap if last else glyphs.bar), glyphs)


def _text(line: _Line, glyphs: _Glyphs) -> str:
    if not glyphs.icons:
        return line.text
    return f"{line.emoji or line.kind.value} {line.text.replace(' -> ', f' {glyphs.arrow} ')}"


# -- Mermaid

#: The start of an arrow, and its label.
_Source = tuple[str, str]


def render_mermaid(plan: Plan, max_branches: int | None = None) -> str:
    """The plan as a Mermaid flowchart; a branch is a subgraph, a join an arrow with its alias on it."""
    chart = _Chart(plan, max_branches)
    chart.line(f'input(["{_quoted(CHAIN_INPUT)}<br/>{_quoted(_type_name(plan.input_model))}"])')
    for source in chart.sequence(plan.first, [("input", "")]):
        chart.arrow(source, "done")
    chart.line(f'done(["end of {_quoted(plan.chain)}"])')
    return "\n".join(["flowchart TD", *chart.lines, *chart.arrows])


@dataclass
class _Chart:
    plan: Plan
    most: int | None
    lines: list[str] = field(default_factory=list)
    #: Drawn last: a node that is named inside a subgraph would belong to it.
    arrows: list[str] = field(default_factory=list)
    indent: int = 1

    def line(self, text: str) -> None:
        self.lines.append("    " * self.indent + text)

    def arrow(self, source: _Source, target: str) -> None:
        name, label = source
        self.arrows.append(f'    {name} -- "{_quoted(label)}" --> {target}' if label else f"    {name} --> {target}")

    def sequence(self, target: Target, sources: list[_Source]) -> list[_Source]:
        """Draws the stages from `target` on; returns the starts of the arrows to the next stage."""
        for stage in _stages(self.plan, target):
            sources = self.fork(stage, sources) if isinstance(stage, Fork) else self.node(stage, sources)
        return sources

    def node(self, node: PlanNode, sources: list[_Source]) -> list[_Source]:
        taken, given = describe_models(node)
        engine = ", ".join(filter(None, [describe_engines(node), describe_rows(node)]))
        label = f"{_quoted(node.id)}<br/>{_quoted(f'{taken} → {given}')}<br/>{_quoted(engine)}"
        opening, closing = ("[", "]") if node.kind is NodeKind.STEP else ("[[", "]]")
        name = _mermaid_id("n", node.id)
        self.line(f'{name}{opening}"{label}"{closing}')
        for source in sources:
            self.arrow(source, name)
        return [(name, "")]

    def fork(self, fork: Fork, sources: list[_Source]) -> list[_Source]:
        if isinstance(fork, Rounds):
            ends = self.rounds(fork, sources)
            return ends if fork.joins else sources
        if isinstance(fork, Samples):
            return self.sequence(fork.joins[0].first, sources)
        shown, folded = _branches(self.plan, fork, self.most)
        joined: list[_Source] = []
        before = sources
        if isinstance(fork, Choice):
            [(decision, _)] = sources = self.decision(fork, sources)
        for branch in shown:
            if isinstance(fork, Choice):
                ends = self.sequence(branch.first, [(decision, branch.branch.partition(":")[2] or "no case")])
            else:
                ends = self.branch(branch, sources)
            if isinstance(branch, Join):
                empty = isinstance(branch.first, ToBranchEnd)  # its arrow has the name of the way
                joined += [(name, label if empty else branch.alias) for name, label in ends]
        if folded:
            joined += self.more(folded, sources)
        return joined or before

    def rounds(self, loop: Rounds, sources: list[_Source]) -> list[_Source]:
        """The first round of a loop, with an arrow back to its beginning."""
        name, before = _mermaid_id("n", loop.decision), len(self.arrows)
        self.line(f'subgraph {_mermaid_id("b", loop.decision)}["{_quoted(_route_text(loop))}"]')
        self.indent += 1
        self.sequence(loop.entry, sources)
        self.indent -= 1
        self.line("end")
        entered = [arrow.rpartition(" ")[2] for arrow in self.arrows[before:] if arrow.split()[0] == sources[0][0]]
        for start in entered[:1] if len(loop.joins or loop.sides) > 1 else ():
            self.arrow((name, "again"), start)
        return [(name, loop.alias if loop.joins else "")]

    def decision(self, route: Choice, sources: list[_Source]) -> list[_Source]:
        """The box from which the ways of a route lead."""
        name = _mermaid_id("n", route.decision)
        self.line(f'{name}{{"{_quoted(route.decision)}"}}')
        for source in sources:
            self.arrow(source, name)
        return [(name, "")]

    def branch(self, branch: Join | Side, sources: list[_Source]) -> list[_Source]:
        self.line(f'subgraph {_mermaid_id("b", branch.branch)}["{_quoted(branch.branch)}"]')
        self.indent += 1
        ends = self.sequence(branch.first, sources)
        self.indent -= 1
        self.line("end")
        return ends

    def more(self, folded: Sequence[Join | Side], sources: list[_Source]) -> list[_Source]:
        name = _mermaid_id("more", folded[0].branch)
        self.line(f'{name}["+{len(folded)} more"]')
        for source in sources:
            self.arrow(source, name)
        aliases = [branch.alias for branch in folded if isinstance(branch, Join)]
        return [(name, ", ".join(aliases))] if aliases else []


#: Characters that end a label, begin an entity, or turn it into markup.
_MERMAID = {"&": "&amp;", '"': "#quot;", "<": "&lt;", ">": "&gt;", "#": "#35;", "`": "#96;"}


def _mermaid_id(prefix: str, name: str) -> str:
    """An identifier in ASCII: Mermaid's grammar has letters of other scripts, but not their accents and vowel signs."""
    return f"{prefix}_{name}" if name.isascii() else f"{prefix}u_{name.encode().hex()}"


def _quoted(text: str) -> str:
    """Text inside a Mermaid label."""
    return "".join(_MERMAID.get(letter, letter) for letter in text)
