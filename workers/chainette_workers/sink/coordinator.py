"""The coordinator: admits roots in order while there is credit. It holds no rows and no state of its own.

Any two of them agree, since admission is one script that asks where the cursor is (PROTOCOL 6).
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from chainette.core.flow import Durable, frontier
from chainette.core.plan import Plan
from chainette.fleet.protocol.keys import RunKeys
from chainette.fleet.protocol.messages import BadMessage, RootRecord
from chainette.fleet.redis.queue import Admitted, LeasedQueue
from chainette.io.inputs.roots import Root
from chainette.records import CHAIN_INPUT, Read

__all__ = ["Coordinator", "read_for_live_roots"]


def read_for_live_roots(queue: LeasedQueue, keys: RunKeys) -> Read | None:
    """How far the input was read for roots that were admitted and may not be in the log yet.

    Raises:
        Lost: the epoch is over.
        BadMessage: the rows of a live root are not what they must be.
    """
    while live := queue.progress(keys).live:
        try:
            return queue.record(keys, max(live)).read
        except BadMessage:
            if max(live) in queue.progress(keys).live:  # else it has just become durable
                raise
    return None


@dataclass
class Coordinator:
    """Admits the roots that were not complete when the epoch began."""

    queue: LeasedQueue
    keys: RunKeys
    plan: Plan
    #: Those of them behind a root (-1: all); called again when another coordinator went ahead.
    pending: Callable[[int], Iterator[Root]]
    #: What was durable of a root when the epoch began.
    durable: Callable[[int], Durable | None]
    _cursor: int = -1
    _roots: Iterator[Root] | None = None
    _next: Root | None = None
    finished: bool = False

    def step(self) -> bool:
        """Admits the next root; False where it has to wait, or is finished.

        Raises:
            Lost: the epoch is over.
        """
        if self.finished:
            return False
        if self._roots is None:
            progress = self.queue.progress(self.keys)
            self._cursor = progress.cursor
            self._roots = self.pending(progress.last)
        root = self._next or next(self._roots, None)
        if root is None:
            self.finished = self.queue.end_of_input(self.keys, self._cursor)
            self._roots = self._roots if self.finished else None
            return False
        self._next = root
        match self._admit(root):
            case Admitted.OK:
                self._cursor += 1
                self._next = None
                return True
            case Admitted.BEHIND:
                self._roots = self._next = None
                return True
            case Admitted.FULL | Admitted.PAUSED | Admitted.CANCELLED:
                return False

    def _admit(self, root: Root) -> Admitted:
        durable = self.durable(root.number)
        effects = frontier(self.plan, root.number, root.rows, durable)
        known = durable.rejected(CHAIN_INPUT) if durable is not None else ()
        bad = [rejection for rejection in root.bad if rejection.row_id not in known]
        record = RootRecord(root.rows, root.records, root.read)
        token = secrets.token_hex(8)
        return self.queue.admit(self.keys, self.plan, self._cursor, root.number, record, bad, effects, token)
