"""The values of branches for each row: at a join, and at the end of the chain."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain

from chainette.core.forks import Choice, Fork, Join, Side
from chainette.records import Row, owner_of, row_order

__all__ = ["by_owner", "join_rows", "with_sides", "with_way"]


def by_owner(rows: Iterable[Row], ids: set[str]) -> dict[str, list[Row]]:
    """Rows grouped by the id in `ids` they descend from; others are left out."""
    grouped: dict[str, list[Row]] = {}
    for row in rows:
        owner = owner_of(row.row_id, ids)
        if owner is not None:
            grouped.setdefault(owner, []).append(row)
    return grouped


def join_rows(
    fork: Fork, base: Sequence[Row], partials: Mapping[str, Sequence[Row]], stopped: Iterable[str]
) -> tuple[list[Row], list[str]]:
    """(rows with every alias, ids of rows that leave the main flow).

    A row leaves if one of its descendants was rejected in a joined branch, or if a branch that
    gives one value dropped it. Lists are in numeric row-id order, and empty if all rows were dropped.
    """
    ids = {row.row_id for row in base}
    lost = {owner_of(row_id, ids) for row_id in stopped}
    values_of = _chosen(fork, partials, ids) if isinstance(fork, Choice) else _all_branches(fork, partials, ids)
    joined = []
    for row in base:
        values = values_of(row.row_id)
        if row.row_id in lost or None in values.values():
            lost.add(row.row_id)
        else:
            joined.append(row.with_values(row.row_id, values))  # type: ignore[arg-type]
    return joined, [row.row_id for row in base if row.row_id in lost]


#: Row id -> name -> JSON; None if a value is missing.
_ValuesOf = Callable[[str], dict[str, bytes | None]]


def _all_branches(fork: Fork, partials: Mapping[str, Sequence[Row]], ids: set[str]) -> _ValuesOf:
    found = {join.branch: by_owner(partials.get(join.branch, ()), ids) for join in fork.joins}
    return lambda row_id: {join.alias: _branch_value(join, found[join.branch].get(row_id, [])) for join in fork.joins}


def _chosen(fork: Choice, partials: Mapping[str, Sequence[Row]], ids: set[str]) -> _ValuesOf:
    """The value at the end of the way that a row took, and the decision."""
    below = by_owner(chain.from_iterable(partials.values()), ids)

    def values_of(row_id: str) -> dict[str, bytes | None]:
        arrived = below.get(row_id)
        if not arrived:
            return {fork.decision: None}
        decision = arrived[0].values[fork.decision]
        end = fork.end_of(decision)
        rows = [row for row in arrived if end.value in row.values]
        return {fork.decision: fork.recorded(decision), fork.alias: _branch_value(end, rows)}

    return values_of


def _branch_value(branch: Join | Side, rows: list[Row]) -> bytes | None:
    """The JSON of a branch's value for one row; None if it is missing."""
    if not branch.value and not branch.many:  # an empty way
        return b"null"
    if branch.many:
        ordered = sorted(rows, key=lambda row: row_order(row.row_id))
        return b"[" + b",".join(row.values[branch.value] for row in ordered if branch.value) + b"]"
    return rows[0].values[branch.value] if rows else None


def with_sides(fork: Fork, rows: list[Row], sides: Mapping[str, list[Row]]) -> list[Row]:
    """The rows with the values of the branches that end the chain; null for a branch without one."""
    ids = {row.row_id for row in rows}
    found = {side: by_owner(sides.get(side.branch, ()), ids) for side in fork.sides}
    return [
        row.with_values(
            row.row_id,
            {side.branch: _branch_value(side, below.get(row.row_id, [])) or b"null" for side, below in found.items()},
        )
        for row in rows
    ]


def with_way(fork: Choice, rows: list[Row], sides: Mapping[str, list[Row]]) -> list[Row]:
    """The rows with the decision of a route that ends the chain, and with the value at the end of their way."""
    every = {row.row_id: row.values[fork.decision] for row in sides.get(fork.decision, ())}
    decided = {row_id: decision for row_id, decision in every.items() if fork.settles(decision)}
    below = by_owner(chain.from_iterable(sides.get(side.branch, ()) for side in fork.sides), {row.row_id for row in rows})
    found = []
    for row in rows:
        decision, value = decided.get(row.row_id), None
        if decision is not None:
            value = _branch_value(fork.end_of(decision), below.get(row.row_id, []))
            decision = fork.recorded(decision)
        ended = {fork.decision: decision or b"null", fork.ending: value or b"null"}
        found.append(row.with_values(row.row_id, ended))
    return found
