"""What a queue says: claims, entries of a run's stream, how far a run is."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, replace
from enum import StrEnum

import msgspec

from chainette.fleet.protocol.messages import Admission, Result
from chainette.records import Row, Unit

__all__ = [
    "ANCHOR",
    "LEASE",
    "Admitted",
    "Cancelled",
    "Claim",
    "Drain",
    "Entry",
    "Lost",
    "Progress",
    "Turn",
]

#: Seconds that a worker may be silent before its units are given to others.
LEASE = 6.0

#: Stream id of the anchor that every epoch's stream begins with.
ANCHOR = "0-1"


class Lost(Exception):
    """A claim, an epoch or an owner that no longer holds: what was asked for did not happen."""


class Cancelled(Exception):
    """Somebody gave the run up."""


class Admitted(StrEnum):
    """What became of an admission."""

    #: the root is in
    OK = "OK"
    #: no credit: the window is full
    FULL = "FULL"
    #: the cursor is elsewhere: another coordinator admitted, or an earlier call of this one did
    BEHIND = "BEHIND"
    #: the run is held
    PAUSED = "paused"
    #: the run was given up
    CANCELLED = "cancelled"


class Turn(StrEnum):
    """How a claimed unit is to be taken."""

    #: beside others
    JOB = "JOB"
    #: alone: workers died with it in their hands
    SOLO = "SOLO"
    #: not at all: it killed a worker while it ran alone, so it is cut in two, or its row rejected
    MEND = "MEND"


@dataclass(frozen=True)
class Drain:
    """A unit waits that must run alone: finish what is in hand, then claim again, and not ahead."""

    #: Where it waits.
    queue: str


@dataclass(frozen=True)
class Claim:
    """A unit in a worker's hands, which may be committed in parts."""

    job: str
    token: str
    run: str
    epoch: int
    #: Only the rows that no part has ended yet.
    unit: Unit
    turn: Turn = Turn.JOB
    #: When it was queued, in seconds since 1970 by the clock of the process that did; 0 if unknown.
    since: float = 0.0
    #: Parts that were committed of the unit so far.
    part: int = 0

    def piece(self, rows: Container[str] | None = None) -> Unit:
        """The unit that the next part commits: these rows (None: all that are left).

        Compute its effects for this unit, since a successor is named after the part it comes from: parts of "7" lead to
        "7+0", "7+1", ...; if the whole unit ends in one commit, its successor is "7" too.
        """
        unit = self.unit if rows is None else _with_rows(self.unit, [row for row in self.unit.rows if row.row_id in rows])
        if self.part == 0 and len(unit.rows) == len(self.unit.rows):
            return self.unit
        return msgspec.structs.replace(unit, part=f"{unit.part}+{self.part}")

    def rest(self, rows: Container[str] | None = None) -> Claim | None:
        """What stays in hand when that part is committed; None if nothing does."""
        left = [] if rows is None else [row for row in self.unit.rows if row.row_id not in rows]
        return replace(self, unit=_with_rows(self.unit, left), part=self.part + 1) if left else None


def _with_rows(unit: Unit, rows: list[Row]) -> Unit:
    return msgspec.structs.replace(unit, rows=rows)


@dataclass(frozen=True)
class Entry:
    """One entry of a run's stream."""

    id: str
    token: str
    message: Result | Admission
    root: int
    #: Whether the root is complete with it.
    done: bool = False
    #: Whether nothing is left of the root but units that wait for a later phase.
    suspended: bool = False


@dataclass(frozen=True)
class Progress:
    """How far a run's admission is."""

    #: Roots admitted in this epoch.
    cursor: int
    #: Roots that this epoch admits in all; None until the input is at its end.
    total: int | None
    state: str
    #: Roots that are admitted and not acknowledged.
    live: set[int]
    #: The root admitted last in this epoch; -1 where there is none.
    last: int = -1
    #: Why the epoch cannot go on: a unit is gone, or nobody can read it. Its rows come back with the next one.
    damaged: str = ""
    #: Roots that left this epoch with units for a later phase.
    suspended: int = 0
    #: Whether the run is in this epoch still, as far as Redis says.
    is_current: bool = True

    @property
    def complete(self) -> bool:
        """Whether everything was admitted, and made durable as far as this epoch brings it."""
        return self.total is not None and self.cursor >= self.total and not self.live
