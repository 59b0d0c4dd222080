"""The leased queue in plain Python, for one thread of one process: local runs use it, and it documents the scripts.

It keeps and hands over objects; `fleet/redis/redis_queue.py` with the scripts in `fleet/redis/scripts/` does the same on keys.
No call blocks, and none takes longer the more units there are, except `missing`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from chainette.core.join_digests import given_by_joins
from chainette.core.plan import Plan
from chainette.engine.budget import Amounts, BudgetLimits, Reserved
from chainette.fleet.memory.memory_run import Job, RunInMemory, Stream, UnitQueue
from chainette.fleet.memory.reservations import Reservations
from chainette.fleet.memory.strikes import pardon, strike
from chainette.fleet.protocol.contract import LeasedQueue
from chainette.fleet.protocol.keys import RunKeys
from chainette.fleet.protocol.member_fields import Member
from chainette.fleet.protocol.messages import Admission, Aside, Missing, Result, RootRecord
from chainette.fleet.protocol.queue_values import (
    ANCHOR,
    LEASE,
    AdmissionProgress,
    AdmissionResult,
    Asker,
    Cancelled,
    Claim,
    Drain,
    EngineAccount,
    Entry,
    Lost,
    Turn,
)
from chainette.fleet.protocol.rq_jobs import halves, require_part
from chainette.fleet.protocol.run_fields import RunInfo
from chainette.io.rundir.event_types import Event, Note, WorkerRefused
from chainette.records import Effects, Outcome, Rejection, Usage

__all__ = ["MemoryQueue"]

#: Seconds for which a worker that drains keeps others from running a queue's next unit alone.
_TURN = 30.0


@dataclass
class _Worker:
    until: float
    words: dict[str, str] = field(default_factory=dict)
    #: Units in its hands, with their runs.
    held: dict[str, str] = field(default_factory=dict)


class MemoryQueue(LeasedQueue):
    """The contract, by the caller's clock.

    `changed` is called after units became claimable, entries were added, or credit came back, so that nobody needs to look
    again and again. It is not called when the delay of `fail` ends.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, changed: Callable[[], object] = lambda: None) -> None:
        self._clock, self._changed = clock, changed
        self._runs: dict[str, RunInMemory] = {}
        self._workers: dict[str, _Worker] = {}
        #: Workers somebody asked to end.
        self._stopped: set[str] = set()
        self._reservations = Reservations(lambda: (run.budget for run in self._runs.values()), self._lives)

    # -- runs

    def install(
        self, run: str, epoch: int, owner: str, token: str, queues: Sequence[str], fields: Mapping[str, str | int | float]
    ) -> None:
        known = self._runs.get(run)
        if known and known.state == "cancelled":
            raise Cancelled(f"run {run} was cancelled")
        if known and (known.keys.epoch, known.owner) == (epoch, owner) and known.stream.place((ANCHOR, token)) == 0:
            return
        if known and known.keys.epoch >= epoch:
            raise Lost(f"run {run}: epoch {epoch} is not newer than {known.keys.epoch}")
        kept = {name: word for name, word in known.fields.items() if name != "barred"} if known else {}
        words = kept | {name: str(value) for name, value in fields.items()}
        new = RunInMemory(RunKeys(run, epoch), owner, words, Stream(token), barred=frozenset(words.get("barred", "").split()))
        if known:
            new.state, new.noted, new.read_notes = known.state, known.noted, known.read_notes
        new.budget = self._reservations.begin(known.budget if known else None, epoch, words)
        self._runs[run] = new
        self._changed()

    def latest_epoch(self, keys: RunKeys) -> int:
        known = self._runs.get(keys.run)
        return known.keys.epoch if known else -1

    def attach(self, run: str, epoch: int, owner: str, position: tuple[str, str]) -> None:
        found = self._epoch(run, epoch)
        if found.damaged or found.stream.place(position) is None:
            raise Lost(f"attach of run {run}, epoch {epoch}")
        found.owner = owner

    def close(self, run: str, epoch: int, owner: str, queues: Sequence[str]) -> None:
        known = self._runs.get(run)
        if known and known.state != "cancelled" and self._epoch(run, epoch).owner != owner:
            raise Lost(f"close of run {run}, epoch {epoch}")
        self._runs.pop(run, None)
        if known:
            self._reservations.close(known.budget)

    def set_state(self, run: str, state: str, reason: str = "") -> None:
        known = self._runs.get(run)
        if known is None or (known.state == "cancelled" and state != "cancelled"):
            raise Lost(f"no live run {run!r}")
        known.state = state
        known.fields = {**known.fields, "reason": reason}
        if state == "cancelled":
            known.give_up()
        self._changed()

    def bar(self, keys: RunKeys, owner: str, queues: Sequence[str]) -> None:
        run = self._epoch(keys.run, keys.epoch)
        if run.owner != owner:
            raise Lost(f"bar of run {keys.run}, epoch {keys.epoch}")
        run.barred = frozenset(queues)
        run.fields = {**run.fields, "barred": " ".join(queues)}

    def runs(self) -> list[RunInfo]:
        runs = sorted(self._runs.items())
        return [RunInfo.read(_raw(run.fields), run=name, epoch=run.keys.epoch, state=run.state) for name, run in runs]

    def waiting(self, queues: Sequence[str]) -> dict[str, int]:
        waiting = [(name, run.queues[name]) for run in self._runs.values() for name in queues if name in run.queues]
        return {name: len(found.ready) for name, found in waiting if found.ready}

    def due(self, run: str, queue: str) -> float | None:
        """When the next unit that was put off may be claimed from a queue, by the clock; None if none was."""
        waiting = self._runs[run].queues.get(queue)
        return waiting.delayed[0][0] if waiting is not None and waiting.delayed else None

    def live_rows(self, run: str) -> int:
        """Rows that were admitted and are not acknowledged, or more if they were expanded."""
        return self._runs[run].live_rows

    def unfinished(self, run: str) -> dict[str, Usage]:
        """Node -> the cost of its rows that have not finished, of units that nobody holds."""
        found: dict[str, Usage] = {}
        for job in self._runs[run].jobs.values():
            usage = sum((each.usage for each in job.unfinished.values()), Usage())
            if usage.requests and not job.token:
                found[job.unit.node] = found.get(job.unit.node, Usage()) + usage
        return found

    def widen(self, run: str, window: int) -> None:
        """As many rows may be live from now on."""
        found = self._runs[run]
        found.fields = {**found.fields, "window": str(window)}

    def _epoch(self, run: str, epoch: int) -> RunInMemory:
        found = self._runs.get(run)
        if found is None or found.keys.epoch != epoch:
            raise Lost(f"run {run}: epoch {epoch} is over")
        return found

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
    ) -> AdmissionResult:
        run = self._epoch(keys.run, keys.epoch)
        if run.state != "running":
            return AdmissionResult(run.state)
        if run.cursor != k:
            return AdmissionResult.BEHIND
        if run.roots and run.is_full:
            return AdmissionResult.FULL
        run.open(root, record)
        run.add(plan, root, effects, run.barred)
        if bad or not run.roots[root].outstanding:
            run.say(token, Admission(bad), root, not effects.units)
        self._changed()
        return AdmissionResult.OK

    def end_of_input(self, keys: RunKeys, total: int) -> bool:
        run = self._epoch(keys.run, keys.epoch)
        if run.cursor == total:
            run.total = total
        return run.cursor == total

    def record(self, keys: RunKeys, root: int) -> RootRecord:
        run = self._runs.get(keys.run)
        live = run.roots.get(root) if run is not None and run.keys == keys else None
        if live is None:
            raise Missing(f"root {root} of run {keys.run} is not live")
        return live.record

    def progress(self, keys: RunKeys, engines: Sequence[str] = ()) -> AdmissionProgress:
        run = self._runs.get(keys.run)
        if run is None:
            return AdmissionProgress(0, None, "", set())
        current, budget = run.keys.epoch == keys.epoch, run.budget
        live = set(run.roots) if current else set()
        return AdmissionProgress(
            run.cursor,
            run.total,
            run.state,
            live,
            run.last,
            run.damaged,
            run.suspended,
            budget.used,
            budget.exhausted,
            {engine: budget.of_engines[engine] for engine in engines if engine in budget.of_engines},
            budget.exhausted_by,
            budget.of_all_runs,
            is_current=current,
            needed=budget.needed,
        )

    def missing(self, keys: RunKeys, roots: Sequence[int]) -> str:
        run = self._runs.get(keys.run)
        if run is None or run.keys.epoch != keys.epoch:
            return ""
        hands = {name: worker.held for name, worker in self._workers.items()}
        return next((words for root in roots if (words := run.missing(root, hands))), "")

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
        now = self._clock()
        lost = [name for name, worker in self._workers.items() if worker.until <= now]
        for me in lost:
            for name, run in self._workers.pop(me).held.items():
                if (job := self._in_hand(run, name, me)) is not None:
                    strike(self._runs[run], job, me)
        if lost:
            self._changed()
        return lost

    def workers(self) -> dict[str, Member]:
        now = self._clock()
        return {name: Member.read(_raw(worker.words)) for name, worker in self._workers.items() if worker.until > now}

    def is_held(self, keys: RunKeys) -> bool:
        run, now = self._runs.get(keys.run), self._clock()
        if run is None or run.keys.epoch != keys.epoch:
            return False
        held = [(name, me) for me, worker in self._workers.items() if worker.until > now for name in worker.held]
        return any(self._in_hand(keys.run, name, me) is not None for name, me in held)

    def ask_to_stop(self, engine: str | None) -> list[str]:
        asked = [name for name, member in self.workers().items() if engine is None or engine in member.engines]
        self._stopped.update(asked)
        return asked

    def is_asked_to_stop(self, incarnation: str) -> bool:
        return incarnation in self._stopped

    def _in_hand(self, run: str, name: str, me: str) -> Job | None:
        """A unit a worker holds."""
        job = self._runs[run].jobs.get(name) if run in self._runs else None
        return job if job is not None and job.token and job.holder == me else None

    def _pardon(self, me: str) -> None:
        pardoned = [pardon(run, me) for run in self._runs.values()]
        if any(pardoned):
            self._changed()

    # -- units

    def claim_rows(
        self,
        incarnation: str,
        token: str,
        queues: Sequence[tuple[str, str, int]],
        *,
        alone: bool = False,
        ahead: bool = False,
    ) -> list[Claim] | Drain:
        if incarnation not in self._workers:
            raise Lost(f"worker {incarnation}: its lease is over")
        for name, queue, room in queues:
            run = self._runs.get(name)
            waiting = run.queues.get(queue) if run is not None and run.state == "running" else None
            if run is None or waiting is None or run.budget.exhausted:
                continue
            run.promote(waiting, self._clock())
            if (job := run.next_of(waiting.broken)) is not None:
                return [self._hand_out(run, job, incarnation, token, Turn.MEND)]
            if waiting.solo and self._has_turn(waiting, incarnation):
                waiting.turn, waiting.turn_ends = incarnation, self._clock() + _TURN
                if ahead or not alone:
                    return Drain(queue)
                if (job := run.next_of(waiting.solo)) is not None:
                    return [self._hand_out(run, job, incarnation, token, Turn.SOLO)]
            if jobs := run.ready(waiting, room):
                tokens = [token, *(f"{token}.{number}" for number in range(1, len(jobs)))]
                return [
                    self._hand_out(run, job, incarnation, own, Turn.JOB, ahead) for job, own in zip(jobs, tokens, strict=True)
                ]
        return []

    def _has_turn(self, waiting: UnitQueue, me: str) -> bool:
        """Whether nobody else who lives is about to run a unit alone."""
        return waiting.turn == me or waiting.turn not in self._workers or waiting.turn_ends <= self._clock()

    def _hand_out(self, run: RunInMemory, job: Job, me: str, token: str, turn: Turn, ahead: bool = False) -> Claim:
        job.token, job.holder, job.ahead = token, me, ahead
        self._workers[me].held[job.name] = run.keys.run
        return Claim(job.name, token, run.keys.run, run.keys.epoch, job.unit, turn, job.since, job.part, job.unfinished)

    def _held(self, claim: Claim, me: str) -> tuple[RunInMemory, Job] | None:
        """The run and the unit, if the claim holds; else the claim leaves the worker's hands."""
        run = self._runs.get(claim.run)
        job = run.jobs.get(claim.job) if run is not None and run.keys.epoch == claim.epoch else None
        if run is not None and job is not None and claim.token and job.token == claim.token and run.state != "cancelled":
            return run, job
        if me in self._workers and (job is None or job.holder != me or job.token in ("", claim.token)):
            self._workers[me].held.pop(claim.job, None)
        if run is not None and job is None and run.keys.epoch == claim.epoch:
            run.require(claim.job, claim.unit.root, claim.unit.scope)
        return None

    def _drop(self, claim: Claim, me: str) -> tuple[RunInMemory, Job] | None:
        """As `_held`; the unit leaves the worker's hands in any case."""
        found = self._held(claim, me)
        if found is not None and me in self._workers:
            self._workers[me].held.pop(claim.job, None)
        return found

    def start(self, claim: Claim, incarnation: str) -> bool:
        found = self._held(claim, incarnation)
        if found is not None:
            found[1].ahead = False
        return found is not None

    def commit(
        self,
        claim: Claim,
        incarnation: str,
        plan: Plan,
        outcome: Outcome,
        token: str,
        rows: Collection[str] | None = None,
    ) -> bool:
        piece, rest = claim.piece(rows), claim.rest(rows)
        if rest is not None:
            require_part(piece, plan)
        if self._is_repeated(claim, token):
            return True
        found = self._held(claim, incarnation)
        if found is None:
            return False
        run, job = found
        if job.part != claim.part:
            return False  # maybe an old call that comes late, so the unit stays where it is
        if run.lacks_scope(job, outcome.effects):
            self._drop(claim, incarnation)
            return False
        run.add(plan, claim.unit.root, outcome.effects, run.barred)
        done = False
        if rest is not None:
            run.shorten(job, rest, token)
        else:
            self._drop(claim, incarnation)
            done = run.finish(job)
        given = given_by_joins(plan, piece.rows)
        run.say(token, Result.of(piece, outcome, incarnation, claim.opens(rows), given), claim.unit.root, done)
        self._changed()
        return True

    def _is_repeated(self, claim: Claim, token: str) -> bool:
        """Whether a call before this one has committed the part, and the unit has rows left."""
        run = self._runs.get(claim.run)
        job = run.jobs.get(claim.job) if run is not None else None
        return job is not None and job.done == token

    def split(self, claim: Claim, incarnation: str, plan: Plan) -> bool:
        found = self._held(claim, incarnation)
        if found is None or found[1].part != claim.part:
            return False
        run, job = found
        self._drop(claim, incarnation)
        if run.lacks_scope(job, Effects()):
            return False
        for half in halves(claim.unit):
            run.enqueue(half, job.queue, solo=True)
        run.finish(job)
        self._changed()
        return True

    def fail(self, claim: Claim, incarnation: str, delay: float, message: str) -> bool:
        found = self._drop(claim, incarnation)
        if found is not None:
            run, job = found
            job.unfinished = claim.unfinished
            run.put_off(job, self._clock() + delay)
        return found is not None

    def release(self, claim: Claim, incarnation: str) -> bool:
        found = self._drop(claim, incarnation)
        if found is not None:
            run, job = found
            job.unfinished = claim.unfinished
            run.put_back(job)
            self._changed()
        return found is not None

    def bury(self, claim: Claim, incarnation: str, reason: str) -> bool:
        found = self._drop(claim, incarnation)
        if found is not None:
            run, job = found
            run.damaged, job.token = reason, ""
            self.note(claim.run, WorkerRefused(worker=incarnation, reason=f"{incarnation} buried unit {job.name}: {reason}"))
        return found is not None

    def reconcile(self, incarnation: str, known: Sequence[Claim] = ()) -> int:
        worker, mine = self._workers.get(incarnation), {claim.job: claim for claim in known}
        returned = 0
        for name, run in list(worker.held.items()) if worker is not None else []:
            job, claim = self._in_hand(run, name, incarnation), mine.get(name)
            if job is not None and claim is not None and job.token == claim.token and job.part >= claim.part:
                continue
            del self._workers[incarnation].held[name]
            if job is not None:
                self._runs[run].put_back(job)
                returned += 1
        if returned:
            self._changed()
        return returned

    # -- the budget

    def reserve(
        self,
        keys: RunKeys,
        incarnation: str,
        token: str,
        limits: BudgetLimits,
        settled: Amounts,
        ended: int,
        needs: Sequence[Amounts],
        engine: EngineAccount,
    ) -> Reserved:
        run = self._epoch(keys.run, keys.epoch)
        if run.state == "cancelled":
            raise Lost(f"run {keys.run} was cancelled")
        return self._reservations.reserve(run.budget, incarnation, token, limits, settled, ended, needs, engine)

    def _lives(self, incarnation: str) -> bool:
        worker = self._workers.get(incarnation)
        return worker is not None and worker.until > self._clock()

    # -- questions that rows share

    def share(
        self,
        keys: RunKeys,
        incarnation: str,
        wanted: Sequence[bytes],
        answers: Sequence[tuple[bytes, bytes]] = (),
        given_up: Sequence[bytes] = (),
    ) -> list[bytes | Asker]:
        run = self._epoch(keys.run, keys.epoch)
        if run.state == "cancelled":
            raise Lost(f"run {keys.run} was cancelled")
        for question, answer in answers:
            run.answers.put(question, answer)
        for question in (*(question for question, _ in answers), *given_up):
            if run.asking.get(question) == incarnation:
                del run.asking[question]
        found: list[bytes | Asker] = []
        for question in wanted:
            known = run.answers.get(question)
            asker = run.asking.get(question, "")
            if known is None and asker != incarnation and not self._lives(asker):
                asker = run.asking[question] = incarnation
            found.append(known or (Asker.HERE if asker == incarnation else Asker.ELSEWHERE))
        return found

    # -- results

    def read(self, keys: RunKeys, position: tuple[str, str], count: int = 256) -> list[Entry]:
        run = self._epoch(keys.run, keys.epoch)
        place = run.stream.place(position)
        if place is None:
            raise Lost(f"run {keys.run}: the stream of epoch {keys.epoch} does not continue at {position[0]}")
        return run.stream.behind(place, count)

    def ack(self, keys: RunKeys, owner: str, position: tuple[str, str], roots: Sequence[int]) -> None:
        run = self._epoch(keys.run, keys.epoch)
        place = run.stream.place(position)
        if run.owner != owner or place is None:
            raise Lost(f"ack of run {keys.run}, epoch {keys.epoch}")
        durable = {entry.root for entry in run.stream.trim(place) if entry.suspended} & run.parked
        for root in (*roots, *durable):
            run.forget(root)
        run.parked -= durable
        if roots or durable:
            self._changed()

    # -- notes

    def put_aside(self, run: str, asides: Sequence[Aside], epoch: int | None = None) -> None:
        if run in self._runs:
            fields = self._runs[run].fields
            number = int(fields.get("aside", "0")) + len(asides)
            self._runs[run].fields = {**fields, "aside": str(number), "aside_why": asides[-1].why}

    def note(self, run: str, event: Event) -> None:
        if run in self._runs and self._runs[run].state != "cancelled":
            self._runs[run].noted.append(event)

    def noted(self, run: str) -> int:
        """The number of notes so far."""
        found = self._runs[run]
        return found.read_notes + len(found.noted)

    def notes(self, run: str, after: str) -> tuple[str, list[Note]]:
        found = self._runs.get(run)
        if found is None:
            return after, []
        read = max(0, int(after.partition("-")[2]) - found.read_notes)
        del found.noted[:read]  # the sink is the only reader, and goes forward
        found.read_notes += read
        return f"1-{found.read_notes + len(found.noted)}", list(found.noted)  # type: ignore[arg-type]


def _raw(words: Mapping[str, str]) -> dict[bytes, bytes]:
    """Fields as Redis would give them back."""
    return {name.encode(): value.encode() for name, value in words.items()}
