"""What a queue says: claims, entries of a run's stream, how far a run is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from chainette.fleet.protocol.messages import Admission, Result
from chainette.records import Unit

__all__ = ["ANCHOR", "LEASE", "Admitted", "Cancelled", "Claim", "Drain", "Entry", "Lost", "Progress", "RunInfo", "Turn"]

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
    """A unit in a worker's hands."""

    job: str
    token: str
    run: str
    epoch: int
    unit: Unit
    turn: Turn = Turn.JOB
    #: When it was queued, by the clock of the process that did.
    since: str = ""


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


@dataclass(frozen=True)
class RunInfo:
    """What Redis says of a run."""

    run: str
    #: -1 where it was handed over and no sink has begun it yet.
    epoch: int
    state: str
    fields: Mapping[str, str]

    @property
    def queues(self) -> list[str]:
        """RQ's names of its queues."""
        return self.fields.get("queues", "").split()
