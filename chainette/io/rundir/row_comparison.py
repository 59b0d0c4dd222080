"""Compares the rows of one step in two run directories."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import msgspec

from chainette.io.rundir.result import RunResult
from chainette.records import row_order

__all__ = ["ChangedRow", "Comparison", "compare"]

_Row = dict[str, Any]
#: Columns that distinguish rows; other columns that begin with `_` describe the answers and are not part of them.
_KEY, _ROUND = "_key", "_round"

_encode = msgspec.json.Encoder(order="sorted").encode


@dataclass(frozen=True)
class ChangedRow:
    """A row that both runs have, with different values."""

    name: str
    #: Column -> its value in the first and in the second run; None for a column that a row does not have.
    fields: dict[str, tuple[Any, Any]]


@dataclass(frozen=True)
class Comparison:
    """The differences between two runs in the rows of a step."""

    #: "_key" or "row_id": the column by which rows are matched.
    by: str
    #: Names of rows that only one run has, in order.
    only_first: list[str]
    only_second: list[str]
    changed: list[ChangedRow]
    equal: int

    @property
    def by_field(self) -> dict[str, int]:
        """Column -> the number of rows in which it changed, largest first."""
        return dict(Counter(chain.from_iterable(row.fields for row in self.changed)).most_common())


def compare(first: RunResult, second: RunResult, step: str = "flattened") -> Comparison:
    """Matches rows by `_key` if both runs have that column, otherwise by `row_id` and `_round`, and compares their values.

    Columns that begin with `_` (attempts, reasoning, cost) are not compared. Memory holds 16 bytes and the name of each
    row, and all of the changed rows.

    Raises:
        RunDirectoryError: a run has no rows of that step.
        DamagedRun: a shard does not hold the bytes that were written.
    """
    by = _KEY if all(_has_keys(run, step) for run in (first, second)) else "row_id"
    digests = {_name(row, by): _digest(row, by) for row in first.rows(step)}
    equal, only_second, changed = 0, [], dict[str, _Row]()
    for row in second.rows(step):
        name = _name(row, by)
        before = digests.pop(name, None)
        if before is None:
            only_second.append(name)
        elif before == _digest(row, by):
            equal += 1
        else:
            changed[name] = row
    found = list(_changes(first.rows(step), changed, by)) if changed else []
    order = _order(by)
    return Comparison(
        by,
        sorted(digests, key=order),
        sorted(only_second, key=order),
        sorted(found, key=lambda row: order(row.name)),
        equal,
    )


def _has_keys(run: RunResult, step: str) -> bool:
    return _KEY in next(run.rows(step), {})


def _name(row: _Row, by: str) -> str:
    turn = f" round {row[_ROUND]}" if row.get(_ROUND) is not None else ""
    return f"{row[by]}{turn}"


def _values(row: _Row, by: str) -> _Row:
    """The values to be compared, without ids if rows are matched by key, since ids may differ then."""
    return {name: value for name, value in row.items() if not name.startswith("_") and name not in (by, "row_id")}


def _digest(row: _Row, by: str) -> bytes:
    return hashlib.blake2b(_encode(_values(row, by)), digest_size=16).digest()


def _changes(rows: Iterable[_Row], changed: dict[str, _Row], by: str) -> Iterator[ChangedRow]:
    for row in rows:
        if (other := changed.get(_name(row, by))) is not None:
            before, after = _values(row, by), _values(other, by)
            names = [*before, *(name for name in after if name not in before)]
            fields = {name: (before.get(name), after.get(name)) for name in names if before.get(name) != after.get(name)}
            yield ChangedRow(_name(row, by), fields)


def _order(by: str) -> Any:
    return str if by == _KEY else lambda name: (row_order(name.partition(" ")[0]), name)
