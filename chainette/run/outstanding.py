"""What is outstanding, kept as sets per scope (PROTOCOL 2); the in-memory form for a local run.

A root is a scope; each executed fork with joins is a scope and one member of its parent's set. A commit
takes its unit out and puts its successors in. An empty fork becomes its join unit; an empty root is done.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from chainette.core.flow import ROOT
from chainette.records import Effects, Row, Scope, Unit

__all__ = ["Ledger"]

#: A unit within its root, or the name of a scope.
_Member = tuple[str, str] | str


@dataclass
class _Fork:
    scope: Scope
    partials: dict[str, list[Row]] = field(default_factory=dict)
    stopped: list[str] = field(default_factory=list)


@dataclass
class _Root:
    #: Rows that the root keeps alive at least, whatever is outstanding.
    admitted: int
    members: dict[str, set[_Member]] = field(default_factory=lambda: {ROOT: set()})
    forks: dict[str, _Fork] = field(default_factory=dict)
    units: int = 0
    rows: int = 0

    @property
    def weight(self) -> int:
        """Live rows that the root counts for."""
        return max(self.admitted, self.rows)


class Ledger:
    """Roots between admission and completion."""

    def __init__(self) -> None:
        self._roots: dict[int, _Root] = {}
        #: Live rows: for each root what it admitted, or more where rows were expanded.
        self.rows = 0

    def __len__(self) -> int:
        return len(self._roots)

    def units(self, root: int) -> int:
        """Units of a root that are queued or running."""
        return self._roots[root].units

    def admit(self, root: int, rows: int, effects: Effects) -> bool:
        """Puts a root's first units in; False where there are none, so that it is complete at once."""
        self._roots[root] = admitted = _Root(rows)
        self._add(admitted, effects)
        self.rows += admitted.weight
        if not effects.units:
            self.drop(root)
        return bool(effects.units)

    def commit(self, unit: Unit, effects: Effects) -> tuple[list[Unit], bool]:
        """Replaces a unit by its successors; returns (units to queue, whether the root is done)."""
        root = self._roots[unit.root]
        before = root.weight
        self._add(root, effects)
        root.members[unit.scope].remove((unit.node, unit.part))
        root.units -= 1
        root.rows -= len(unit.rows)
        join = self._resolve(root, unit.root, unit.scope)
        self.rows += root.weight - before
        if root.members[ROOT]:
            return [*effects.units, *join], False
        self.drop(unit.root)
        return [], True

    def drop(self, root: int) -> None:
        """Forgets a root; `frontier` brings its units back."""
        self.rows -= self._roots.pop(root).weight

    def _add(self, root: _Root, effects: Effects) -> None:
        for scope in effects.scopes:
            root.forks[scope.scope] = _Fork(scope)
            root.members[scope.scope] = set()
            root.members[scope.parent].add(scope.scope)
        for unit in effects.units:
            self._put(root, unit)
        for partial in effects.partials:
            root.forks[partial.scope].partials.setdefault(partial.branch, []).extend(partial.rows)
        for name, row_ids in effects.stopped:
            root.forks[name].stopped.extend(row_ids)

    def _put(self, root: _Root, unit: Unit) -> None:
        members, member = root.members[unit.scope], (unit.node, unit.part)
        if member in members:
            raise AssertionError(f"unit {unit.node}/{unit.root}/{unit.part} exists already")
        members.add(member)
        root.units += 1
        root.rows += len(unit.rows)

    def _resolve(self, root: _Root, number: int, name: str) -> list[Unit]:
        """The join unit of a fork whose last member is gone."""
        if name == ROOT or root.members[name]:
            return []
        fork = root.forks.pop(name)
        del root.members[name]
        scope = fork.scope
        join = Unit(scope.fork, number, f"{scope.part}j", scope.parent, scope.base, fork.partials, fork.stopped)
        root.members[scope.parent].discard(name)
        self._put(root, join)
        return [join]
