"""Compares the rows of one step in two run directories."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from typing import Any

import msgspec

from chainette.io.rundir.result import RunResult
from chainette.records import record_of, row_order

__all__ = ["ChangedRow", "Comparison", "compare"]

_Row = dict[str, Any]
#: Columns that distinguish rows; other columns that begin with `_` describe the answers and are not part of them.
_ID, _KEY, _ROUND = "row_id", "_key", "_round"

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
    """Matches rows and compares their values.

    They are matched by `_key` (and by the rest of their `row_id` behind that of their record) if both runs have that column
    and no two records of a run share a key; otherwise by `row_id`; and by `_round`. Columns that begin with `_` (attempts,
    reasoning, cost) are not compared. Memory holds 16 bytes and the name of each row, and all of the changed rows.

    Raises:
        RunDirectoryError: a run has no rows of that step.
        DamagedRun: a shard does not hold the bytes that were written.
    """
    if all(_KEY in next(run.rows(step), {}) for run in (first, second)):
        with suppress(_SharedKey):
            return _compared(first, second, step, _KEY)
    return _compared(first, second, step, _ID)


def _compared(first: RunResult, second: RunResult, step: str, by: str) -> Comparison:
    digests = {name: _digest(row, by) for name, row in _named(first.rows(step), by)}
    equal, only_second, changed = 0, [], dict[str, _Row]()
    for name, row in _named(second.rows(step), by):
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


class _SharedKey(Exception):
    """A key that is null, or that two records have."""


def _named(rows: Iterable[_Row], by: str) -> Iterator[tuple[str, _Row]]:
    """The rows with their names.

    Raises:
        _SharedKey: the names are keys, and do not distinguish the rows.
    """
    seen: set[str] = set()
    for row in rows:
        name = _name(row, by)
        if by == _KEY:
            if row[_KEY] is None or name in seen:
                raise _SharedKey
            seen.add(name)
        yield name, row


def _name(row: _Row, by: str) -> str:
    below = row[_ID].removeprefix(record_of(row[_ID])) if by == _KEY else ""
    turn = f" round {row[_ROUND]}" if row.get(_ROUND) is not None else ""
    return f"{row[by]}{below}{turn}"


def _values(row: _Row, by: str) -> _Row:
    """The values to be compared, without ids if rows are matched by key, since ids may differ then."""
    return {name: value for name, value in row.items() if not name.startswith("_") and name not in (by, _ID)}


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
