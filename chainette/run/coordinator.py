"""The coordinator: admits roots in order while there is credit. It keeps no state of its own that a second coordinator would
lack.

Any two coordinators of a run agree, since admission is one transition that compares the cursor (PROTOCOL 6).
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from chainette.core.durable import Durable
from chainette.core.flow import frontier
from chainette.core.plan import Plan
from chainette.fleet.protocol.contract import LeasedQueue
from chainette.fleet.protocol.keys import RunKeys
from chainette.fleet.protocol.messages import BadMessage, RootRecord
from chainette.fleet.protocol.queue_values import AdmissionResult, Lost
from chainette.io.inputs.roots import WAITING, Root
from chainette.records import CHAIN_INPUT, Effects, Read, Rejection

__all__ = ["Coordinator", "read_for_live_roots"]


def read_for_live_roots(queue: LeasedQueue, keys: RunKeys) -> Read | None:
    """How far the input was read for roots that were admitted and may not be in the log yet.

    Raises:
        Lost: the epoch is over.
        BadMessage: the rows of a live root are invalid.
    """
    while live := queue.progress(keys).live:
        try:
            return queue.record(keys, max(live)).read
        except BadMessage:
            if max(live) in queue.progress(keys).live:  # else it has just become durable
                raise
    return None


@dataclass(frozen=True)
class _Next:
    """The next root, as it will be admitted. A full window refuses it many times; it is prepared once."""

    root: int
    record: RootRecord
    bad: list[Rejection]
    effects: Effects


@dataclass
class Coordinator:
    """Admits the roots that were not complete when the epoch began."""

    queue: LeasedQueue
    keys: RunKeys
    plan: Plan
    #: The pending roots after a given root (-1: all); called again when another coordinator went ahead.
    pending: Callable[[int], Iterator[Root]]
    #: The rows of a root that were durable when the epoch began.
    durable: Callable[[int], Durable | None]
    #: Called with the rejections of a root's bad lines, once it is admitted.
    tell: Callable[[list[Rejection]], None] = lambda _bad: None
    #: Whether a root may begin: not if the rows of those before it may be enough (`AcceptedRows.admits`).
    admits: Callable[[int], bool] = lambda _root: True
    _cursor: int = -1
    _roots: Iterator[Root] | None = None
    _next: _Next | None = None
    #: The lowest number that the next root can have.
    _following: int = 0
    #: Set once the number of roots of this epoch is known: at the end of the input, or if the others need a later phase.
    finished: bool = False
    #: Whether the next root is being read, from a source that takes its time.
    waits: bool = False

    def step(self) -> bool:
        """Admits the next root; False if it has to wait, or if every root is in.

        Raises:
            Lost: the epoch is over.
        """
        if self.finished:
            return False
        if self._next is None and not self._prepare():
            return False
        assert self._next is not None
        match self._admit(self._next):
            case AdmissionResult.OK:
                self._cursor += 1
                self._next = None
                return True
            case AdmissionResult.BEHIND:
                self._roots = self._next = None
                return True
            case AdmissionResult.FULL | AdmissionResult.PAUSED | AdmissionResult.CANCELLED:
                return False

    def _prepare(self) -> bool:
        """Reads the next root; False at the end of the input, which the queue is told."""
        if self._roots is None:
            progress = self.queue.progress(self.keys)
            self._cursor = progress.cursor
            self._roots, self._following = self.pending(progress.last), progress.last + 1
        if not self.admits(self._following):
            self._hold()
            return False
        root = next(self._roots, None)
        self.waits = root is WAITING
        if self.waits:
            self._hold()
            return False
        if root is None:
            self._end()
            return False
        self._following = root.number + 1
        durable = self.durable(root.number)
        known = durable.rejected(CHAIN_INPUT) if durable is not None else ()
        bad = [rejection for rejection in root.bad if rejection.row_id not in known]
        effects = frontier(self.plan, root.number, root.rows, durable)
        self._next = _Next(root.number, RootRecord(root.rows, root.records, root.read), bad, effects)
        return True

    def _end(self) -> None:
        """No more roots are admitted in this epoch."""
        self.finished = self.queue.end_of_input(self.keys, self._cursor)
        self._roots = self._roots if self.finished else None

    def _hold(self) -> None:
        """Looks at the queue while the next root may not begin, or is not there yet.

        If the queue has gone back to before roots were admitted, they are read anew. The epoch ends if every root that may
        begin waits for a later phase.

        Raises:
            Lost: the epoch is over.
        """
        progress = self.queue.progress(self.keys)
        if not progress.is_current:
            raise Lost(f"run {self.keys.run}: epoch {self.keys.epoch} is over")
        if progress.cursor != self._cursor:
            self._roots = None
        elif progress.suspended and not progress.live and not self.admits(self._following):
            self._end()

    def _admit(self, root: _Next) -> AdmissionResult:
        token = secrets.token_hex(8)
        admitted = self.queue.admit(self.keys, self.plan, self._cursor, root.root, root.record, root.bad, root.effects, token)
        if admitted is AdmissionResult.OK:
            self.tell(root.bad)
        return admitted
