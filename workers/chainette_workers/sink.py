"""The sink: reads a run's stream in order, makes it durable, and gives back the credit.

It owns the directory's lock, the log and the epoch. Killed at any point, the next one attaches where the log
ends; an epoch is raised only where Redis does not continue the log (PROTOCOL 7 to 10).
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from chainette.core.plan import Plan
from chainette.fleet.keys import RunKeys
from chainette.fleet.messages import Admission, Result
from chainette.fleet.queue import ANCHOR, Entry, FleetQueue, Lost
from chainette.hooks import Hook
from chainette.io.events import Event, RunResumed, RunStarted
from chainette.io.session import graph_of
from chainette.io.writer import Admitted, Commit, Item, RunWriter
from chainette.limits import RejectWatch
from chainette.records import CHAIN_INPUT, Effects, Outcome, Unit, Usage

__all__ = ["Sink"]


@dataclass
class Sink:
    """One run's sink. `open` once, then `step` until `complete`."""

    queue: FleetQueue
    writer: RunWriter
    plan: Plan
    run: str
    #: What workers must know of the run; written when an epoch is installed.
    fields: Mapping[str, str | int]
    hook: Hook
    rejects: RejectWatch
    owner: str = field(default_factory=lambda: secrets.token_hex(8))
    _open_roots: set[int] = field(default_factory=set)

    @property
    def keys(self) -> RunKeys:
        return RunKeys(self.run, self.writer.epoch)

    @property
    def queues(self) -> list[str]:
        """RQ's names of the run's queues."""
        names = [*self.plan.nodes, *(fork.id for fork in self.plan.forks.values() if fork.joins)]
        return [self.keys.queue(self.plan.engine_of(name), name) for name in names]

    def open(self, expected: int | None) -> None:
        """Attaches to the epoch of the log where Redis continues it, else raises the epoch."""
        position = self.writer.state.position
        if position is not None and not self.writer.raised:
            try:
                self.queue.attach(self.run, self.writer.epoch, self.owner, position)
                self._say([RunResumed(fingerprint=self.plan.fingerprint, expected=expected, anchor=position)])
                self._acknowledge()
                return
            except Lost:
                pass
        self.raise_epoch(expected)

    def raise_epoch(self, expected: int | None) -> None:
        """A new epoch, in the log before Redis: what is not durable will be admitted again."""
        self._open_roots.clear()
        token = secrets.token_hex(8)
        while True:
            anchor = (ANCHOR, token)
            if self.writer.state.started_at:
                self.writer.raise_epoch()
                graph = graph_of(self.plan, keyed=self.writer.keyed)
                changed = graph if graph != self.writer.state.graph else None
                self._say([RunResumed(fingerprint=self.plan.fingerprint, expected=expected, graph=changed, anchor=anchor)])
            else:
                self._say([RunStarted(expected=expected, anchor=anchor)])
            try:
                self.queue.install(self.run, self.writer.epoch, self.owner, token, self.queues, self.fields)
                return
            except Lost:
                continue

    def _say(self, events: Sequence[Event]) -> None:
        for event in self.writer.record(events):
            self.hook.on_event(event)

    def step(self) -> bool:
        """Makes what has come durable; False where nothing had.

        Raises:
            Lost: Redis does not continue the log, or another sink took over.
            DiskError: the disk refused.
        """
        position = self.writer.state.position
        assert position is not None
        entries = self.queue.read(self.keys, position)
        if not entries:
            return False
        items: list[Item] = []
        for entry in entries:
            if entry.root not in self._open_roots:
                items.append(self._admitted(entry.root))
            items.append(_commit(entry))
            if entry.done:
                self._open_roots.discard(entry.root)
        committed = self.writer.commit(items)
        self._acknowledge([entry.root for entry in entries if entry.done])
        for event in committed.events:
            self.hook.on_event(event)
        for entry in entries:
            if isinstance(entry.message, Result):
                self.rejects.count(entry.message.node, entry.message.taken, len(entry.message.rejected))
        return True

    def _admitted(self, root: int) -> Admitted:
        record = self.queue.record(self.keys, root)
        self._open_roots.add(root)
        return Admitted(root, record.rows, record.records, self.writer.durable(root))

    def _acknowledge(self, roots: list[int] | None = None) -> None:
        """Finished roots go; at an attach, all that are finished in the log and still live in Redis."""
        position = self.writer.state.position
        assert position is not None
        if roots is None:
            roots = [root for root in self.queue.progress(self.keys).live if self.writer.state.is_done(root)]
        self.queue.ack(self.keys, self.owner, position, roots)

    @property
    def complete(self) -> bool:
        """Whether every root of the run is durable."""
        return self.queue.progress(self.keys).complete

    def close(self) -> None:
        """Takes the complete run out of Redis."""
        self.queue.close(self.run, self.writer.epoch, self.owner, self.queues)


def _commit(entry: Entry) -> Commit:
    """A stream entry as the writer takes it."""
    pos = (entry.id, entry.token)
    match entry.message:
        case Result() as result:
            outcome = Outcome(result.outputs, result.rejected, result.dropped, result.usage, Effects())
            return Commit(Unit(result.node, entry.root, result.part, "", []), outcome, entry.done, pos, result.taken)
        case Admission(rejected=rejected):
            outcome = Outcome([], rejected, [], Usage(), Effects())
            return Commit(Unit(CHAIN_INPUT, entry.root, "", "", []), outcome, entry.done, pos, 0)
        case None:
            raise Lost("an anchor in the middle of a stream")
