"""A run of the in-memory queue in one epoch: its roots, forks, units and stream."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from time import time

import msgspec

from chainette.core.plan import Plan
from chainette.fleet.memory.reservations import RunBudget
from chainette.fleet.protocol.contract import MOST_ANSWER_BYTES, MOST_ANSWERS
from chainette.fleet.protocol.keys import RunKeys
from chainette.fleet.protocol.messages import Admission, Result, RootRecord
from chainette.fleet.protocol.queue_values import ANCHOR, Claim, Entry
from chainette.io.rundir.event_types import Event
from chainette.records import Effects, Partial, Row, Scope, Unfinished, Unit
from chainette.utils.recent_values import Recent

__all__ = ["Job", "LiveRoot", "RunInMemory", "Stream", "UnitQueue"]


@dataclass(slots=True)
class Job:
    """A unit, its remaining rows, and its holder."""

    name: str
    unit: Unit
    queue: str
    #: Seconds since 1970.
    since: float
    #: Whether it merges branches.
    joins: bool = False
    #: Parts committed so far, and the token of the last.
    part: int = 0
    done: str = ""
    token: str = ""
    holder: str = ""
    ahead: bool = False
    solo: bool = False
    #: Whether it waits for a time.
    delayed: bool = False
    strikes: int = 0
    deaths: int = 0
    pardons: int = 0
    #: Work already spent on its rows.
    unfinished: Mapping[str, Unfinished] = field(default_factory=dict)

    @property
    def is_fresh(self) -> bool:
        """Whether the unit may be merged with another: it is no join, no work was done on its rows, and no worker died with
        it."""
        return not (self.joins or self.part or self.strikes or self.unfinished)

    @property
    def is_broken(self) -> bool:
        return self.deaths >= 2 or (self.deaths >= 1 and len(self.unit.rows) > 1)


@dataclass(slots=True)
class UnitQueue:
    """The units that wait in one queue, by name."""

    ready: deque[str] = field(default_factory=deque)
    #: Units that run alone, units that killed a worker even so, and the worker whose turn it is to run one.
    solo: deque[str] = field(default_factory=deque)
    broken: deque[str] = field(default_factory=deque)
    turn: str = ""
    turn_ends: float = 0.0
    #: Heap of (due, number of the call, unit).
    delayed: list[tuple[float, int, str]] = field(default_factory=list)

    def __iter__(self) -> Iterator[str]:
        yield from (*self.ready, *self.solo, *self.broken)


@dataclass(slots=True)
class OpenFork:
    """An executed fork: its rows, and the outputs of its branches so far."""

    opened: Scope
    queue: str
    partials: list[Partial] = field(default_factory=list)
    stopped: list[str] = field(default_factory=list)

    def join(self, root: int) -> Unit:
        """The unit that merges the branches."""
        rows: dict[str, list[Row]] = {}
        for partial in self.partials:
            rows.setdefault(partial.branch, []).extend(partial.rows)
        opened = self.opened
        return Unit(opened.fork, root, f"{opened.part}j", opened.parent, opened.base, rows, self.stopped)


@dataclass(slots=True)
class LiveRoot:
    """A root that is admitted and not acknowledged."""

    record: RootRecord
    #: Bytes of its rows, if the run bounds them.
    size: int
    #: Rows of its units; units of a later phase do not count.
    outstanding: int = 0
    #: Scope -> its outstanding members: names of units, "S:" and a scope below, "P:" and a unit of a later phase.
    members: dict[str, set[str]] = field(default_factory=dict)
    forks: dict[str, OpenFork] = field(default_factory=dict)

    @property
    def live_rows(self) -> int:
        """The rows admitted, or those outstanding if rows were expanded."""
        return max(len(self.record.rows), self.outstanding)


class Stream:
    """The entries of a run after an anchor, numbered without gaps."""

    def __init__(self, token: str) -> None:
        self._entries = deque([Entry(ANCHOR, token, Admission([]), -1)])
        #: The number of the first entry; the anchor's is 1.
        self._first = 1

    @property
    def next_id(self) -> str:
        return f"1-{self._first + len(self._entries)}"

    def append(self, entry: Entry) -> None:
        self._entries.append(entry)

    def place(self, position: tuple[str, str]) -> int | None:
        """The index of an entry; None if it is not here."""
        number = position[0].rpartition("-")[2]
        index = int(number) - self._first if number.isdecimal() else -1
        found = self._entries[index] if 0 <= index < len(self._entries) else None
        return index if found is not None and (found.id, found.token) == position else None

    def behind(self, place: int, count: int) -> list[Entry]:
        return list(islice(self._entries, place + 1, place + 1 + count))

    def trim(self, place: int) -> list[Entry]:
        """Drops everything before an entry; returns the entries that are durable now: the dropped ones, and that one."""
        dropped = [self._entries.popleft() for _ in range(place)]
        self._first += place
        return [*dropped, self._entries[0]]


@dataclass
class RunInMemory:
    """One run in its current epoch."""

    keys: RunKeys
    owner: str
    fields: dict[str, str]
    stream: Stream
    state: str = "running"
    cursor: int = 0
    total: int | None = None
    last: int = -1
    damaged: str = ""
    #: Queues whose units wait for a later phase; roots that left with such units; those whose last entry is not acknowledged.
    barred: frozenset[str] = frozenset()
    suspended: int = 0
    parked: set[int] = field(default_factory=set)
    roots: dict[int, LiveRoot] = field(default_factory=dict)
    live_rows: int = 0
    live_bytes: int = 0
    jobs: dict[str, Job] = field(default_factory=dict)
    queues: dict[str, UnitQueue] = field(default_factory=dict)
    #: Worker -> strikes its lost leases gave, as (unit, counter).
    struck: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    #: Notes that nobody has read yet, and the number of those before them.
    noted: list[Event] = field(default_factory=list)
    read_notes: int = 0
    budget: RunBudget = field(default_factory=RunBudget)
    #: Shared answers, and the workers that ask the open questions.
    answers: Recent = field(default_factory=lambda: Recent(MOST_ANSWERS, MOST_ANSWER_BYTES))
    asking: dict[bytes, str] = field(default_factory=dict)
    #: Node -> name of its queue.
    _names: dict[str, str] = field(default_factory=dict)
    #: The number of units that were put off so far: of two units due at the same time, the earlier one comes first.
    _delays: int = 0

    def give_up(self) -> None:
        """Deletes the units of a run that was cancelled; its sink may still read and acknowledge the stream."""
        self.jobs.clear()
        self.queues.clear()
        self.struck.clear()
        for live in self.roots.values():
            live.members.clear()
            live.forks.clear()

    # -- roots

    @property
    def is_full(self) -> bool:
        """Whether the window is full, in rows or in bytes."""
        most = self.fields.get("window_bytes")
        return self.live_rows >= int(self.fields["window"]) or (most is not None and self.live_bytes >= int(most))

    def open(self, root: int, record: RootRecord) -> None:
        size = 0
        if "window_bytes" in self.fields:
            for row in record.rows:
                size += sum(map(len, row.values.values()))
        self.roots[root], self.last = LiveRoot(record, size), root
        self.live_rows += len(record.rows)
        self.live_bytes += size
        self.cursor += 1

    def weigh(self, root: LiveRoot, rows: int) -> None:
        """Adds to the outstanding rows of a root."""
        before = root.live_rows
        root.outstanding += rows
        self.live_rows += root.live_rows - before

    def forget(self, root: int) -> None:
        """Removes everything of a root."""
        if (live := self.roots.pop(root, None)) is not None:
            self.live_rows -= live.live_rows
            self.live_bytes -= live.size

    def say(self, token: str, message: Result | Admission, root: int, done: bool) -> None:
        """Appends an entry; a root that has only units of a later phase is suspended with it."""
        suspended = not done and not self.roots[root].outstanding
        self.stream.append(Entry(self.stream.next_id, token, message, root, done, suspended))
        if suspended:
            self.suspended += 1
            self.parked.add(root)

    # -- units

    def waiting(self, queue: str) -> UnitQueue:
        found = self.queues.get(queue)
        if found is None:
            found = self.queues[queue] = UnitQueue()
        return found

    def name_of(self, unit: Unit) -> str:
        return f"{self.keys.run}_{self.keys.epoch}_{unit.root}_{unit.node}_{unit.part}"

    def queue_of(self, plan: Plan, node: str) -> str:
        name = self._names.get(node)
        if name is None:
            name = self._names[node] = self.keys.queue(plan.engine_of(node), node)
        return name

    def add(self, plan: Plan, root: int, effects: Effects, barred: Container[str] = ()) -> None:
        """Opens forks, queues units, and keeps the outputs of branches."""
        live = self.roots[root]
        for opened in effects.scopes:
            if opened.scope in live.forks:
                raise ValueError(f"scope {opened.scope} of root {root} exists already")
            live.members.setdefault(opened.parent, set()).add(f"S:{opened.scope}")
            live.forks[opened.scope] = OpenFork(opened, self.queue_of(plan, opened.fork))
        for unit in effects.units:
            queue = self.queue_of(plan, unit.node)
            if queue in barred:
                live.members.setdefault(unit.scope, set()).add(f"P:{self.name_of(unit)}")
            else:
                self.enqueue(unit, queue)
        for partial in effects.partials:
            live.forks[partial.scope].partials.append(partial)
        for scope, row_ids in effects.stopped:
            live.forks[scope].stopped += row_ids

    def enqueue(self, unit: Unit, queue: str, *, solo: bool = False, joins: bool = False) -> None:
        name, live = self.name_of(unit), self.roots[unit.root]
        if name in self.jobs:
            raise ValueError(f"unit {name} exists already")
        self.jobs[name] = Job(name, unit, queue, time(), joins, solo=solo)
        live.members.setdefault(unit.scope, set()).add(name)
        (self.waiting(queue).solo if solo else self.waiting(queue).ready).append(name)
        self.weigh(live, len(unit.rows))

    def put_back(self, job: Job, *, last: bool = False) -> None:
        """A unit may be claimed again, before all others or after them."""
        job.token, job.holder, job.ahead, job.delayed = "", "", False, False
        waiting = self.waiting(job.queue)
        queue = waiting.solo if job.solo else waiting.ready
        (queue.append if last else queue.appendleft)(job.name)

    def put_off(self, job: Job, due: float) -> None:
        job.token, job.holder, job.ahead, job.delayed = "", "", False, True
        self._delays += 1
        heapq.heappush(self.waiting(job.queue).delayed, (due, self._delays, job.name))

    def promote(self, waiting: UnitQueue, now: float) -> None:
        """Units that were put off until now may be claimed."""
        while waiting.delayed and waiting.delayed[0][0] <= now:
            job = self.jobs.get(heapq.heappop(waiting.delayed)[2])
            if job is not None and job.delayed:
                # rows that failed before must not hide that the engine answers others
                self.put_back(job, last=bool(job.unfinished))

    def finish(self, job: Job) -> bool:
        """Takes a unit out of its scope; whether its root is done with it."""
        del self.jobs[job.name]
        unit, live = job.unit, self.roots[job.unit.root]
        self.weigh(live, -len(unit.rows))
        members = live.members[unit.scope]
        members.discard(job.name)
        if members:
            return False
        del live.members[unit.scope]
        if not unit.scope:
            return True
        fork = live.forks.pop(unit.scope)
        self.enqueue(fork.join(unit.root), fork.queue, joins=True)
        live.members[fork.opened.parent].discard(f"S:{unit.scope}")
        return False

    def shorten(self, job: Job, rest: Claim, token: str) -> None:
        """A part took rows out of a unit."""
        self.weigh(self.roots[job.unit.root], len(rest.unit.rows) - len(job.unit.rows))
        job.unit, job.unfinished, job.part, job.done = rest.unit, rest.unfinished, job.part + 1, token

    # -- losses

    def require(self, name: str, root: int, scope: str) -> None:
        """If a unit is gone although its scope still names it, it was lost, and not committed."""
        live = self.roots.get(root)
        if name not in self.jobs and live is not None and name in live.members.get(scope, ()):
            self.damaged = f"unit {name} is gone"

    def next_of(self, names: deque[str], room: int | None = None) -> Job | None:
        """Takes the first unit out of a queue if it has at most `room` rows; removes the names of units that are gone."""
        while names:
            job = self.jobs.get(names[0])
            if job is not None and room is not None and len(job.unit.rows) > room:
                return None
            name = names.popleft()
            if job is not None:
                return job
            self.damaged = f"unit {name} is gone"
        return None

    def ready(self, waiting: UnitQueue, room: int) -> list[Job]:
        """The first unit of a queue, and the following ones that fit; those of one root and scope become one."""
        jobs: list[Job] = []
        while (job := self.next_of(waiting.ready, room if jobs else None)) is not None:
            room -= len(job.unit.rows)
            if not jobs or not self.absorb(jobs[-1], job):
                jobs.append(job)
        return jobs

    def absorb(self, job: Job, other: Job) -> bool:
        """Merges a unit with another one of the same place, so that fragments grow together again; False if it cannot."""
        unit, more = job.unit, other.unit
        rows = [*unit.rows, *more.rows]
        fresh = job.is_fresh and other.is_fresh and len(rows) <= int(self.fields.get("batch_size", 0))
        if not fresh or (unit.root, unit.scope) != (more.root, more.scope):
            return False
        job.unit = msgspec.structs.replace(unit, rows=rows)
        self.roots[unit.root].members[unit.scope].discard(other.name)
        del self.jobs[other.name]
        return True

    def lacks_scope(self, job: Job, effects: Effects) -> bool:
        """Whether a commit lacks something that it needs: its unit's place in the scope, or the fork to which its rows go."""
        number, scope = job.unit.root, job.unit.scope
        live = self.roots.get(number)
        if live is None or job.name not in live.members.get(scope, ()):
            self.damaged = f"the members of a scope of root {number} are gone"
            return True
        needed = {scope, *(partial.scope for partial in effects.partials), *(where for where, _ in effects.stopped)}
        if needed - live.forks.keys() - {"", *(opened.scope for opened in effects.scopes)}:
            self.damaged = f"a fork of root {number} is gone"
            return True
        return False

    def missing(self, root: int, hands: Mapping[str, Container[str]]) -> str:
        """Says which outstanding unit of a root can never be claimed; "" if there is none. `hands`: live workers' units."""
        waiting = {name for queue in self.queues.values() for name in (*queue, *(name for _, _, name in queue.delayed))}
        live = self.roots.get(root)
        scopes, units = [""], 0
        while scopes:
            members = live.members.get(scopes.pop(), set()) if live is not None else set()
            if not members:
                return f"root {root}: its outstanding rows are gone"
            scopes += [member[2:] for member in members if member.startswith("S:")]
            for name in (member for member in members if member[:2] not in ("S:", "P:")):
                units += 1
                job = self.jobs.get(name)
                if name in waiting:
                    continue  # its claim finds out if it is gone
                if job is None:
                    return f"unit {name} is gone"
                if not job.token or name not in hands.get(job.holder, ()):
                    return f"unit {name} is in no queue"
        return "" if units else f"root {root} waits for a later phase and was not let go"
