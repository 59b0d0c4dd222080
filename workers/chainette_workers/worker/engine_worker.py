"""The engine worker: claims units, processes them on one event loop, commits their outcomes.

If Redis is away, it waits for as long as that takes, with its engine loaded. Redis refuses the commits of a worker
whose lease is over, so a worker that was wrongly taken for dead costs work, never rows.
"""

from __future__ import annotations

import os
import secrets
import socket
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from math import inf
from time import monotonic, time
from typing import TypeVar

import anyio
import anyio.to_thread
import msgspec
import redis
from anyio.abc import TaskGroup

from chainette.core.plan import Plan
from chainette.engine.base import Engine
from chainette.engine.config import EngineConfig
from chainette.errors import ChainetteError, DeclarationRefused, EngineRefused, EngineUnavailable
from chainette.fleet.protocol.contract import LeasedQueue
from chainette.fleet.protocol.keys import RunKeys
from chainette.fleet.protocol.member_fields import Member, listed
from chainette.fleet.protocol.messages import TooLarge
from chainette.fleet.protocol.queue_values import LEASE, Claim, Drain, Lost, Turn
from chainette.fleet.protocol.rq_jobs import age
from chainette.fleet.protocol.run_fields import RunInfo
from chainette.fleet.redis.answer_lookups import Lookups
from chainette.fleet.redis.connect import is_damage, is_passing
from chainette.hooks import Hook, Stage
from chainette.io.rundir.event_types import UnitSplit
from chainette.records import Outcome, Unit
from chainette.run.answer_sources import Answers
from chainette.run.blame import Evidence
from chainette.run.budget_reservation import BudgetReservation
from chainette.run.claimable_queues import ClaimableQueue
from chainette.run.functions import take_stored
from chainette.run.held_unit import HeldUnit
from chainette.run.in_flight import InFlight, Lane
from chainette.run.process import join, poisoned, too_large
from chainette.run.shared_answers import SharedAnswers
from chainette.run.unit_result import UnitResult
from chainette.run.unit_worker import Worker
from chainette.run.window import budget_for
from chainette.utils.user_errors import is_stray, told
from chainette_workers.runtime import insist, off_loop, try_once
from chainette_workers.worker.asked_answers import AskedAnswers, NobodyLooks
from chainette_workers.worker.engine_pool import EnginePool
from chainette_workers.worker.engine_turns import EngineTurns, exclude
from chainette_workers.worker.enqueued_chains import ChainDiffers
from chainette_workers.worker.function_pool import Functions, InLoop
from chainette_workers.worker.heartbeat import Heartbeat
from chainette_workers.worker.served_runs import FUNCTIONS, JOINS, ServedRuns, lane_of

__all__ = ["EngineWorker"]

T = TypeVar("T")

#: Seconds between two looks at empty queues: the first after something moved, and the longest.
_SOON, _LATE = 0.002, 0.05

#: Seconds between two looks at whether the worker is to end.
_WATCH = 0.02

#: Seconds an engine rests that refuses this worker, and that a unit waits whose step was refused.
_REFUSED = 1.0

#: Seconds a unit waits whose run's sink did not look for the answers of earlier runs.
_UNHEARD = 2.0

#: Seconds between two choices of the engine to serve, if some exclude each other.
_CHOICE = 0.25

#: Seconds between two lists of the claims in hand for Redis, which may have gone back to before a commit.
_AGREEMENT = LEASE

#: Join units that run side by side; each takes the event loop for as long as it lasts.
_JOINS = 4


async def _no_announcement(_info: RunInfo, _config: EngineConfig | None) -> None:
    pass


