"""Forks of a plan: branches that all rows take, ways of which each row takes one, rounds of a loop, candidates of a step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from chainette.core.decision import round_end_of, way_branch, way_of
from chainette.core.targets import Target
from chainette.records import Row, child_id

__all__ = ["Choice", "Fork", "Join", "Rounds", "Samples", "Side"]


@dataclass(frozen=True)
class Join:
    """A branch whose final value is merged back."""

    branch: str
    alias: str
    first: Target
    #: The name of the row value at the end of the branch.
    value: str
    #: Whether the alias is a list.
    many: bool


@dataclass(frozen=True)
class Side:
    """A branch that is not merged."""

    branch: str
    first: Target
    value: str
    many: bool


@dataclass(frozen=True)
class Fork:
    """A list of branches: rows run through all of them, then go on once the joins are in."""

    id: str
    depth: int
    joins: tuple[Join, ...]
    sides: tuple[Side, ...]
    #: The destination of the rows after the branches.
    after: Target
    #: Branches around it, outermost first.
    path: tuple[str, ...]
    #: Whether the chain ends here, so that side branches become columns of `flattened/`.
    last: bool

    @property
    def joined_starts(self) -> tuple[Target, ...]:
        """The first destinations of rows the fork waits for."""
        return tuple(join.first for join in self.joins)

    @property
    def side_starts(self) -> tuple[Target, ...]:
        """The first destinations of rows it does not wait for."""
        return tuple(side.first for side in self.sides)

    def entering(self, rows: list[Row]) -> list[Row]:
        """The rows that begin its branches."""
        return rows


@dataclass(frozen=True)
class Samples(Fork):
    """The candidates of a step: its one branch takes several copies of each row."""

    count: int

    def entering(self, rows: list[Row]) -> list[Row]:
        numbers = range(self.count)
        return [Row(child_id(row.row_id, number), row.values, row.line, row.key) for row in rows for number in numbers]


@dataclass(frozen=True)
class Choice(Fork):
    """A fork whose rows take one of its ways each: a Route. All its joins give the same alias."""

    #: The name under which rows keep their decision.
    decision: str
    entry: Target

    @property
    def joined_starts(self) -> tuple[Target, ...]:
        return (self.entry,) if self.joins else ()

    @property
    def side_starts(self) -> tuple[Target, ...]:
        return () if self.joins else (self.entry,)

    @cached_property
    def many(self) -> bool:
        """Whether the alias is a list."""
        return any(join.many for join in self.joins)

    @property
    def alias(self) -> str:
        return self.joins[0].alias

    @property
    def ending(self) -> str:
        """The name of the values at the ends of the ways if the chain ends here without a join; no id can clash with it."""
        return way_branch(self.decision, "")

    @cached_property
    def _ends(self) -> Mapping[str, Join | Side]:
        ends: tuple[Join | Side, ...] = (*self.joins, *self.sides)
        return {end.branch: end for end in ends}

    def end_of(self, decision: bytes) -> Join | Side:
        """The end of the way that was decided for a row."""
        return self._ends[way_branch(self.decision, way_of(decision))]

    def settles(self, decision: bytes) -> bool:  # noqa: ARG002
        """Whether nothing else is decided for the row."""
        return True

    def recorded(self, decision: bytes) -> bytes:
        """The part of the decision a row keeps after the fork."""
        return decision


@dataclass(frozen=True)
class Rounds(Choice):
    """A Loop: its branches are its rounds, and a row ends in one of them."""

    def end_of(self, decision: bytes) -> Join | Side:
        return self._ends[way_branch(self.decision, str(round_end_of(decision)[0]))]

    def settles(self, decision: bytes) -> bool:
        return way_of(decision) != "again"

    def recorded(self, decision: bytes) -> bytes:
        return b'{"_round":%d}' % round_end_of(decision)[0]
