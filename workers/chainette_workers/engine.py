"""The engine worker: claims units, processes them on one event loop, commits what became of them.

It waits out Redis for as long as that takes, with its engine loaded. What it does without a lease that holds is
refused by Redis, so a worker that was thought dead costs work, never rows.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import anyio
import anyio.to_thread
import redis
from anyio.abc import TaskGroup

from chainette.core.plan import NodeKind, Plan
from chainette.engine.lifecycle import Engines
from chainette.errors import ChainetteError, EngineUnavailable
from chainette.fleet.connect import is_passing
from chainette.fleet.messages import TooLarge
from chainette.fleet.queue import LEASE, Claim, Drain, LeasedQueue, Lost, RunInfo, Turn
from chainette.hooks import Hook
from chainette.io.events import UnitRetried
from chainette.process import poisoned, process, too_large
from chainette.records import Outcome

__all__ = ["EngineWorker"]

T = TypeVar("T")

#: Seconds between two beats.
BEAT = LEASE / 4

#: Seconds between two looks at an empty queue, and at the list of runs.
_IDLE, _RUNS = 0.05, 1.0

#: Longest wait between two tries of a call that Redis does not answer; below the lease.
_BACKOFF = 1.5


@dataclass
class EngineWorker:
    """One worker process's loop."""

    queue: LeasedQueue
    #: The engines that it serves, by name; "python" among them for Apply and joins.
    names: frozenset[str]
    #: The plan of a run, or None where this worker may not serve it.
    plan_of: Callable[[RunInfo], Plan | None]
    engines_of: Callable[[RunInfo, Plan], Engines]
    #: Rows in flight.
    budget: int
    #: Seconds that the event loop may stand still before the worker counts as dead.
    deadline: float = 600.0
    hook: Hook = field(default_factory=Hook)
    incarnation: str = field(default_factory=lambda: f"w-{secrets.token_hex(6)}")
    _claims: int = 0
    _held: dict[str, Claim] = field(default_factory=dict)
    _in_flight: int = 0
    _plans: dict[tuple[str, int], Plan | None] = field(default_factory=dict)
    _engines: dict[str, Engines] = field(default_factory=dict)
    #: When the event loop last went round, and whether `chainette kill` named this worker.
    _ticked: float = field(default_factory=time.monotonic)
    _asked_to_stop: bool = False
    #: Nothing else is claimed: a unit runs alone, or is about to.
    _alone: bool = False
    _resting: dict[str, float] = field(default_factory=dict)
    _runs: list[RunInfo] = field(default_factory=list)
    _runs_at: float = 0.0
    _freed: anyio.Event = field(default_factory=anyio.Event)

    async def run(self, stop: Callable[[], bool]) -> None:
        """Works until `stop()`, then hands back what is unfinished."""
        beating = threading.Event()
        beats = threading.Thread(target=self._beat, args=(beating,), name="beat", daemon=True)
        await self._insist(lambda: self.queue.beat(self.incarnation, self._words()))
        beats.start()
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(self._watch, stop, group.cancel_scope)
                while True:
                    await self._step(group)
        except BaseExceptionGroup as errors:
            raise _first(errors) from None
        finally:
            with anyio.CancelScope(shield=True):
                await self._try(lambda: self.queue.reconcile(self.incarnation))
                for engines in self._engines.values():
                    await engines.__aexit__(None, None, None)
                beating.set()
                await anyio.to_thread.run_sync(beats.join)
                await self._try(lambda: self.queue.reconcile(self.incarnation))
                await self._try(lambda: self.queue.leave(self.incarnation))

    async def _watch(self, stop: Callable[[], bool], scope: anyio.CancelScope) -> None:
        """Ends the work also while it waits for a Redis that is gone."""
        while not stop() and not self._asked_to_stop:
            self._ticked = time.monotonic()
            await anyio.sleep(_IDLE)
        scope.cancel()

    async def _step(self, group: TaskGroup) -> None:
        """Claims a unit and starts it, or waits for room, or for work."""
        self._alone = self._alone and bool(self._held)
        if self._alone or self._in_flight >= self.budget:
            self._freed = anyio.Event()
            with anyio.move_on_after(1.0):
                await self._freed.wait()
            return
        claim = await self._claim()
        if isinstance(claim, Claim):
            info = next((info for info in self._runs if (info.run, info.epoch) == (claim.run, claim.epoch)), None)
            if info is None:  # the epoch has just risen, maybe with another chain
                self._runs_at = 0.0
                await self._insist(lambda: self.queue.release(claim, self.incarnation))
                return
            self._held[claim.job] = claim
            self._in_flight += len(claim.unit.rows)
            self._alone = claim.turn is not Turn.JOB
            group.start_soon(self._work if claim.turn is not Turn.MEND else self._mend, info, claim)
        elif self._held and claim is not None:
            self._alone = True  # a unit waits that must run alone
        else:
            await anyio.sleep(_IDLE)

    async def _claim(self) -> Claim | Drain | None:
        queues = await self._queues()
        if not queues:
            return None
        self._claims += 1
        token = f"{self.incarnation}-{self._claims}"
        try:
            call = partial(self.queue.claim, self.incarnation, token, queues, alone=not self._held)
            return await anyio.to_thread.run_sync(call)
        except redis.RedisError as error:
            if not is_passing(error):
                raise
            await self._insist(lambda: self.queue.reconcile(self.incarnation, list(self._held.values())))
        except Lost:
            await self._insist(lambda: self.queue.beat(self.incarnation, self._words()))
        return None

    async def _queues(self) -> Sequence[tuple[str, str]]:
        """(run, queue) pairs of what this worker can serve: runs in rotation, deepest node first."""
        if time.monotonic() - self._runs_at > _RUNS:
            self._runs = await self._insist(self.queue.runs)
            self._runs_at = time.monotonic()
        found: list[tuple[str, str]] = []
        runs = [info for info in self._runs if info.state == "running"]
        turn = self._claims % len(runs) if runs else 0
        for info in runs[turn:] + runs[:turn]:
            plan = self._plan(info)
            if plan is not None:
                found += [(info.run, name) for name in self._queues_of(info, plan)]
        return found

    def _plan(self, info: RunInfo) -> Plan | None:
        key = (info.run, info.epoch)
        if key not in self._plans:
            self._plans[key] = self.plan_of(info)
        return self._plans[key]

    def _queues_of(self, info: RunInfo, plan: Plan) -> list[str]:
        depth = {node.id: node.depth for node in plan.nodes.values()}
        depth |= {fork.id: fork.depth for fork in plan.forks.values() if fork.joins}
        ours = [name for name in depth if plan.engine_of(name) in self.names and self._rested(plan.engine_of(name))]
        return [f"{plan.engine_of(name)}.{name}.{info.run}" for name in sorted(ours, key=lambda name: -depth[name])]

    def _rested(self, engine: str) -> bool:
        return self._resting.get(engine, 0.0) <= time.monotonic()

    async def _work(self, info: RunInfo, claim: Claim) -> None:
        """One unit: process, then commit or put off."""
        plan = self._plan(info)
        assert plan is not None
        node = plan.nodes.get(claim.unit.node)
        try:
            engine = None
            if node is not None and node.kind is NodeKind.STEP:
                engine = await (await self._opened(info, plan)).get(node.engine)
            seed = int(info.fields.get("seed", 0))
            outcome = await process(plan, claim.unit, engine, seed=seed, hook=self.hook)
        except EngineUnavailable as error:
            self._resting[plan.engine_of(claim.unit.node)] = time.monotonic() + 1.0
            words, unit = str(error), claim.unit
            event = UnitRetried(node=unit.node, root=unit.root, unit=unit.part, message=words, delay=1.0)
            await self._insist(lambda: self.queue.fail(claim, self.incarnation, 1.0, words))
            await self._insist(lambda: self.queue.note(claim.run, event))
        except (ChainetteError, MemoryError):
            raise
        except Exception as error:  # of the unit, or of our code: the same for the next worker
            await self._bury(claim, f"processing it failed: {type(error).__name__}: {error}")
        else:
            await self._commit(claim, plan, outcome)
        self._let_go(claim)

    async def _mend(self, info: RunInfo, claim: Claim) -> None:
        """A unit that killed a worker while it ran alone: cut in two, or its one row rejected."""
        plan = self._plan(info)
        assert plan is not None
        if claim.unit.node in plan.forks:
            await self._bury(claim, "the processes that joined it died")
        elif len(claim.unit.rows) > 1:
            await self._insist(lambda: self.queue.split(claim, self.incarnation, plan))
        else:
            await self._commit(claim, plan, poisoned(plan, claim.unit))
        self._let_go(claim)

    async def _commit(self, claim: Claim, plan: Plan, outcome: Outcome) -> None:
        token = secrets.token_hex(8)
        try:
            await self._insist(lambda: self.queue.commit(claim, self.incarnation, plan, outcome, token))
        except TooLarge as error:
            await self._shrink(claim, plan, error)
        except redis.ResponseError as error:
            await self._bury(claim, f"Redis refuses its commit: {error}")

    async def _shrink(self, claim: Claim, plan: Plan, error: TooLarge) -> None:
        """A unit whose outcome no queue takes: cut in two, or its one row rejected."""
        if claim.unit.node in plan.forks:
            await self._bury(claim, str(error))
        elif len(claim.unit.rows) > 1:
            await self._insist(lambda: self.queue.split(claim, self.incarnation, plan))
        else:
            await self._commit(claim, plan, too_large(plan, claim.unit, str(error)))

    async def _bury(self, claim: Claim, reason: str) -> None:
        reason = f"{claim.unit.node} root {claim.unit.root}: {reason}"
        await self._insist(lambda: self.queue.bury(claim, self.incarnation, reason))

    def _let_go(self, claim: Claim) -> None:
        if self._held.get(claim.job) is claim:
            del self._held[claim.job]
        self._in_flight -= len(claim.unit.rows)
        self._freed.set()

    async def _opened(self, info: RunInfo, plan: Plan) -> Engines:
        if info.run not in self._engines:
            self._engines[info.run] = await self.engines_of(info, plan).__aenter__()
        return self._engines[info.run]

    async def _insist(self, call: Callable[[], T]) -> T:
        """Calls Redis until it answers: the loaded engine is worth more than the wait."""
        delay = 0.05
        while True:
            try:
                return await anyio.to_thread.run_sync(call)
            except redis.RedisError as error:
                if not is_passing(error):
                    raise
                await anyio.sleep(delay)
                delay = min(_BACKOFF, 2 * delay)

    async def _try(self, call: Callable[[], object]) -> None:
        """Calls Redis once, at the end: what it does not hear, the lease's end tells it."""
        with suppress(redis.RedisError):
            await anyio.to_thread.run_sync(call)

    def _words(self) -> dict[str, str | int | float]:
        """What the worker says about itself."""
        return {"engines": ",".join(sorted(self.names)), "rows_in_flight": self._in_flight, "units_in_flight": len(self._held)}

    def _beat(self, stopped: threading.Event) -> None:
        """Renews the lease, and takes back what dead workers held; quiet for one lease after Redis failed."""
        quiet_until = time.monotonic() + LEASE
        while not stopped.wait(BEAT):
            try:
                if time.monotonic() - self._ticked > self.deadline:
                    continue  # the event loop hangs: somebody else should have its units
                self.queue.beat(self.incarnation, self._words())
                self._asked_to_stop = self.queue.is_asked_to_stop(self.incarnation)
                if time.monotonic() > quiet_until:
                    self.queue.reap()
            except redis.RedisError:
                quiet_until = time.monotonic() + LEASE


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """One error of several; one that tells the user what to do comes first."""
    found: BaseException = errors.subgroup(ChainetteError) or errors
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found
