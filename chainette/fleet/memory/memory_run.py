"""A run of the in-memory queue: its units, scopes and stream in one epoch."""

from __future__ import annotations

from collections import deque
from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from typing import Any

from chainette.fleet.protocol.messages import Admission, Result
from chainette.io.rundir.events import Event

__all__ = ["Job", "RunInMemory", "Stored"]


@dataclass
class Job:
    """A unit: what RQ's hash says of it, and where it is."""

    told: Mapping[str, Any]
    run: str
    root: int
    scope: str
    #: Of a join: the scope that it ends. Of another unit: "".
    fork: str
    token: str = ""
    holder: str = ""
    ahead: bool = False
    solo: bool = False
    broken: bool = False
    #: When it may be claimed again; None where it waits for nothing.
    due: float | None = None
    strikes: int = 0
    deaths: int = 0
    pardons: int = 0

    @property
    def is_broken(self) -> bool:
        return self.deaths >= 2 or (self.deaths >= 1 and self.told["rows"] > 1)


@dataclass
class Stored:
    """An entry of the stream; its body is bytes."""

    id: str
    token: str
    kind: type[Result | Admission] | None = None
    root: int = 0
    done: bool = False
    suspended: bool = False
    body: bytes = b""


@dataclass
class RunInMemory:
    """One run in its current epoch."""

    epoch: int
    owner: str
    fields: dict[str, str]
    stream: list[Stored]
    state: str = "running"
    cursor: int = 0
    total: int | None = None
    last: int = -1
    damaged: str = ""
    added: int = 0
    #: Queues whose units wait for a later phase; roots that left with such units; those whose last entry is not acknowledged.
    barred: frozenset[str] = frozenset()
    suspended: int = 0
    parked: set[int] = field(default_factory=set)
    #: Root -> rows admitted, rows outstanding, record.
    live: dict[int, int] = field(default_factory=dict)
    out: dict[int, int] = field(default_factory=dict)
    records: dict[int, bytes] = field(default_factory=dict)
    #: (root, scope) -> outstanding members; the parts of its join; what the scope was opened with.
    members: dict[tuple[int, str], set[str]] = field(default_factory=dict)
    parts: dict[tuple[int, str], dict[bytes, bytes]] = field(default_factory=dict)
    opened: dict[tuple[int, str], Mapping[str, Any]] = field(default_factory=dict)
    jobs: dict[str, Job] = field(default_factory=dict)
    #: Per queue: units in order, units that run alone, units to mend, and whose turn it is to run one alone.
    queues: dict[str, deque[str]] = field(default_factory=dict)
    solo: dict[str, deque[str]] = field(default_factory=dict)
    broken: dict[str, deque[str]] = field(default_factory=dict)
    turns: dict[str, str] = field(default_factory=dict)
    #: Worker -> what its lost leases have cost.
    struck: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    noted: list[Event] = field(default_factory=list)

    @property
    def live_rows(self) -> int:
        return sum(max(rows, self.out.get(root, 0)) for root, rows in self.live.items())

    @property
    def is_full(self) -> bool:
        """Whether as many rows or bytes are live as may be."""
        size = sum(map(len, self.records.values()))
        return self.live_rows >= int(self.fields["window"]) or size >= int(self.fields.get("window_bytes", size + 1))

    def add(self, effects: Mapping[str, Any], run: str, root: int, barred: Container[str] = ()) -> None:
        for opened in effects["scopes"]:
            where = (root, opened["scope"])
            self.members.setdefault((root, opened["parent"]), set()).add(f"S:{opened['scope']}")
            self.opened[where], self.parts[where] = opened, {b"base": opened["base"]}
        for told in effects["units"]:
            if told["queue"] in barred:
                self.members.setdefault((root, told["scope"]), set()).add(f"P:{told['job']}")
            else:
                self.enqueue(told["job"], Job(told, run, root, told["scope"], ""))
        for kind in ("partials", "stopped"):
            for scope, blob in effects[kind]:
                parts = self.parts[root, scope]
                parts[f"{'p' if kind == 'partials' else 'x'}:{len(parts)}".encode()] = blob

    def enqueue(self, name: str, job: Job) -> None:
        self.jobs[name] = job
        self.members.setdefault((job.root, job.scope), set()).add(name)
        self.queues.setdefault(job.told["queue"], deque()).append(name)
        self.out[job.root] = self.out.get(job.root, 0) + job.told["rows"]

    def put_back(self, name: str) -> None:
        job = self.jobs[name]
        job.token, job.holder, job.ahead, job.broken, job.due = "", "", False, False, None
        (self.solo if job.solo else self.queues).setdefault(job.told["queue"], deque()).appendleft(name)

    def promote(self, queue: str, now: float) -> None:
        """Units that were put off until now."""
        for name, job in self.jobs.items():
            if job.told["queue"] == queue and job.due is not None and job.due <= now:
                self.put_back(name)

    def finish(self, name: str) -> bool:
        """Takes a unit out of its scope; whether its root is done."""
        job = self.jobs.pop(name)
        if job.fork:
            del self.parts[job.root, job.fork], self.opened[job.root, job.fork]
        self.out[job.root] -= job.told["rows"]
        members = self.members[job.root, job.scope]
        members.discard(name)
        if members:
            return False
        del self.members[job.root, job.scope]
        if not job.scope:
            return True
        told = self.opened[job.root, job.scope]
        self.enqueue(told["job"], Job(told, job.run, job.root, told["parent"], job.scope))
        self.members[job.root, told["parent"]].discard(f"S:{job.scope}")
        return False

    def require(self, name: str, root: int, scope: str) -> None:
        """A unit that its scope still names, and that is gone, was lost and not committed."""
        if name not in self.jobs and name in self.members.get((root, scope), ()):
            self.damaged = f"unit {name} is gone"

    def skip_gone(self, jobs: deque[str]) -> None:
        """Takes units off the front of a queue that are gone."""
        while jobs and jobs[0] not in self.jobs:
            self.damaged = f"unit {jobs.popleft()} is gone"

    def lacks_scope(self, name: str, effects: Mapping[str, Any]) -> bool:
        """Whether a key is gone that a commit needs: its unit's place in the scope, or the fork to which its rows go."""
        job = self.jobs[name]
        known = {"", *(opened["scope"] for opened in effects["scopes"])}
        known |= {scope for root, scope in self.opened if root == job.root and (root, scope) in self.parts}
        needed = {job.scope, *(scope for kind in ("partials", "stopped") for scope, _ in effects[kind])}
        if name not in self.members.get((job.root, job.scope), ()):
            self.damaged = f"the members of a scope of root {job.root} are gone"
        elif needed - known:
            self.damaged = f"a fork of root {job.root} is gone"
        else:
            return False
        return True

    def missing(self, root: int, alive: Container[str]) -> str:
        """What is outstanding of a root and can never be claimed, in words; "" if nothing is."""
        waiting = {name for kind in (self.queues, self.solo, self.broken) for jobs in kind.values() for name in jobs}
        scopes = [""]
        units = 0
        while scopes:
            members = self.members.get((root, scopes.pop()), set())
            if not members:
                return f"root {root}: what is outstanding of it is gone"
            scopes += [member[2:] for member in members if member.startswith("S:")]
            for name in (member for member in members if member[:2] not in ("S:", "P:")):
                units += 1
                job = self.jobs.get(name)
                if job is None:
                    return f"unit {name} is gone"
                if name not in waiting and job.due is None and (not job.token or job.holder not in alive):
                    return f"unit {name} is in no queue"
        return "" if units else f"root {root} waits for a later phase and was not let go"

    def say(self, token: str, kind: type[Result | Admission], root: int, done: bool, body: bytes) -> None:
        self.added += 1
        suspended = not done and not self.out.get(root)
        self.stream.append(Stored(f"1-{self.added}", token, kind, root, done, suspended, body))
        if suspended:
            self.suspended += 1
            self.parked.add(root)

    def forget(self, root: int) -> None:
        """Nothing stays of a root."""
        for kept in (self.live, self.out, self.records):
            kept.pop(root, None)
        for scopes in (self.members, self.parts, self.opened):
            for where in [where for where in scopes if where[0] == root]:
                del scopes[where]
