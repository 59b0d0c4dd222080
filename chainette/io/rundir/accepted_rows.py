"""The accepted rows: the first rows, in the order of the input, that reach the end, and the boundary after them.

The roots of a run with `accept` become complete in the log one after another, so that `flattened/` holds exactly the
accepted rows. A root whose rows have ended early waits in memory for the roots before it; after a crash, it is read back
from the shards.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf

from msgspec import UNSET

from chainette.io.rundir.event_types import RootDone
from chainette.records import CHAIN_INPUT, row_order

__all__ = ["AcceptedRows", "Boundary", "has_enough", "may_begin"]


@dataclass
class AcceptedRows:
    """The progress of a run that stops after a number of rows."""

    wanted: int
    #: The number of rows that are certain to be accepted.
    certain: int = 0
    #: The number of complete roots, and of their records. No root is complete before all roots before it are.
    roots: int = 0
    records: int = 0
    #: Finished rows of the next root that are in `flattened/` already: it was completed when fewer rows were wanted.
    written: int = 0
    #: The id of the last accepted row; "" as long as rows are missing.
    last: str = ""

    @property
    def reached(self) -> bool:
        return bool(self.last)

    @property
    def missing(self) -> int:
        return self.wanted - self.certain

    def take(self, done: RootDone) -> None:
        """Counts the next root, which is complete."""
        self.roots += 1
        self.records += done.records
        self.written = 0
        self.certain += done.accepted
        if done.last is not UNSET:
            self.last = done.last.row_id

    def want_more(self, wanted: int, done: RootDone | None) -> None:
        """Raises the number of wanted rows. `done` is the root of the last accepted row, which is open again if all rows were
        certain."""
        self.wanted = wanted
        if done is not None:
            self.roots -= 1
            self.records -= done.records
            self.certain -= done.accepted
            self.written, self.last = done.accepted, ""

    def records_to_come(self, expected: int | None) -> int | None:
        """The records that will be needed at the yield so far; None if unknown. The input has `expected` records."""
        if self.reached:
            return self.records
        if not self.certain:
            return None
        needed = round(self.wanted * self.records / self.certain)
        return needed if expected is None else min(expected, needed)

    def admits(self, root: int, batch_size: int, window: float = inf) -> bool:
        """Whether a root may begin. Open roots have no more records than are needed for the missing rows, at the yield so
        far, and no more than fit in the window; one root may always be open."""
        if self.reached:
            return False
        ahead = root - self.roots
        needed = self.missing * self.records / self.certain if self.certain else inf if self.records else self.missing
        return ahead <= 0 or (ahead + 1) * batch_size <= min(window, needed)


def has_enough(accepted: AcceptedRows | None) -> bool:
    """Whether a run has all the rows it wants, so that later rows need not be processed; never without `accept`."""
    return accepted is not None and accepted.reached


def may_begin(accepted: AcceptedRows | None, root: int, batch_size: int, window: float) -> bool:
    """Whether a root may begin (`AcceptedRows.admits`); always without `accept`."""
    return accepted is None or accepted.admits(root, batch_size, window)


@dataclass(frozen=True)
class Boundary:
    """The boundary after an accepted row: tells which rows of a step are surplus."""

    last: str
    #: See `Graph.expansions`.
    expansions: Mapping[str, int]

    def includes(self, node: str, row_id: str) -> bool:
        """Whether a row of a node is an accepted row, one before it, or one that it was made from."""
        depth = 0 if node == CHAIN_INPUT else self.expansions[node]
        return row_order(row_id)[: depth + 1] <= row_order(self.last)
