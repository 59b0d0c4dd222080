"""How far a run may go before it stops itself."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from chainette.errors import RunStopped
from chainette.utils.plurals import counted

__all__ = ["Limits", "RejectWatch"]

#: Rows of a step before its rate of rejections is looked at.
_SAMPLE = 200


@dataclass(frozen=True)
class Limits:
    """How far a run may go."""

    #: Live rows; None derives it from the engines.
    window: int | None = None
    #: Seconds an engine may not answer before the run gives up.
    engine_patience: float = 600.0
    #: Share of rejected rows of one step at which the run stops.
    max_reject_rate: float | None = None


@dataclass
class _Tally:
    """The rows of one step."""

    taken: int = 0
    rejected: int = 0
    #: Rows in flight of units that were committed in part.
    open: int = 0


class RejectWatch:
    """Counts rows per step and stops a run that rejects too many.

    Rejections come before slow good answers of the same unit. So if parts of a unit are committed, its rows in flight count as
    rows of the step too; otherwise the first parts would make the step look worse than it is.
    """

    def __init__(self, limit: float | None) -> None:
        self._limit = limit
        self._tallies: defaultdict[str, _Tally] = defaultdict(_Tally)

    def begin(self) -> None:
        """A new epoch: nothing is in flight."""
        for tally in self._tallies.values():
            tally.open = 0

    def count(self, step: str, taken: int, rejected: int, opened: int = 0) -> None:
        """Counts the rows of a commit. `opened` is the change in the rows in flight of units with committed parts.

        Raises:
            RunStopped: the step has reached the limit.
        """
        tally = self._tallies[step]
        tally.taken += taken
        tally.rejected += rejected
        tally.open += opened
        rows = tally.taken + max(0, tally.open)
        if self._limit is not None and tally.taken >= _SAMPLE and tally.rejected / rows >= self._limit:
            rejected_rows = f"{tally.rejected:,} of {counted(rows, 'row')}"
            raise RunStopped(
                f"step {step!r} rejected {rejected_rows}, which reaches --max-reject-rate {self._limit:g}; "
                "`chainette rejected DIR` shows why"
            )
