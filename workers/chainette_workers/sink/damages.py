"""Invalid data in Redis and lost units: each leads to a new epoch, but not without end."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

import anyio.from_thread

from chainette.errors import ChainetteError, RunStopped
from chainette.fleet.protocol.queue_values import LEASE

__all__ = ["Damages"]

_log = logging.getLogger("chainette")

#: The most new epochs in one session without a root that becomes complete in between.
_MOST = 3

#: Seconds between two looks while a new epoch waits.
_IDLE = 0.02


@dataclass
class Damages:
    """The damages of one session so far."""

    #: Called while a new epoch waits.
    tend: Callable[[bool], None]
    #: Damages since the last time that a root became complete, and the end of the wait for the next one.
    _number: int = 0
    _until: float = 0.0
    #: The number of complete roots at the last one.
    _done: int = -1

    def wait(self, error: ChainetteError, done: int) -> None:
        """Waits until the next epoch may replace the damaged one: a lease at first, twice as long each time. `done` is the
        number of complete roots.

        Raises:
            RunStopped: too many epochs have failed in a row.
        """
        self._number = self._number + 1 if done == self._done else 1
        self._done = done
        if self._number > _MOST:
            raise RunStopped(f"given up after {_MOST} new epochs: {error}")
        moved = False
        while time.monotonic() < self._until:
            anyio.from_thread.check_cancelled()
            time.sleep(_IDLE)
            self.tend(moved)
        self._until = time.monotonic() + LEASE * 2 ** (self._number - 1)
        _log.warning("a new epoch begins: %s", error)