@dataclass
class EngineWorker(Worker):
    """One worker process's loop: claim, process, commit."""

    queue: LeasedQueue
    served: ServedRuns
    models: EnginePool
    #: Rows in flight in each engine; None takes twice the engine's capacity, and two units at least.
    rows_in_flight: int | None = None
    functions: Functions = field(default_factory=InLoop)
    #: Seconds until nothing more is claimed; the units in hand are finished, and the worker ends.
    drain_after: float | None = None
    #: Seconds the event loop may stand still before the worker counts as dead.
    deadline: float = 600.0
    hook: Hook = field(default_factory=Hook)
    #: Its fields in Redis that do not change.
    about: Mapping[str, str] = field(default_factory=dict)
    incarnation: str = field(default_factory=lambda: f"w-{secrets.token_hex(6)}")
    #: Called once, when units can come.
    ready: Callable[[], None] = lambda: None
    #: Called before a unit of a run is worked on, with the engine it needs; the unit waits for it.
    announce: Callable[[RunInfo, EngineConfig | None], Awaitable[None]] = _no_announcement
    #: Tells a run that one of its engines refuses this worker; "" that it does not any more.
    withdraw: Callable[[RunInfo, str], None] = lambda _info, _why: None
    #: The way to the answers of earlier runs, which the sinks of its runs have; None: every row is computed.
    lookups: Lookups | None = None
    hands: InFlight = field(default_factory=InFlight)
    busy: set[HeldUnit] = field(default_factory=set)
    evidence: dict[tuple[str, int, str], Evidence] = field(default_factory=dict)
    reservations: dict[tuple[str, int, str], BudgetReservation] = field(default_factory=dict)
    shared: SharedAnswers = field(default_factory=lambda: SharedAnswers(with_others=True))
    turns: EngineTurns = field(default_factory=EngineTurns)
    _lanes: dict[str, Lane] = field(default_factory=dict)
    #: Runs that were told of a refusal.
    _withdrawn: set[str] = field(default_factory=set)
    _claims: int = 0
    _pause: float = _SOON

    async def run(self, stop: Callable[[], bool]) -> None:
        """Works until `stop()`, then hands back unfinished units; or until it has drained."""
        try:
            async with self._attached() as heartbeat, anyio.create_task_group() as group:
                group.start_soon(self._watch, stop, heartbeat, group.cancel_scope)
                group.start_soon(self.served.follow, self._look_again)
                group.start_soon(self._choose)
                group.start_soon(self.commit_parts)
                group.start_soon(self._exchange_answers)
                await self._take_units(group)
                while self.hands.claims:
                    await self.hands.change()
                group.cancel_scope.cancel()
        except BaseExceptionGroup as errors:
            raise _first(errors) from None

    @asynccontextmanager
    async def _attached(self) -> AsyncIterator[Heartbeat]:
        """Holds a lease; at the end the worker holds no unit, and the engines are closed."""
        heartbeat = Heartbeat(
            self.queue, self.incarnation, self._words, self.deadline, lambda: self.served.queues, hook=self.hook
        )
        await insist(heartbeat.beat)
        heartbeat.start()
        self.ready()
        try:
            yield heartbeat
        finally:
            with anyio.CancelScope(shield=True):
                await try_once(lambda: self.queue.reconcile(self.incarnation))
                self.shared.close()
                await self.functions.aclose()
                await self.models.release()
                await anyio.to_thread.run_sync(heartbeat.stop)
                await try_once(lambda: self.queue.reconcile(self.incarnation))
                await try_once(lambda: self.queue.leave(self.incarnation))

    async def _watch(self, stop: Callable[[], bool], heartbeat: Heartbeat, scope: anyio.CancelScope) -> None:
        """Ends the work, even while it waits for a Redis that is gone."""
        while not stop() and not heartbeat.asked_to_stop:
            heartbeat.tick()
            await anyio.sleep(_WATCH)
        scope.cancel()

    async def _choose(self) -> None:
        """Chooses the engine to serve, if some exclude each other."""
        while True:
            self.turns.know(config for _, plan in self.served.plans() for config in self._own(plan))
            if self.turns.contended:
                lanes = {place.queue: place.lane for place in self.served.places()}
                depths = await insist(lambda: self.queue.waiting([*lanes]))  # noqa: B023
                waiting: Counter[str] = Counter()
                for queue, depth in depths.items():
                    waiting[lanes[queue]] += depth
                self.turns.choose(waiting, lambda digest: not self._lane(digest).idle)
            await anyio.sleep(_CHOICE)

    def _own(self, plan: Plan) -> list[EngineConfig]:
        """The engines of a plan this worker serves."""
        return [config for name, config in plan.engines.items() if name in self.served.names]

    async def _take_units(self, group: TaskGroup) -> None:
        end = inf if self.drain_after is None else monotonic() + self.drain_after
        agreed = monotonic()
        while monotonic() < end:
            if monotonic() - agreed > _AGREEMENT:
                await self._agree()
                agreed = monotonic()
            claimed = await self._claim()
            for held in claimed:
                group.start_soon(self.work, held)
            if claimed:
                self._pause = _SOON
            else:
                await self.hands.change(self._pause)
                self._pause = min(_LATE, 2 * self._pause)

    def keep(self, runs: Collection[str]) -> None:
        """Forgets all other runs."""
        self.evidence = {key: each for key, each in self.evidence.items() if key[0] in runs}
        self.reservations = {key: each for key, each in self.reservations.items() if key[0] in runs}
        self._withdrawn &= {*runs}

    def _look_again(self) -> None:
        """Units of a new run are claimed at once."""
        self._pause = _SOON
        self.hands.tell()

    async def _exchange_answers(self) -> None:
        """Tells other workers the answers that rows share, and asks them."""
        while True:
            for keys, news in await self.shared.outgoing():
                call = partial(self.queue.share, keys, self.incarnation, news.wanted, news.answers, news.given_up)
                try:
                    found = await insist(call)
                except Lost:
                    self.shared.lost(news.wanted)
                else:
                    self.shared.heard(news.wanted, found)

    async def _agree(self) -> None:
        """Returns units to their queues that Redis thinks this worker holds, but that it does not."""
        await insist(lambda: self.queue.reconcile(self.incarnation, [*self.hands]))

    # -- claiming

    async def _claim(self) -> list[HeldUnit]:
        """Units that can begin now; else one for which its engine opens; else none."""
        if self.hands.alone:
            return []
        places = [place for place in self.served.places() if self._may_serve(place.lane)]
        now = [place for place in places if self._lane(place.lane).has_room(place.rows)]
        later = [place for place in places if place not in now and self._lane(place.lane).takes_ahead]
        return await self._claim_from(now, ahead=False) or await self._claim_from(later, ahead=True)

    def _may_serve(self, lane: str) -> bool:
        return not self._lane(lane).rests and (lane in (FUNCTIONS, JOINS) or self.turns.may_serve(lane))

    async def _claim_from(self, places: Sequence[ClaimableQueue], *, ahead: bool) -> list[HeldUnit]:
        if not places or self.hands.alone:
            return []
        self._claims += 1
        token = f"{self.incarnation}-{self._claims}"
        queues = [(place.run, place.queue, self._lane(place.lane).room) for place in places]
        try:
            call = partial(self.queue.claim_rows, self.incarnation, token, queues, alone=not self.hands.claims, ahead=ahead)
            found = await off_loop(call)
        except redis.RedisError as error:
            if not (is_passing(error) or is_damage(error)):
                raise
            await self._agree()
        except Lost:
            if not await insist(lambda: self.queue.beat(self.incarnation, self._words(), queues=self.served.queues)):
                self.hook.on_lease_lost()
        else:
            if not isinstance(found, Drain):
                held = [await self._hold(claim, ahead=ahead) for claim in found]
                return [one for one in held if one is not None]
            self.hands.alone = bool(self.hands.claims)
            if ahead and not self.hands.claims:
                await self._make_room(next(place for place in places if place.queue == found.queue))
        return []

    async def _make_room(self, place: ClaimableQueue) -> None:
        """Opens the engine of a unit that must run alone, so that it can be claimed to begin at once: a worker that dies
        while it loads is not held against it."""
        for info, plan in self.served.plans():
            for config in plan.engines.values():
                if (info.run, config.digest) == (place.run, place.lane):
                    try:
                        await self._ready(config, plan)
                    except EngineUnavailable:
                        self._lane(place.lane).fail()
                    return

    async def _hold(self, claim: Claim, *, ahead: bool) -> HeldUnit | None:
        """Takes a claimed unit in hand."""
        found = self.served.plan(claim)
        if found is None:  # the epoch has just risen, maybe with another chain
            await insist(lambda: self.queue.release(claim, self.incarnation))
            await self.served.look()
            return None
        info, plan, hook = found
        held = HeldUnit(info, plan, hook, self._lane(lane_of(plan, claim.unit.node)), claim, ahead)
        self.hands.take(held.lane, claim)
        return held

    def _lane(self, name: str) -> Lane:
        lane = self._lanes.get(name)
        if lane is None:
            budgets = {FUNCTIONS: self.functions.width, JOINS: _JOINS}
            lane = self._lanes[name] = Lane(budgets.get(name, self.rows_in_flight), by_unit=name in budgets)
        return lane

    # -- one unit

    async def hand_back(self, held: HeldUnit) -> None:
        claim = held.handed_back()
        await insist(lambda: self.queue.release(claim, self.incarnation))
        held.lost = True

    def answers_of(self, held: HeldUnit) -> Answers | None:
        if self.lookups is None or not held.info.reuse:
            return None
        return AskedAnswers(self.lookups, RunKeys(held.claim.run, held.claim.epoch))

    async def ask(self, call: Callable[[], T]) -> T:
        return await insist(call)

    async def work_on(self, held: HeldUnit) -> None:
        if held.claim.turn is Turn.MEND:
            await self._divide(held)
            return
        try:
            await super().work_on(held)
            return
        except ChainDiffers:
            await self.commit_finished(held)
            await self.hand_back(held)
            self.served.forget(held.claim)
        except NobodyLooks as error:
            await self.commit_finished(held)
            await insist(partial(self.queue.fail, held.handed_back(), self.incarnation, _UNHEARD, str(error)))
        except (ChainetteError, MemoryError, redis.RedisError):
            raise
        except BaseException as error:  # of the unit, or of our code: the same for the next worker
            if not is_stray(error):
                raise
            await self.commit_finished(held)
            await self._bury(held, f"processing it failed: {told(error)}")
        await self.account(held)

    async def put_off(self, held: HeldUnit, error: EngineUnavailable) -> None:
        """As the base. A unit that is refused here (say, because of this machine's key) goes back at once: other workers may be
        served. If the step is refused, others would be too, and the run is about to stop."""
        if not isinstance(error, EngineRefused):
            await super().put_off(held, error)
            return
        self._withdrawn.add(held.info.run)
        self.withdraw(held.info, str(error))
        event, claim = self.retried(held, error, held.lane.rest(_REFUSED)), held.handed_back()
        if self.evidence_of(held).is_news(error):  # else the run may have been resumed since, and the server mended
            await insist(lambda: self.queue.note(claim.run, event))
        if isinstance(error, DeclarationRefused):
            await insist(lambda: self.queue.fail(claim, self.incarnation, _REFUSED, event.message))
        else:
            await insist(lambda: self.queue.release(claim, self.incarnation))

    async def process(self, held: HeldUnit) -> Outcome | None:
        plan, claim, lane = held.plan, held.claim, held.lane
        node = plan.stations.get(claim.unit.node)
        config = plan.engines.get(node.engine) if node is not None else None
        engine = await self._ready(config, plan) if config is not None else None
        await self.hands.begin(lane, claim)
        await self.announce(held.info, config)
        if held.ahead and not await insist(lambda: self.queue.start(claim, self.incarnation)):
            held.lose()
            return None
        held.hook.on_stage(claim.unit.node, Stage.WAIT, age(claim.since, time()))
        if held.result is None:
            return join(plan, claim.unit, held.hook)
        await self._fill(held, held.result, engine)
        return None

    async def _ready(self, config: EngineConfig, plan: Plan) -> Engine:
        """The engine, opened, with its capacity known."""
        engine, lane = await self._opened(config), self._lane(config.digest)
        if lane.budget is None:
            lane.budget = budget_for(engine.capacity, plan.batch_size)
            self.hands.tell()
        return engine

    async def _opened(self, config: EngineConfig) -> Engine:
        """The engine, once no requests are in flight to those that it excludes."""
        while any(exclude(config, other) and not self._lane(other.digest).idle for other in self.models.occupying(config)):
            await self.hands.change()
        swaps = self.models.swaps
        try:
            engine = await self.models.get(config)
        finally:
            self.hands.tell()
        if self.models.swaps > swaps:
            self.turns.settled(self.models.swap_seconds)
        return engine

    async def _fill(self, held: HeldUnit, result: UnitResult, engine: Engine | None) -> None:
        unit = held.claim.unit
        if engine is not None:
            await self.ask_engine(held, result, engine, held.info.seed or 0)
            if held.info.run in self._withdrawn:
                self._withdrawn.discard(held.info.run)
                self.withdraw(held.info, "")
            return
        began = monotonic()
        if result.stored is not None:  # its processes for functions do not look
            unit = msgspec.structs.replace(unit, rows=[*await take_stored(result, unit.rows)])
        if unit.rows:
            await self.functions.run(held.info, result, unit)
        held.hook.on_stage(unit.node, Stage.GENERATE, monotonic() - began)

    async def commit(self, held: HeldUnit, outcome: Outcome, rows: Collection[str] | None = None) -> None:
        try:
            await super().commit(held, outcome, rows)
        except TooLarge as error:
            await self._commit_less(held, outcome, held.claim.piece(rows), str(error))
        except redis.ResponseError as error:
            await self._bury(held, f"Redis refuses its commit: {error}")

    async def _commit_less(self, held: HeldUnit, outcome: Outcome, unit: Unit, why: str) -> None:
        """Commits the first half of rows that are too large together; the others are the next part. A row that is too large
        by itself is rejected."""
        if held.result is None:  # a join has no parts
            await self._bury(held, why)
            return
        size = max(1, len(unit.rows) // 2)
        rows = {row.row_id for row in unit.rows[:size]}
        part = held.result.take_less(outcome, held.claim.piece(rows), unit.rows[size:])
        if len(unit.rows) == 1:
            part = msgspec.structs.replace(too_large(held.plan, unit, why), usage=part.usage, shared=part.shared)
        await self.commit(held, part, rows)

    async def _divide(self, held: HeldUnit) -> None:
        """A unit whose workers died: cut in two, or its one row rejected."""
        plan, claim = held.plan, held.claim
        if claim.unit.node in plan.forks:
            await self._bury(held, "the processes that took it died")
        elif len(claim.unit.rows) > 1:
            if await insist(lambda: self.queue.split(claim, self.incarnation, plan)):
                event = UnitSplit(node=claim.unit.node, root=claim.unit.root, unit=claim.unit.part)
                await insist(lambda: self.queue.note(claim.run, event))
            held.lose()
        else:
            await self.commit(held, poisoned(plan, claim.piece()))

    async def _bury(self, held: HeldUnit, reason: str) -> None:
        claim = held.claim
        reason = f"{claim.unit.node} root {claim.unit.root}: {reason}"
        await insist(lambda: self.queue.bury(claim, self.incarnation, reason))
        held.lose()

    @property
    def rows_budget(self) -> int:
        """Rows that may be in flight in the engines that were opened so far; any thread may ask."""
        return sum(lane.budget or 0 for lane in [*self._lanes.values()] if not lane.by_unit)

    def _words(self) -> dict[str, str | int | float]:
        """The worker's fields in Redis."""
        return Member.words(
            **self.about,
            pid=os.getpid(),
            host=socket.gethostname(),
            engines=listed(self.served.names),
            rows_in_flight=self.hands.rows,
            rows_budget=self.rows_budget,
            units_in_flight=len(self.hands.claims),
            swaps=self.models.swaps,
            swap_seconds=round(self.models.swap_seconds, 1),
            swapping=round(self.models.swapping, 3),
        )


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """One error of several; errors that tell the user how to go on come first."""
    found: BaseException = errors.subgroup(ChainetteError) or errors
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found
