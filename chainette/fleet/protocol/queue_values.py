"""The values a queue returns: claims, entries of a run's stream, progress."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

import msgspec

from chainette.engine.budget import Amounts, BudgetLimits
from chainette.fleet.protocol.messages import Admission, Result
from chainette.records import Row, Unfinished, Unit

__all__ = [
    "ANCHOR",
    "FURTHEST_EPOCH",
    "LEASE",
    "AdmissionProgress",
    "AdmissionResult",
    "Asker",
    "Cancelled",
    "Claim",
    "Drain",
    "EngineAccount",
    "Entry",
    "Lost",
    "Turn",
]

#: Seconds a worker may be silent before its units are given to others.
LEASE = 6.0

#: Stream id of the anchor every epoch's stream begins with.
ANCHOR = "0-1"

#: The most epochs that may have begun in Redis since the log's last one; a later epoch is garbage (install.lua knows it too).
FURTHEST_EPOCH = 1 << 20


class Lost(Exception):
    """A claim, an epoch or an owner no longer holds, so the call had no effect."""


@dataclass(frozen=True)
class EngineAccount:
    """An engine that requests are reserved for, and its budget over all runs."""

    name: str
    digest: str
    limits: BudgetLimits


class Cancelled(Exception):
    """The run was cancelled."""


class AdmissionResult(StrEnum):
    """The result of an admission."""

    #: the root was admitted
    OK = "OK"
    #: no credit: the window is full
    FULL = "FULL"
    #: the cursor moved: another coordinator, or an earlier call of this one, has admitted the root
    BEHIND = "BEHIND"
    #: the run is paused
    PAUSED = "paused"
    #: the run was cancelled
    CANCELLED = "cancelled"


class Turn(StrEnum):
    """How to process a claimed unit."""

    #: beside others
    JOB = "JOB"
    #: alone: workers died while they held it
    SOLO = "SOLO"
    #: not processed: it killed a worker while it ran alone, so it is cut in two, or its row is rejected
    MEND = "MEND"


class Asker(StrEnum):
    """Who asks a question that has no answer yet."""

    #: the worker that wants it, from now on
    HERE = "HERE"
    #: another one
    ELSEWHERE = "ELSEWHERE"


@dataclass(frozen=True)
class Drain:
    """A waiting unit must run alone: finish the units in hand, then claim again, and not ahead."""

    #: The queue that holds it.
    queue: str


@dataclass(frozen=True)
class Claim:
    """A unit a worker holds; it may be committed in parts."""

    job: str
    token: str
    run: str
    epoch: int
    #: Only the rows that no part has committed yet.
    unit: Unit
    turn: Turn = Turn.JOB
    #: When it was queued, in seconds since 1970 by the clock of the process that queued it; 0 if unknown.
    since: float = 0.0
    #: Number of parts committed so far.
    part: int = 0
    #: Work already spent on rows of the unit. A commit, `fail` and `release` leave it with the rows that remain.
    unfinished: Mapping[str, Unfinished] = field(default_factory=dict)

    def piece(self, rows: Container[str] | None = None) -> Unit:
        """The unit the next part commits: these rows (None: all remaining ones).

        Compute the effects for this unit, since successors are named after their part: parts of "7" lead to
        "7+0", "7+1", ...; if the whole unit ends in one commit, its successor is "7" too.
        """
        unit = self.unit if rows is None else _with_rows(self.unit, [row for row in self.unit.rows if row.row_id in rows])
        if self.part == 0 and len(unit.rows) == len(self.unit.rows):
            return self.unit
        return msgspec.structs.replace(unit, part=f"{unit.part}+{self.part}")

    def opens(self, rows: Container[str] | None = None) -> int:
        """The change, by that part, in the rows in flight of units that were committed in part."""
        rest = self.rest(rows)
        left = len(rest.unit.rows) if rest is not None else 0
        return left - len(self.unit.rows) if self.part else left

    def rest(self, rows: Container[str] | None = None) -> Claim | None:
        """The claim on the remaining rows after that part is committed; None if there are none."""
        left = [] if rows is None else [row for row in self.unit.rows if row.row_id not in rows]
        if not left:
            return None
        unfinished = {row.row_id: self.unfinished[row.row_id] for row in left if row.row_id in self.unfinished}
        return replace(self, unit=_with_rows(self.unit, left), part=self.part + 1, unfinished=unfinished)


def _with_rows(unit: Unit, rows: list[Row]) -> Unit:
    return msgspec.structs.replace(unit, rows=rows)


@dataclass(frozen=True)
class Entry:
    """One entry of a run's stream."""

    id: str
    token: str
    message: Result | Admission
    root: int
    #: Whether it completes the root.
    done: bool = False
    #: Whether all remaining units of the root wait for a later phase.
    suspended: bool = False


@dataclass(frozen=True)
class AdmissionProgress:
    """The progress of a run's admission."""

    #: Roots admitted in this epoch.
    cursor: int
    #: Roots this epoch admits in all; None until the input ends.
    total: int | None
    state: str
    #: Roots that are admitted and not acknowledged.
    live: set[int]
    #: The root admitted last in this epoch; -1 if there is none.
    last: int = -1
    #: The reason why the epoch cannot go on: a unit is lost or unreadable. Its rows come back in the next epoch.
    damaged: str = ""
    #: Roots that left this epoch with units for a later phase.
    suspended: int = 0
    #: The budget that is spent or reserved, and whether the next request does not fit and nothing is in flight.
    used: Amounts = field(default_factory=Amounts)
    exhausted: bool = False
    #: Digest of an engine with a budget -> the amounts that the run has spent and reserved of it.
    of_engines: Mapping[str, Amounts] = field(default_factory=dict)
    #: If an engine's budget does not suffice: the engine's digest, and the amounts that all runs have spent and reserved.
    exhausted_by: str = ""
    of_all_runs: Amounts = field(default_factory=Amounts)
    #: Whether this is still the run's epoch in Redis.
    is_current: bool = True
    #: The reservation that does not fit.
    needed: Amounts = field(default_factory=Amounts)

    @property
    def complete(self) -> bool:
        """Whether everything was admitted, and everything this epoch computes is durable."""
        return self.total is not None and self.cursor >= self.total and not self.live
