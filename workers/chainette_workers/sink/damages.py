"""Data in Redis that cannot be right, and units that are gone: each is answered by a new epoch, but not for ever."""

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

#: New epochs that one session begins without any root becoming complete in between.
_MOST = 3

#: Seconds between two looks while a new epoch waits.
_IDLE = 0.02


@dataclass
class Damages:
    """The damages of one session so far."""

    #: Called while a new epoch waits.
    tend: Callable[[bool], None]
    #: Damages since a root became complete the last time, and until when the next one waits.
    _number: int = 0
    _until: float = 0.0
    #: How many roots were complete at the last one.
    _done: int = -1

    def wait(self, error: ChainetteError, done: int) -> None:
        """Waits until the next epoch may replace what is damaged, now that so many roots are complete: a lease at first,
        twice as long each time.

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
