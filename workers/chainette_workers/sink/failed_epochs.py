"""Epochs that cannot go on, since Redis has invalid data, lost some, or was written by others: each leads to a new one, but
not at once, and not without end."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

import anyio.from_thread

from chainette.errors import ChainetteError, RunStopped
from chainette.fleet.protocol.queue_values import LEASE

__all__ = ["FailedEpochs"]

_log = logging.getLogger("chainette")

#: The most new epochs after damage without a root that becomes complete in between; the most times that the wait doubles.
_MOST = 3

#: Seconds between two looks while a new epoch waits.
_IDLE = 0.02


@dataclass
class FailedEpochs:
    """The epochs of one session that could not go on."""

    #: Called while a new epoch waits.
    tend: Callable[[bool], None]
    #: Their number since the last time that a root became complete, and how many of them were damaged.
    _epochs: int = 0
    _damages: int = 0
    #: The end of the wait for the next one.
    _until: float = 0.0
    #: The number of complete roots at the last one.
    _done: int = -1

    def wait_after_damage(self, error: ChainetteError, done: int) -> None:
        """As `wait`, but not without end.

        Raises:
            RunStopped: too many epochs have failed in a row.
        """
        self._look(done)
        self._damages += 1
        if self._damages > _MOST:
            raise RunStopped(f"given up after {_MOST} new epochs: {error}")
        self.wait(str(error), done)

    def wait(self, why: str, done: int) -> None:
        """Waits until another epoch may begin: not the first time, then for a lease after the last one, then twice as long
        each time. `done` is the number of complete roots."""
        self._look(done)
        self._epochs += 1
        moved = False
        while time.monotonic() < self._until:
            anyio.from_thread.check_cancelled()
            time.sleep(_IDLE)
            self.tend(moved)
        self._until = time.monotonic() + LEASE * 2 ** min(self._epochs - 1, _MOST)
        _log.warning("a new epoch begins: %s", why)

    def _look(self, done: int) -> None:
        if done != self._done:
            self._epochs, self._damages, self._done = 0, 0, done
