"""The sink of a local run: makes the stream durable group by group, tells it, and gives back the credit.

The queue lives in the same process, so the sink checks nothing that comes from it and keeps its place in memory.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Protocol

import anyio
import anyio.to_thread

from chainette.core.durable import Durable
from chainette.core.streaming import Finished
from chainette.engine.budget import Amounts, Budget
from chainette.fleet.memory.memory_queue import MemoryQueue
from chainette.fleet.protocol.keys import RunKeys
from chainette.fleet.protocol.queue_values import ANCHOR, Entry
from chainette.hooks import Hook
from chainette.io.rundir.accepted_rows import AcceptedRows
from chainette.io.rundir.live_roots import Admitted, Commit, Committed, Item
from chainette.records import Row
from chainette.run.limits import RejectWatch
from chainette.run.stream_commits import admitted, commit_of, count_rejects, finished_roots, items_of

__all__ = ["LocalSink", "Writer"]

#: The most entries of one group; more than any window holds.
_ALL = 1 << 20


class Writer(Protocol):
    """Makes outcomes durable."""

    def commit(self, group: Sequence[Item]) -> Committed: ...
    def durable(self, root: int) -> Durable | None: ...
    @property
    def accepted(self) -> AcceptedRows | None: ...
    @property
    def budget(self) -> Budget | None: ...
    @property
    def used(self) -> Mapping[str, Amounts]:
        """The part of the budget that is spent or reserved: under "" of the run, else of an engine."""

    def readmit(self) -> None: ...


@dataclass
class LocalSink:
    """One run's sink, over all its epochs."""

    queue: MemoryQueue
    writer: Writer
    hook: Hook
    rejects: RejectWatch
    #: Gets the finished rows of each root; may wait.
    deliver: Callable[[list[Row]], Awaitable[None]] | None = None
    keys: RunKeys = field(init=False)
    #: Whether the writer gave up within a group, so that nothing may be written after it.
    torn: bool = False
    _position: tuple[str, str] = (ANCHOR, "")
    _noted: str = "0-0"
    #: The last note that is durable, and the event that wakes those who wait for one.
    _written: str = "0-0"
    _wrote: anyio.Event = field(default_factory=anyio.Event)
    #: The rows of a root that were durable when it was read.
    _durable: dict[int, Durable | None] = field(default_factory=dict)
    #: A thread of its own, so that the writer never waits for the user's functions.
    _own_thread: anyio.CapacityLimiter = field(default_factory=lambda: anyio.CapacityLimiter(1))

    def begin(self, keys: RunKeys, token: str) -> None:
        """A new epoch, with this anchor; the stream before it is at its end."""
        self.keys, self._position = keys, (ANCHOR, token)
        self._durable.clear()
        self.writer.readmit()
        self.rejects.begin()

    def durable(self, root: int) -> Durable | None:
        """The rows of a root that earlier epochs and sessions made durable. The writer is asked once: it may forget them."""
        self._durable[root] = found = self.writer.durable(root)
        return found

    async def write(self) -> bool:
        """Makes all that has come durable, as one group, then gives back its credit; False if nothing had come.

        Raises:
            RunStopped: too many rows of a step were rejected.
            DiskError: the disk is full, or a write failed.
        """
        events, entries = self.take()
        if not events and not entries:
            return False
        committed = await self._commit(events, entries)
        self._written = self._noted
        self._wrote.set()
        self._wrote = anyio.Event()
        self._tell(committed)
        if self.deliver is not None:
            for rows in filter(None, committed.finished):
                await self.deliver(rows)
        count_rejects(self.rejects, entries)
        if entries:
            self.queue.ack(self.keys, "", self._position, finished_roots(entries))
        return True

    async def caught_up(self) -> None:
        """Waits until every note so far is durable."""
        noted = self.queue.noted(self.keys.run)
        while int(self._written.partition("-")[2]) < noted:
            await self._wrote.wait()

    async def flush(self) -> None:
        """Makes the last entries durable, on the way out: nobody asks for credit any more."""
        events, entries = self.take()
        if (events or entries) and not self.torn:
            for event in (await self._commit(events, entries)).events:
                self.hook.on_event(event)

    def take(self) -> tuple[Sequence[Item], list[Entry]]:
        """Notes and entries that are not durable yet; notes come first, since they happened first."""
        self._noted, events = self.queue.notes(self.keys.run, self._noted)
        entries = self.queue.read(self.keys, self._position, _ALL)
        if entries:
            self._position = (entries[-1].id, entries[-1].token)
        return events, entries

    async def _commit(self, events: Sequence[Item], entries: list[Entry]) -> Committed:
        self.torn = True
        items = [*events, *items_of(self._opened(entries), ((entry, _commit_of(entry)) for entry in entries))]
        with anyio.CancelScope(shield=True):  # entries that were taken are written, whatever happens
            committed = await anyio.to_thread.run_sync(self.writer.commit, items, limiter=self._own_thread)
        self.torn = False
        return committed

    def _opened(self, entries: list[Entry]) -> list[Admitted]:
        """Roots of which these are the first entries."""
        roots = [root for root in dict.fromkeys(entry.root for entry in entries) if root in self._durable]
        return [admitted(self.queue, self.keys, root, self._durable.pop(root)) for root in roots]

    def _tell(self, committed: Committed) -> None:
        for event in committed.events:
            self.hook.on_event(event)
        if self.hook.streams:
            for row in chain.from_iterable(committed.finished):
                self.hook.on_stream(Finished(row))


def _commit_of(entry: Entry) -> Commit | None:
    """An entry as the writer takes it; None if it only says that the root waits for a later phase."""
    commit = commit_of(entry)
    return None if entry.suspended and not commit.taken and not commit.outcome.rejected else commit
