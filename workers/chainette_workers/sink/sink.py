"""The sink: reads a run's stream in order, makes it durable, and gives back the credit.

It owns the directory's lock, the log and the epoch. Killed at any point, the next one attaches where the log
ends; an epoch is raised only if Redis does not continue the log (PROTOCOL 7 to 10).
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from chainette.core.durable import Durable
from chainette.core.plan import Plan
from chainette.engine.budget import Amounts
from chainette.errors import BudgetSpent
from chainette.fleet.protocol.contract import LeasedQueue
from chainette.fleet.protocol.keys import RunKeys
from chainette.fleet.protocol.messages import Aside, PutAside, Result
from chainette.fleet.protocol.queue_values import ANCHOR, AdmissionProgress, Entry, Lost
from chainette.fleet.protocol.run_fields import used_fields
from chainette.hooks import Hook
from chainette.io.inputs.readers import InputFile
from chainette.io.rundir.event_types import Event, RunResumed, RunStarted
from chainette.io.rundir.graph import Graph
from chainette.io.rundir.graph_of_plan import graph_of
from chainette.io.rundir.live_roots import Admitted
from chainette.io.rundir.writer import RunWriter
from chainette.records import encode
from chainette.run.budget_reservation import budget_used, is_spent
from chainette.run.limits import RejectWatch
from chainette.run.stream_commits import admitted_as, commit_of, count_rejects, finished_roots, items_of
from chainette.utils.plurals import counted
from chainette_workers.sink.acceptance import AcceptedRoot
from chainette_workers.sink.input_check import InputCheck

__all__ = ["Sink"]

#: The most characters and bytes that are kept of a message put aside.
_LONGEST = 4000


@dataclass
class Sink:
    """One run's sink. `open` once, then `step` until `complete`."""

    queue: LeasedQueue
    writer: RunWriter
    plan: Plan
    run: str
    #: Fields of the run's record that workers need; written when an epoch is installed.
    fields: Mapping[str, str | int | float]
    hook: Hook
    rejects: RejectWatch
    source: InputFile
    #: Phases the run has gone through.
    phase: int = 0
    #: The address of the Redis, without its password, if it outlives the session; else "".
    redis: str = ""
    #: The number of the order that it follows.
    order: int = 0
    #: Engines whose units wait for a later phase; None until Redis was told.
    barred: frozenset[str] | None = None
    owner: str = field(default_factory=lambda: secrets.token_hex(8))
    #: The numbers against which roots are checked.
    _input: InputCheck = field(init=False)
    #: Roots the writer holds open.
    _live: dict[int, AcceptedRoot] = field(default_factory=dict)
    #: Engines whose units had to wait for a later phase at any time of this epoch; None if another sink began it.
    _ever_barred: frozenset[str] | None = None
    #: Whether Redis may not know the position of the last durable entry.
    _doubted: bool = False
    #: Token of the anchor of an epoch that is in the log and not yet in Redis; "" if there is none.
    _installing: str = ""

    @property
    def keys(self) -> RunKeys:
        return RunKeys(self.run, self.writer.epoch)

    @property
    def queues(self) -> list[str]:
        """RQ's names of the run's queues."""
        return [self.keys.queue(engine, name) for engine, name in self._places]

    def _queues_of(self, engines: Collection[str]) -> list[str]:
        return [self.keys.queue(engine, name) for engine, name in self._places if engine in engines]

    @property
    def _places(self) -> list[tuple[str, str]]:
        """(engine, node) of everything that has a queue."""
        return [(self.plan.engine_of(name), name) for name in self.plan.depths]

    def open(self, expected: int | None) -> None:
        """Attaches to the epoch of the log if Redis continues it, else raises the epoch.

        A chain with other settings begins an epoch, so that the log has them and workers are told of its files.
        """
        self._input = InputCheck(self.source, self.plan.batch_size, lambda: self.writer.state.roots.starts, expected)
        position = self.writer.state.position
        if position is not None and not self.writer.raised and self._changed_graph() is None:
            try:
                self.queue.attach(self.run, self.writer.epoch, self.owner, position)
                self._settle()
                self._say([self._resumed(expected, position)])
                return
            except Lost:
                pass
        self.raise_epoch(expected)

    def begin(self, expected: int | None) -> None:
        """As `open`, if the queue in Redis may not be attached to."""
        self._input = InputCheck(self.source, self.plan.batch_size, lambda: self.writer.state.roots.starts, expected)
        self.raise_epoch(expected)

    def raise_epoch(self, expected: int | None) -> None:
        """Begins an epoch, in the log before Redis: rows that are not durable will be admitted again. May be repeated if
        Redis did not answer.

        Raises:
            Lost: another sink has just begun one.
        """
        if not self._installing:
            self._log_epoch(expected)
        try:
            self.queue.install(self.run, self.writer.epoch, self.owner, self._installing, self.queues, self._fields(expected))
        except Lost:
            self._installing = ""
            raise
        self._installing = ""

    def _fields(self, expected: int | None) -> dict[str, str | int | float]:
        """The run's record in Redis: all that workers need, and the numbers from which progress is counted."""
        known = -1 if expected is None else expected
        barred = " ".join(self._queues_of(self.barred or ()))
        used = used_fields(self.writer.used, self.plan.engines) if self.writer.budget is not None else {}
        return {**self.fields, **used, "records_before": self.writer.state.records, "expected": known, "barred": barred}

    def _log_epoch(self, expected: int | None) -> None:
        self._live.clear()
        self.rejects.begin()
        self._ever_barred = self.barred or frozenset()
        self._doubted = False
        token = secrets.token_hex(8)
        anchor = (ANCHOR, token)
        if self.writer.state.started_at:
            self.writer.raise_epoch(self.queue.latest_epoch(self.keys))
            self._say([self._resumed(expected, anchor, self._changed_graph())])
        else:
            self._say([RunStarted(expected=expected, anchor=anchor, **self.writer.charged)])
        self._installing = token

    def _changed_graph(self) -> Graph | None:
        """The plan as graph.json; None if the log has it already."""
        graph = graph_of(self.plan, self.writer.added)
        return graph if graph != self.writer.state.graph else None

    def _resumed(self, expected: int | None, anchor: tuple[str, str], graph: Graph | None = None) -> RunResumed:
        found = self.writer.reopened
        return RunResumed(
            fingerprint=self.plan.fingerprint,
            expected=expected,
            graph=graph,
            anchor=anchor,
            phase=self.phase,
            redis=self.redis,
            order=self.order,
            input=found.input,
            limit=found.limit,
            records=found.records,
            **self.writer.charged,
            accept=found.accept,
        )

    def _say(self, events: Sequence[Event]) -> None:
        for event in self.writer.record(events):
            self.hook.on_event(event)

    def step(self) -> bool:
        """Makes the entries that have come durable; False if there are none.

        Raises:
            Lost: Redis does not continue the log, or another sink took over.
            PutAside: an entry is invalid; the rest is durable, and a new epoch must begin.
            DiskError: the disk is full, or a write failed.
        """
        if self._doubted:
            self._settle()
        position = self.writer.state.position
        assert position is not None
        try:
            entries = self.queue.read(self.keys, position)
        except PutAside as error:
            if not error.strays:
                raise
            self.queue.put_aside(self.run, error.asides, self.writer.epoch)
            self.hook.on_aside(len(error.asides))
            return True
        if not entries:
            return False
        opened = self._opened(entries)
        accepted, refused = self._accepted(entries)
        if accepted:
            self._make_durable(accepted, opened)
        if refused:
            raise PutAside([*refused.values()])
        return True

    def _opened(self, entries: list[Entry]) -> dict[int, Admitted]:
        """Roots of which this is the first entry, as they were admitted; without invalid ones."""
        opened, live = {}, {}
        for root in dict.fromkeys(entry.root for entry in entries if entry.root not in self._live):
            if self.writer.has_ended(root):
                continue
            record = self.queue.record(self.keys, root)
            if self._input.fault(root, record):
                continue
            durable = self.writer.durable(root)
            opened[root] = admitted_as(root, record, durable)
            ids = self._input.ids(root)[: record.records]
            accepted = durable.copy() if durable is not None else Durable()  # it has entries before the writer
            live[root] = AcceptedRoot(self.plan, root, record.rows, accepted, ids)
        self._live |= live  # all or none, as the writer: Redis may fail in between
        return opened

    def _accepted(self, entries: list[Entry]) -> tuple[list[Entry], dict[int, Aside]]:
        """Entries that may become durable; and the first one of each root that may not."""
        accepted: list[Entry] = []
        refused: dict[int, Aside] = {}
        for entry in entries:
            live = self._live.get(entry.root)
            if entry.root in refused:
                continue
            words = self._unwritable(entry) or (live.refuse(entry, self._ever_barred) if live else self._stray(entry.root))
            if words:
                refused[entry.root] = Aside(words[:_LONGEST], entry.id, encode(entry.message)[:_LONGEST])
                continue
            accepted.append(entry)
            if entry.done or entry.suspended:
                del self._live[entry.root]
        return accepted, refused

    def _unwritable(self, entry: Entry) -> str:
        """The reason why no shard of the run can hold the rows of an entry; "" if one can."""
        result = entry.message
        node = self.plan.stations.get(result.node) if isinstance(result, Result) else None
        if node is None or not isinstance(result, Result):
            return ""
        fault = self.writer.fault(node.folder, (output.value for output in result.outputs))
        return f"root {entry.root}: {node.id!r} gave {fault}" if fault else ""

    def _stray(self, root: int) -> str:
        """The reason why a root has rows without a known origin."""
        if self.writer.has_ended(root):
            return f"root {root}: rows came after its end"
        return f"root {root}: {self._input.fault(root, self.queue.record(self.keys, root)) or 'it is not live'}"

    def _make_durable(self, entries: list[Entry], opened: dict[int, Admitted]) -> None:
        begun = {entry.root for entry in entries}
        commits = [(entry, commit_of(entry, (entry.id, entry.token))) for entry in entries]
        self._doubted = True
        committed = self.writer.commit(items_of((opened[root] for root in opened if root in begun), commits))
        self.hook.on_flush(committed.synced)
        for event in committed.events:
            self.hook.on_event(event)
        count_rejects(self.rejects, entries)
        self._acknowledge(finished_roots(entries))

    def _acknowledge(self, done: list[int]) -> None:
        """Releases durable entries and these roots in Redis; in doubt until Redis has answered."""
        position = self.writer.state.position
        assert position is not None
        self.queue.ack(self.keys, self.owner, position, done)
        self._doubted = False

    def _settle(self) -> None:
        """Acknowledges everything durable that Redis still counts as live."""
        self._acknowledge([root for root in self.progress.live if self.writer.has_ended(root)])

    def doubt(self) -> None:
        """Redis failed: the reply to an acknowledgement may be lost, or Redis may have lost its last second."""
        self._doubted = True

    def bar(self, engines: frozenset[str]) -> None:
        """Units of these engines, and of no others, wait for a later phase.

        Raises:
            Lost: another sink took over, or the epoch is gone.
        """
        if engines != self.barred:
            if self._ever_barred is not None:
                self._ever_barred |= engines  # first: Redis may have obeyed even if its reply is lost
            self.queue.bar(self.keys, self.owner, self._queues_of(engines))
            self.barred = engines

    @property
    def progress(self) -> AdmissionProgress:
        """The progress of this epoch."""
        return self.queue.progress(self.keys)

    def count_budget(self) -> BudgetSpent | None:
        """Logs the part of the budget that is spent or reserved.

        Returns an error if the next request does not fit, and no worker has a unit left: entries that can be read then are
        the last ones.
        """
        budget = self.writer.budget
        if budget is None:
            return None
        progress, used = budget_used(self.queue, self.keys, budget, self.plan.engines)
        known = self.writer.state.reserved
        if known | {"": used.used, **used.engines} != known and used.used != Amounts():
            self._say([used])
        is_over = progress.exhausted and not self.queue.is_held(self.keys)
        return is_spent(progress, budget, self.plan.engines) if is_over else None

    def damage(self, progress: AdmissionProgress) -> str:
        """Names the keys that are missing in Redis, as far as counts show it; "" if none is.

        Raises:
            Lost: another epoch has begun.
        """
        if not progress.is_current:
            raise Lost(f"run {self.run}: epoch {self.writer.epoch} is over")
        if progress.damaged or not progress.state:
            return progress.damaged or f"the record of run {self.run} is gone from Redis"
        state = self.writer.state
        ended = state.roots.done_count - state.roots.done_before + self.writer.waiting
        least = progress.cursor - progress.suspended - ended
        if len(progress.live) < least:
            return f"{counted(least - len(progress.live), 'incomplete root')} missing from Redis"
        return ""

    def missing(self) -> str:
        """Says which outstanding work of live roots nobody can ever claim; "" if there is none. For when nothing moves."""
        return self.queue.missing(self.keys, [root for root in self.progress.live if not self.writer.has_ended(root)])

    def close(self) -> None:
        """Takes the complete run out of Redis."""
        self.queue.close(self.run, self.writer.epoch, self.owner, self.queues)
