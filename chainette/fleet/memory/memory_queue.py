"""The leased queue in plain Python: the contract without Redis, for tests and for understanding. One thread, one process.

It takes and returns the same as `fleet/redis/queue.py`, encoded and decoded as on the wire; the scripts in
`fleet/redis/scripts/` do the same on keys.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from chainette.core.plan import Plan
from chainette.fleet.memory.memory_run import Job, RunInMemory, Stored
from chainette.fleet.protocol.contract import LeasedQueue
from chainette.fleet.protocol.jobs import claimed_unit, halves, require_size, wire_effects
from chainette.fleet.protocol.keys import RunKeys, served
from chainette.fleet.protocol.messages import MAX_COMMIT, Admission, BadMessage, Result, RootRecord, open_message
from chainette.fleet.protocol.states import (
    ANCHOR,
    LEASE,
    Admitted,
    Cancelled,
    Claim,
    Drain,
    Entry,
    Lost,
    Progress,
    RunInfo,
    Turn,
)
from chainette.io.rundir.events import AnyEvent, Event
from chainette.records import Effects, Outcome, Rejection, encode

__all__ = ["MemoryQueue"]

#: Times that one unit gets a strike back, since it may be what stalls its workers.
_PARDONS = 3


@dataclass
class _Worker:
    until: float
    words: dict[str, str] = field(default_factory=dict)
    #: Units in its hands, with their runs.
    held: dict[str, str] = field(default_factory=dict)


class MemoryQueue(LeasedQueue):
    """The contract, by a clock of the caller's."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._runs: dict[str, RunInMemory] = {}
        self._workers: dict[str, _Worker] = {}

    # -- runs

    def install(
        self, run: str, epoch: int, owner: str, token: str, queues: Sequence[str], fields: Mapping[str, str | int]
    ) -> None:
        known = self._runs.get(run)
        if known and known.state == "cancelled":
            raise Cancelled(f"run {run} was cancelled")
        if known and (known.epoch, known.owner, known.stream[0].token) == (epoch, owner, token):
            return
        if known and known.epoch >= epoch:
            raise Lost(f"run {run}: epoch {epoch} is not newer than {known.epoch}")
        state = known.state if known else "running"
        words = {name: str(value) for name, value in fields.items()}
        noted = known.noted if known else []
        barred = frozenset(words.get("barred", "").split())
        self._runs[run] = RunInMemory(epoch, owner, words, [Stored(ANCHOR, token)], state, noted=noted, barred=barred)

    def attach(self, run: str, epoch: int, owner: str, position: tuple[str, str]) -> None:
        found = self._epoch(run, epoch)
        if found.damaged or self._place(found, position) is None:
            raise Lost(f"attach of run {run}, epoch {epoch}")
        found.owner = owner

    def close(self, run: str, epoch: int, owner: str, queues: Sequence[str]) -> None:
        known = self._runs.get(run)
        if known and known.state != "cancelled" and self._epoch(run, epoch).owner != owner:
            raise Lost(f"close of run {run}, epoch {epoch}")
        self._runs.pop(run, None)

    def set_state(self, run: str, state: str, reason: str = "") -> None:
        known = self._runs.get(run)
        if known is None or (known.state == "cancelled" and state != "cancelled"):
            raise Lost(f"no live run {run!r}")
        known.state = state
        known.fields = {**known.fields, "reason": reason}
        if state == "cancelled":
            self._runs[run] = RunInMemory(known.epoch, known.owner, known.fields, [], state)

    def bar(self, keys: RunKeys, owner: str, queues: Sequence[str]) -> None:
        run = self._epoch(keys.run, keys.epoch)
        if run.owner != owner:
            raise Lost(f"bar of run {keys.run}, epoch {keys.epoch}")
        run.barred = frozenset(queues)
        run.fields = {**run.fields, "barred": " ".join(queues)}

    def runs(self) -> list[RunInfo]:
        return [RunInfo(name, run.epoch, run.state, run.fields) for name, run in sorted(self._runs.items())]

    def waiting(self, queues: Sequence[str]) -> dict[str, int]:
        depths = {name: sum(len(run.queues.get(name, ())) for run in self._runs.values()) for name in queues}
        return {name: depth for name, depth in depths.items() if depth}

    def _epoch(self, run: str, epoch: int) -> RunInMemory:
        found = self._runs.get(run)
        if found is None or found.epoch != epoch:
            raise Lost(f"run {run}: epoch {epoch} is over")
        return found

    def _place(self, run: RunInMemory, position: tuple[str, str]) -> int | None:
        found = [index for index, entry in enumerate(run.stream) if (entry.id, entry.token) == position]
        return found[0] if found else None

    # -- roots

    def admit(
        self,
        keys: RunKeys,
        plan: Plan,
        k: int,
        root: int,
        record: RootRecord,
        bad: list[Rejection],
        effects: Effects,
        token: str,
    ) -> Admitted:
        rows, plain = encode(record), wire_effects(keys, plan, root, effects)
        require_size(f"root {root} of {len(record.rows)} rows", MAX_COMMIT, rows, plain)
        run = self._epoch(keys.run, keys.epoch)
        if run.state != "running":
            return Admitted(run.state)
        if run.cursor != k:
            return Admitted.BEHIND
        if run.live and run.is_full:
            return Admitted.FULL
        run.live[root], run.records[root], run.last = len(record.rows), rows, root
        run.cursor += 1
        run.add(plain, keys.run, root, run.barred)
        if bad or not run.out.get(root):
            run.say(token, Admission, root, not plain["units"], encode(Admission(bad)))
        return Admitted.OK

    def end_of_input(self, keys: RunKeys, total: int) -> bool:
        run = self._epoch(keys.run, keys.epoch)
        if run.cursor == total:
            run.total = total
        return run.cursor == total

    def record(self, keys: RunKeys, root: int) -> RootRecord:
        run = self._runs.get(keys.run)
        return open_message(run.records.get(root) if run is not None else None, RootRecord)

    def progress(self, keys: RunKeys) -> Progress:
        run = self._runs.get(keys.run)
        if run is None:
            return Progress(0, None, "", set())
        live = set(run.live) if run.epoch == keys.epoch else set()
        current = run.epoch == keys.epoch
        return Progress(run.cursor, run.total, run.state, live, run.last, run.damaged, run.suspended, is_current=current)

    def missing(self, keys: RunKeys, roots: Sequence[int]) -> str:
        run = self._runs.get(keys.run)
        if run is None or run.epoch != keys.epoch:
            return ""
        return next((words for root in roots if (words := run.missing(root, self._workers))), "")

    # -- workers

    def beat(
        self,
        incarnation: str,
        fields: Mapping[str, str | int | float],
        lease: float = LEASE,
        *,
        queues: Sequence[tuple[str, str]] = (),
    ) -> bool:
        new = incarnation not in self._workers
        worker = self._workers.setdefault(incarnation, _Worker(0.0))
        worker.until = self._clock() + lease
        worker.words |= {name: str(value) for name, value in fields.items()}
        if new:
            self._pardon(incarnation)
        return not new

    def leave(self, incarnation: str) -> bool:
        if incarnation in self._workers and self._workers[incarnation].held:
            return False
        self._pardon(incarnation)
        self._workers.pop(incarnation, None)
        return True

    def reap(self) -> list[str]:
        lost = [name for name, worker in self._workers.items() if worker.until <= self._clock()]
        for me in lost:
            for name, run in self._workers.pop(me).held.items():
                if self._in_hand(run, name, me):
                    self._strike(self._runs[run], name, me)
        return lost

    def workers(self) -> dict[str, dict[str, str]]:
        return {name: dict(worker.words) for name, worker in self._workers.items()}

    def ask_to_stop(self, engine: str | None) -> list[str]:
        asked = [name for name, worker in self._workers.items() if engine is None or engine in served(worker.words)]
        for name in asked:
            self._workers[name].words["stop"] = "1"
        return asked

    def is_asked_to_stop(self, incarnation: str) -> bool:
        worker = self._workers.get(incarnation)
        return worker is not None and "stop" in worker.words

    def _in_hand(self, run: str, name: str, me: str) -> bool:
        job = self._runs[run].jobs.get(name) if run in self._runs else None
        return job is not None and job.token != "" and job.holder == me

    def _strike(self, run: RunInMemory, name: str, me: str) -> None:
        job = run.jobs[name]
        if not job.ahead:
            counter = "deaths" if job.solo else "strikes"
            setattr(job, counter, getattr(job, counter) + 1)
            run.struck.setdefault(me, []).append((name, counter))
            job.solo = job.solo or job.strikes >= 2
        if job.is_broken:
            job.token, job.broken = "", True
            run.broken.setdefault(job.told["queue"], deque()).append(name)
        else:
            run.put_back(name)

    def _pardon(self, me: str) -> None:
        for run in self._runs.values():
            for name, counter in run.struck.pop(me, ()):
                job = run.jobs.get(name)
                if job is None or job.pardons >= _PARDONS or getattr(job, counter) == 0:
                    continue
                job.pardons += 1
                setattr(job, counter, getattr(job, counter) - 1)
                self._reconsider(run, name, job, counter)

    def _reconsider(self, run: RunInMemory, name: str, job: Job, counter: str) -> None:
        queue = job.told["queue"]
        if counter == "strikes" and job.solo and job.strikes < 2:
            job.solo = False
            if name in run.solo.get(queue, ()):
                run.solo[queue].remove(name)
                run.put_back(name)
        elif counter == "deaths" and not job.is_broken and name in run.broken.get(queue, ()):
            run.broken[queue].remove(name)
            run.put_back(name)

    # -- units

    def claim(
        self, incarnation: str, token: str, queues: Sequence[tuple[str, str]], *, alone: bool = False, ahead: bool = False
    ) -> Claim | Drain | None:
        if incarnation not in self._workers:
            raise Lost(f"worker {incarnation}: its lease is over")
        for name, queue in queues:
            run = self._runs.get(name)
            if run is None or run.state != "running":
                continue
            run.promote(queue, self._clock())
            for jobs in (run.broken, run.solo, run.queues):
                run.skip_gone(jobs.get(queue, deque()))
            if run.broken.get(queue):
                return self._hand_out(name, run.broken[queue].popleft(), incarnation, token, Turn.MEND)
            if run.solo.get(queue) and self._has_turn(run, queue, incarnation):
                run.turns[queue] = incarnation
                if ahead or not alone:
                    return Drain(queue)
                return self._hand_out(name, run.solo[queue].popleft(), incarnation, token, Turn.SOLO)
            if run.queues.get(queue):
                return self._hand_out(name, run.queues[queue].popleft(), incarnation, token, Turn.JOB, ahead)
        return None

    def _has_turn(self, run: RunInMemory, queue: str, me: str) -> bool:
        """Whether nobody else who lives is about to run a unit alone."""
        holder = run.turns.get(queue)
        return holder == me or holder not in self._workers

    def _hand_out(self, run: str, name: str, me: str, token: str, turn: Turn, ahead: bool = False) -> Claim:
        found = self._runs[run]
        job = found.jobs[name]
        job.token, job.holder, job.ahead, job.broken = token, me, ahead, False
        self._workers[me].held[name] = run
        told = job.told
        payload: Any = told.get("payload")
        if job.fork:
            payload = [blob for pair in found.parts[job.root, job.fork].items() for blob in pair]
        unit = claimed_unit(str(job.root).encode(), job.scope.encode(), job.fork.encode(), told["data"].encode(), payload)
        return Claim(name, token, run, found.epoch, unit, turn, told["at"])

    def _held(self, claim: Claim, me: str) -> RunInMemory | None:
        """The run, where the claim holds; the claim is out of the worker's hands where it does not."""
        run = self._runs.get(claim.run)
        job = run.jobs.get(claim.job) if run is not None and run.epoch == claim.epoch else None
        if run is None or job is None or not claim.token or job.token != claim.token or run.state == "cancelled":
            if me in self._workers and (job is None or job.holder != me or job.token in ("", claim.token)):
                self._workers[me].held.pop(claim.job, None)
            if run is not None and job is None and run.epoch == claim.epoch:
                run.require(claim.job, claim.unit.root, claim.unit.scope)
            return None
        return run

    def _drop(self, claim: Claim, me: str) -> RunInMemory | None:
        run = self._held(claim, me)
        if run is not None and me in self._workers:
            self._workers[me].held.pop(claim.job, None)
        return run

    def start(self, claim: Claim, incarnation: str) -> bool:
        run = self._held(claim, incarnation)
        if run is not None:
            run.jobs[claim.job].ahead = False
        return run is not None

    def commit(
        self,
        claim: Claim,
        incarnation: str,
        plan: Plan,
        outcome: Outcome,
        token: str,
        rows: Collection[str] | None = None,
    ) -> bool:
        if claim.rest(rows) is not None:
            raise NotImplementedError("parts of a unit")
        root = claim.unit.root
        entry = encode(Result.of(claim.unit, outcome, incarnation))
        effects = wire_effects(RunKeys(claim.run, claim.epoch), plan, root, outcome.effects)
        require_size(f"{claim.unit.node}, root {root}", MAX_COMMIT, entry, effects)
        run = self._drop(claim, incarnation)
        if run is None or run.lacks_scope(claim.job, effects):
            return False
        run.add(effects, claim.run, root, run.barred)
        run.say(token, Result, root, run.finish(claim.job), entry)
        return True

    def split(self, claim: Claim, incarnation: str, plan: Plan) -> bool:
        run = self._drop(claim, incarnation)
        if run is None:
            return False
        keys = RunKeys(claim.run, claim.epoch)
        run.add(wire_effects(keys, plan, claim.unit.root, Effects(halves(claim.unit))), claim.run, claim.unit.root)
        run.finish(claim.job)
        for half in halves(claim.unit):
            name = keys.job(half.node, half.root, half.part)
            queue = run.jobs[name].told["queue"]
            run.jobs[name].solo = True
            run.queues[queue].remove(name)
            run.solo.setdefault(queue, deque()).append(name)
        return True

    def fail(self, claim: Claim, incarnation: str, delay: float, message: str) -> bool:
        run = self._drop(claim, incarnation)
        if run is None:
            return False
        job = run.jobs[claim.job]
        job.token, job.ahead, job.due = "", False, self._clock() + delay
        return True

    def release(self, claim: Claim, incarnation: str) -> bool:
        run = self._drop(claim, incarnation)
        if run is not None:
            run.put_back(claim.job)
        return run is not None

    def bury(self, claim: Claim, incarnation: str, reason: str) -> bool:
        run = self._drop(claim, incarnation)
        if run is None:
            return False
        run.damaged = reason
        run.jobs[claim.job].token = ""
        return True

    def reconcile(self, incarnation: str, known: Sequence[Claim] = ()) -> int:
        worker, tokens = self._workers.get(incarnation), {claim.job: claim.token for claim in known}
        returned = 0
        for name, run in list(worker.held.items()) if worker is not None else []:
            mine = self._in_hand(run, name, incarnation)
            if mine and self._runs[run].jobs[name].token == tokens.get(name):
                continue
            del self._workers[incarnation].held[name]
            if mine:
                self._runs[run].put_back(name)
                returned += 1
        return returned

    # -- results

    def read(self, keys: RunKeys, position: tuple[str, str], count: int = 256) -> list[Entry]:
        run = self._epoch(keys.run, keys.epoch)
        place = self._place(run, position)
        if place is None:
            raise Lost(f"run {keys.run}: the stream of epoch {keys.epoch} does not continue at {position[0]}")
        return [_opened(entry) for entry in run.stream[place + 1 : place + 1 + count]]

    def ack(self, keys: RunKeys, owner: str, position: tuple[str, str], roots: Sequence[int]) -> None:
        run = self._epoch(keys.run, keys.epoch)
        place = self._place(run, position)
        if run.owner != owner or place is None:
            raise Lost(f"ack of run {keys.run}, epoch {keys.epoch}")
        durable = {entry.root for entry in run.stream[: place + 1] if entry.suspended}
        for root in [*roots, *durable & run.parked]:
            run.forget(root)
        run.parked -= durable
        del run.stream[:place]

    # -- notes

    def note(self, run: str, event: Event) -> None:
        if run in self._runs:
            self._runs[run].noted.append(event)

    def notes(self, run: str, after: str) -> tuple[str, list[AnyEvent]]:
        noted = self._runs[run].noted if run in self._runs else []
        return f"1-{len(noted)}", list(noted[int(after.partition("-")[2]) :])  # type: ignore[arg-type]


def _opened(entry: Stored) -> Entry:
    """The entry as a reader of the stream has it.

    Raises:
        BadMessage: it is the anchor, which has no message.
    """
    if entry.kind is None:
        raise BadMessage("the anchor of a stream is no entry of it")
    return Entry(entry.id, entry.token, open_message(entry.body, entry.kind), entry.root, entry.done, entry.suspended)
