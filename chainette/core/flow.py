"""How rows flow through a plan: pure functions over the durable outcomes.

`frontier` is the one admission function (docs/protocol.md, 1): it walks a root's rows from the start, takes
every durable outcome, and puts only pending rows into units. `advance` is the same walk with nothing
durable: it finds the successors of a finished unit. `settle` gives the results of a complete root.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from chainette.core.candidates import valid_list
from chainette.core.decision import way_of
from chainette.core.durable import Durable
from chainette.core.forks import Choice, Fork
from chainette.core.joining import by_owner, join_rows, with_sides, with_way
from chainette.core.plan import Plan
from chainette.core.plan_node import NodeKind, PlanNode
from chainette.core.targets import End, Target, ToBranchEnd, ToFork, ToNode, ToWays
from chainette.records import Effects, Output, Partial, Row, Scope, Unit, owner_of, row_order, station_of, step_of

__all__ = ["ROOT", "Settled", "advance", "frontier", "row_of", "settle"]

#: The scope of a root itself.
ROOT = ""

_NOTHING = Durable()


@dataclass
class _Walk:
    plan: Plan
    root: int
    durable: Durable
    #: None: the parts of new units name the node (re-admission).
    part: str | None
    effects: Effects = field(default_factory=Effects)
    finished: list[Row] = field(default_factory=list)
    #: Rows at the end of branches that are not joined.
    sides: dict[str, list[Row]] = field(default_factory=dict)
    #: Fork -> rows in, rows stopped.
    forks: dict[str, tuple[int, int]] = field(default_factory=dict)

    def go(self, target: Target, rows: list[Row], scope: str) -> None:
        """Rows arrive at a target, and go on from there as far as they can."""
        while rows:
            match target:
                case ToNode():
                    node = self.plan.nodes[target.node]
                    target, rows = node.next, self.visit(node, rows, scope)
                case ToFork():
                    fork = self.plan.forks[target.fork]
                    target, rows = fork.after, self.fork(fork, rows, scope)
                case ToWays():
                    *others, (target, rows) = self.part_ways(target, rows, scope)
                    for other, taken in others:
                        self.go(other, taken, scope)
                case ToBranchEnd():
                    self.end_branch(target, rows, scope)
                    return
                case End():
                    self.finished.extend(rows)
                    return

    def visit(self, node: PlanNode, rows: list[Row], scope: str) -> list[Row]:
        """Queues the rows that are pending at a node; returns those that have passed it."""
        pending, passed, stopped = self.durable.divide(node.id, rows)
        self.wait(node, pending, scope)
        self.stop(scope, stopped)
        return [row_of(node, row, output) for row, output in passed]

    def wait(self, node: PlanNode, rows: list[Row], scope: str) -> None:
        """Each row waits for the engine of the node that is asked next."""
        if not node.escalate:
            self.queue(node.id, rows, scope)
            return
        last, waiting = len(node.escalate), dict[int, list[Row]]()
        for row in rows:
            waiting.setdefault(min(row.engine, last), []).append(row)
        for engine, some in sorted(waiting.items()):
            self.queue(station_of(node.id, engine), some, scope)

    def queue(self, node: str, rows: list[Row], scope: str) -> None:
        """Pending rows become units of at most batch_size rows."""
        part = f"r.{node}" if self.part is None else self.part
        size = self.plan.batch_size
        for start in range(0, len(rows), size):
            chunk = part if len(rows) <= size else f"{part}/{start // size}"
            self.effects.units.append(Unit(node, self.root, chunk, scope, rows[start : start + size]))

    def fork(self, fork: Fork, rows: list[Row], scope: str) -> list[Row]:
        """Sends rows through a fork; returns those that have passed it."""
        for start in fork.side_starts:
            self.go(start, rows, ROOT)
        if not fork.joins:
            return rows
        part = f"r.{fork.id}" if self.part is None else self.part
        name = f"{fork.id}@{part}"
        inner = _Walk(self.plan, self.root, self.durable, self.part, sides=self.sides, forks=self.forks)
        for start in fork.joined_starts:
            inner.go(start, fork.entering(rows), name)
        open_ids = _pending_owners(inner.effects, {row.row_id for row in rows}, name)
        self.open_scope(Scope(name, fork.id, scope, part, [row for row in rows if row.row_id in open_ids]), inner.effects)
        done = [row for row in rows if row.row_id not in open_ids]
        joined: list[Row] = []
        if done:
            partials: dict[str, list[Row]] = {}
            for partial in inner.effects.partials:
                if partial.scope == name:
                    partials.setdefault(partial.branch, []).extend(partial.rows)
            stopped = [row_id for where, ids in inner.effects.stopped if where == name for row_id in ids]
            joined, lost = join_rows(fork, done, partials, stopped)
            counted = self.forks.get(fork.id, (0, 0))
            self.forks[fork.id] = (counted[0] + len(done), counted[1] + len(lost))
            self.stop(scope, lost)
        return joined

    def open_scope(self, scope: Scope, inner: Effects) -> None:
        """Takes over the pending work of the branches, with the finished part of the same base rows."""
        self.effects.units += inner.units
        if scope.base:
            self.effects.scopes.append(scope)
        self.effects.scopes += inner.scopes
        base = {row.row_id for row in scope.base}
        for partial in inner.partials:
            rows = partial.rows if partial.scope != scope.scope else [row for row in partial.rows if _owned(row.row_id, base)]
            if rows:
                self.effects.partials.append(Partial(partial.scope, partial.branch, rows))
        for where, ids in inner.stopped:
            kept = ids if where != scope.scope else [row_id for row_id in ids if _owned(row_id, base)]
            self.stop(where, kept)

    def stop(self, scope: str, row_ids: list[str]) -> None:
        if scope != ROOT and row_ids:
            self.effects.stopped.append((scope, row_ids))

    def end_branch(self, target: ToBranchEnd, rows: list[Row], scope: str) -> None:
        if any(side.branch == target.branch for side in self.plan.forks[target.fork].sides):
            self.sides.setdefault(target.branch, []).extend(rows)
        else:
            self.effects.partials.append(Partial(scope, target.branch, rows))

    def part_ways(self, target: ToWays, rows: list[Row], scope: str) -> list[tuple[Target, list[Row]]]:
        """The rows of each way, as was decided for each of them."""
        fork = self.plan.forks[target.fork]
        assert isinstance(fork, Choice)
        taken: dict[str, list[Row]] = {}
        for row in rows:
            taken.setdefault(way_of(row.values[fork.decision]), []).append(row)
        if fork.many:  # a row may be dropped, and its decision is needed all the same
            decided = [Row(row.row_id, {fork.decision: row.values[fork.decision]}, row.line) for row in rows]
            self.effects.partials.append(Partial(scope, fork.decision, decided))
        if fork.last and not fork.joins:
            self.sides.setdefault(fork.decision, []).extend(rows)
        return [(following, taken.get(way, [])) for way, following in target.ways]


def _owned(row_id: str, ids: set[str]) -> bool:
    return owner_of(row_id, ids) is not None


def _pending_owners(effects: Effects, base: set[str], scope: str) -> set[str]:
    """The base rows that still have work below them, side branches aside."""
    nested = {scope}
    for opened in effects.scopes:  # outer ones come first; those of side branches belong to the root
        if opened.parent in nested:
            nested.add(opened.scope)
    pending = (row for unit in effects.units if unit.scope in nested for row in unit.rows)
    return set(by_owner(pending, base))


def row_of(node: PlanNode, row: Row, output: Output) -> Row:
    """The row after a node, reasoning included."""
    values = {node.key: output.value}
    if node.kind is NodeKind.STEP:
        values[node.reasoning_key] = msgspec.json.encode(output.reasoning)
    elif node.kind is NodeKind.PICK:
        return _picked(node, row, output)
    return row.with_values(output.row_id, values)


def _picked(node: PlanNode, row: Row, output: Output) -> Row:
    """The row with the chosen candidate, or with all valid ones, in place of the list of candidates."""
    value = valid_list(row.values[node.source]) if node.passes else output.value
    rest = {name: known for name, known in row.values.items() if name != node.source}
    return Row(output.row_id, {**rest, node.key: value}, row.line, row.key)


def frontier(plan: Plan, root: int, rows: list[Row], durable: Durable | None = None) -> Effects:
    """The units that continue a root from its durable outcomes; without any, it is a fresh root.

    Pure: the same arguments give the same units with the same ids in every process.
    """
    walk = _Walk(plan, root, durable or _NOTHING, None if durable is not None else "")
    walk.go(plan.first, rows, ROOT)
    return walk.effects


def advance(
    plan: Plan, unit: Unit, rows: list[Row], target: Target, stopped: list[str], escalated: Sequence[Row] = ()
) -> Effects:
    """The successors of a unit whose output rows go to `target`; `stopped` are the ids it rejected, and `escalated` are
    rows for the next engine of its step."""
    walk = _Walk(plan, unit.root, _NOTHING, unit.part)
    walk.stop(unit.scope, stopped)
    if escalated:  # their successors must not share a part with the successors of other rows
        onward = _Walk(plan, unit.root, _NOTHING, f"{unit.part}^{unit.node}", walk.effects)
        onward.wait(plan.nodes[step_of(unit.node)], [*escalated], unit.scope)
    walk.go(target, rows, unit.scope)
    return walk.effects


@dataclass(frozen=True)
class Settled:
    """A complete root."""

    #: Rows at the end of the main flow in id order, with the values of ending branches.
    rows: list[Row]
    #: Fork -> rows in, rows stopped at its join.
    forks: dict[str, tuple[int, int]]


def settle(plan: Plan, root: int, rows: list[Row], durable: Durable) -> Settled:
    """The results of a complete root.

    Raises:
        ValueError: some of its rows are still pending.
    """
    walk = _Walk(plan, root, durable, None)
    walk.go(plan.first, rows, ROOT)
    if walk.effects.units:
        pending = walk.effects.units[0]
        raise ValueError(f"root {root} is not complete: row {pending.rows[0].row_id} is pending at {pending.node!r}")
    finished = sorted(walk.finished, key=lambda row: row_order(row.row_id))
    for fork in plan.forks.values():
        if fork.last and not fork.path:
            if not isinstance(fork, Choice):
                finished = with_sides(fork, finished, walk.sides)
            elif fork.sides:
                finished = with_way(fork, finished, walk.sides)
    return Settled(finished, walk.forks)
