"""A local run: coordinator, worker and sink on one event loop, over the queue in memory.

All nodes are in flight at once. The window bounds memory: it limits the rows that are admitted and not yet
durable. If engines share a device, the run goes in phases, each of which is an epoch of the queue (SEMANTICS, Sizes).
"""

from __future__ import annotations

import time
from asyncio import CancelledError
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field
from math import inf
from typing import TypeVar

import anyio
import anyio.lowlevel
from anyio.abc import TaskGroup

from chainette.core.apply import Cardinality
from chainette.core.plan import Plan
from chainette.core.plan_node import NodeKind
from chainette.engine.budget import NO_LIMITS, Amounts, Budget, Reserved
from chainette.engine.lifecycle import Engines
from chainette.errors import BudgetExhausted, DeclarationRefused, EngineRefused, EngineUnavailable, RequestsFailed, RunStopped
from chainette.fleet.memory.memory_queue import MemoryQueue
from chainette.fleet.protocol.keys import RunKeys
from chainette.fleet.protocol.queue_values import Drain, EngineAccount
from chainette.fleet.protocol.run_fields import RunInfo, used_fields
from chainette.hooks import Hook
from chainette.io.inputs.roots import Root
from chainette.io.rundir.accepted_rows import has_enough, may_begin
from chainette.io.rundir.event_types import AnswersDiscarded, BudgetUsed, Event
from chainette.records import PYTHON, Outcome, Rejection, Row, step_of
from chainette.run.answer_sources import Answers
from chainette.run.blame import Evidence
from chainette.run.budget_reservation import BudgetReservation, budget_used, is_spent
from chainette.run.claimable_queues import ClaimableQueue, claimable_queues
from chainette.run.coordinator import Coordinator
from chainette.run.held_unit import HeldUnit
from chainette.run.in_flight import InFlight, Lane
from chainette.run.limits import Limits, RejectWatch
from chainette.run.local_sink import LocalSink, Writer
from chainette.run.process import fill, join
from chainette.run.shared_answers import SharedAnswers
from chainette.run.unit_result import UnitResult, raised
from chainette.run.unit_worker import Worker
from chainette.run.window import budget_for, window_for
from chainette.utils.user_errors import is_stray

__all__ = ["LocalRun"]

T = TypeVar("T")

#: The lane of functions that make many rows of one; one unit at a time, and none while the window is full.
_EXPANDING = f"{PYTHON}, expanding"

#: Bytes of admitted input rows that may be live; one root is always allowed.
_LIVE_BYTES = 128 << 20

#: The name of the run, its worker and its sink in the queue, which serves nobody else.
_HERE = "here"

#: The least seconds until the next look at an engine that has rested.
_TICK = 0.005

#: Seconds between two looks at a source that has not given the next rows yet.
_PAUSE = 0.02


@dataclass
class LocalRun(Worker):
    """One run, from the first pending root to the last durable row.

    Raises (from `run`):
        RunStopped: an engine did not answer for too long, or too many rows were rejected.
        EngineConfigError: an engine can never be opened.
        DiskError: the disk is full, or a write failed.
    """

    plan: Plan
    #: Roots that are not complete yet, from the start; called once per phase.
    roots: Callable[[], Iterator[Root]]
    writer: Writer
    engines: Engines
    seed: int
    limits: Limits
    hook: Hook
    #: Gets the finished rows of each root; may wait.
    deliver: Callable[[list[Row]], Awaitable[None]] | None = None
    #: The answers of earlier runs.
    stored: Answers | None = None
    clock: Callable[[], float] = time.monotonic

    incarnation: str = _HERE
    hands: InFlight = field(default_factory=InFlight)
    busy: set[HeldUnit] = field(default_factory=set)
    evidence: dict[tuple[str, int, str], Evidence] = field(default_factory=dict)
    reservations: dict[tuple[str, int, str], BudgetReservation] = field(default_factory=dict)
    shared: SharedAnswers = field(default_factory=SharedAnswers)
    budget: Budget | None = field(init=False)
    #: The part of it that earlier sessions have spent.
    used: Mapping[str, Amounts] = field(init=False)
    queue: MemoryQueue = field(init=False)
    sink: LocalSink = field(init=False)
    _lanes: dict[str, Lane] = field(default_factory=dict)
    _info: RunInfo = field(default_factory=lambda: RunInfo(_HERE))
    _places: list[ClaimableQueue] = field(default_factory=list)
    _claims: int = 0
    _failure: Exception | None = None
    #: Wake the loop that admits and dispatches, and the one that writes.
    _changed: anyio.Event = field(default_factory=anyio.Event)
    _come: anyio.Event = field(default_factory=anyio.Event)

    def __post_init__(self) -> None:
        self.patience, self.budget, self.used = self.limits.engine_patience, self.writer.budget, self.writer.used
        self.queue = MemoryQueue(self.clock, self._tell)
        self.queue.beat(self.incarnation, {}, inf)
        self.sink = LocalSink(self.queue, self.writer, self.hook, RejectWatch(self.limits.max_reject_rate), self.deliver)
        self._begin(frozenset())

    async def run(self) -> None:
        with closing(self.shared):
            await self._run_phases()

    async def _run_phases(self) -> None:
        phases = self.plan.phases
        for config in self.plan.engines.values():
            if not config.lazy and config.name not in phases:
                with suppress(EngineUnavailable):  # its first unit tries again, and is patient
                    await self.engines.get(config.name)
        if len(phases) < 2:
            await self._pass()
            return
        while True:
            for name in phases:
                self._begin(frozenset(phases) - {name})
                await self._pass()
                await self.engines.release(name)
            if self.writer.accepted is None or self._has_enough or not self.queue.progress(self.sink.keys).suspended:
                return  # else roots that began in the last phase need the others

    def post(self, event: Event) -> None:
        """Logs an event before its consequences."""
        self.queue.note(_HERE, event)
        self._tell()

    def _begin(self, barred: frozenset[str]) -> None:
        """An epoch in which units of these engines wait for a later one."""
        info = self._info = RunInfo(_HERE, epoch=self._info.epoch + 1, budget=self.budget)
        keys, token = RunKeys(_HERE, info.epoch), str(info.epoch)
        places = list(claimable_queues(info, self.plan, _lane_of))
        later = {place.queue for place in places if place.lane in barred}
        self._places = [place for place in places if place.queue not in later]
        limits = {"window": self._window, "window_bytes": _LIVE_BYTES, "batch_size": self.plan.batch_size}
        used = used_fields(self.used, self.plan.engines) if self.budget is not None else {}
        self.queue.install(_HERE, info.epoch, "", token, [], {**limits, **used, "barred": " ".join(later)})
        self.sink.begin(keys, token)

    async def _pass(self) -> None:
        """Runs every root as far as the engines of this epoch bring it."""
        feeding = True

        async def write() -> None:
            while True:
                self._come = anyio.Event()
                if not await self.sink.write():
                    if not feeding:
                        return
                    await self._come.wait()

        async with anyio.create_task_group() as writing:
            writing.start_soon(self._guard, write)
            try:
                async with anyio.create_task_group() as working:
                    working.start_soon(self._guard, self.commit_parts)
                    await self._guard(self._feed, working)
                    working.cancel_scope.cancel()
            finally:
                self._settle()
            feeding = False
            self._come.set()
        if self._failure is not None:
            raise self._failure

    async def _feed(self, group: TaskGroup) -> None:
        """Admits, dispatches and waits, until nothing is live and the input is at its end."""
        keys = self.sink.keys
        coordinator = Coordinator(
            self.queue, keys, self.plan, lambda _last: self.roots(), self.sink.durable, self._tell_bad, self._admits
        )
        while self._failure is None and not self._has_enough:
            self._changed, looked = anyio.Event(), self.clock()
            while coordinator.step():
                self._dispatch(group)
                await anyio.lowlevel.checkpoint()
            self._dispatch(group)
            if coordinator.finished and self.queue.progress(keys).complete:
                return
            with anyio.move_on_after(_PAUSE if coordinator.waits else self._rest(looked)):
                await self._changed.wait()

    def _settle(self) -> None:
        """Tells the log which answers, of units that wait as the epoch ends, were asked for in vain, and how much of the budget
        was used after all."""
        for node, usage in self.queue.unfinished(_HERE).items():
            engine = self.plan.stations[node].told_engine
            self.queue.note(_HERE, AnswersDiscarded(node=step_of(node), engine=engine, usage=usage))
        if self.budget is not None:
            self.queue.note(_HERE, budget_used(self.queue, self.sink.keys, self.budget, self.plan.engines)[1])

    @property
    def _has_enough(self) -> bool:
        """Whether all rows that are wanted are accepted, so that later rows need not be processed."""
        return has_enough(self.writer.accepted)

    def _admits(self, root: int) -> bool:
        return may_begin(self.writer.accepted, root, self.plan.batch_size, self._window)

    def _tell_bad(self, bad: list[Rejection]) -> None:
        if self.hook.streams:
            for rejection in bad:
                self.hook.on_stream(rejection)

    def _tell(self) -> None:
        """Something happened in the queue."""
        self._changed.set()
        self._come.set()

    async def _guard(self, work: Callable[..., Awaitable[None]], *arguments: object) -> None:
        """Runs a task; its failure becomes the run's, and ends it."""
        try:
            await work(*arguments)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt) or not is_stray(error):
                raise
            if self._has_enough and isinstance(error, CancelledError):
                return  # a function noticed in its thread that its rows are no longer wanted
            own = error if isinstance(error, Exception) else RunStopped(raised(error))
            self._failure = self._failure or own
            self._tell()

    # -- which units, and when

    @property
    def _window(self) -> int:
        return window_for(sum(lane.budget or 0 for lane in self._lanes.values()), self.limits.window)

    def _lane(self, name: str) -> Lane:
        lane = self._lanes.get(name)
        if lane is None:
            expands = name == _EXPANDING
            lane = self._lanes[name] = Lane(1 if expands else 2 * self.plan.batch_size, expands, self.clock)
        return lane

    def _rest(self, looked: float) -> float | None:
        """Seconds until an engine that did not answer is tried again, or a unit that was put off may be claimed; None if there
        is no such engine or unit. The engine may have answered other units meanwhile, or have rested since units were `looked`
        at."""
        free = [place for place in self._places if self._may_take(place)]
        times = [due for place in free if (due := self.queue.due(place.run, place.queue)) is not None]
        times += [lane.rests_until for lane in self._lanes.values() if lane.rests_until > looked]
        return max(_TICK, min(times) - self.clock()) if times else None

    def _may_expand(self) -> bool:
        """Whether a function may make many rows of one: below the window, or if nothing else can be done."""
        if self.queue.live_rows(_HERE) < self._window:
            return True
        others = [place for place in self._places if place.lane != _EXPANDING]
        idle = all(self._lane(place.lane).idle for place in others)
        return idle and not self.queue.waiting([place.queue for place in others])

    def _may_take(self, place: ClaimableQueue) -> bool:
        return self._lane(place.lane).has_room(place.rows) and (place.lane != _EXPANDING or self._may_expand())

    def _dispatch(self, group: TaskGroup) -> None:
        while places := [place for place in self._places if self._may_take(place)]:
            self._claims += 1
            rooms = [(place.run, place.queue, self._lane(place.lane).room) for place in places]
            claims = self.queue.claim_rows(self.incarnation, str(self._claims), rooms, alone=not self.hands.claims)
            if isinstance(claims, Drain) or not claims:
                return
            for claim in claims:
                held = HeldUnit(self._info, self.plan, self.hook, self._lane(_lane_of(self.plan, claim.unit.node)), claim)
                self.hands.take(held.lane, claim)
                self.hands.start(held.lane, claim)
                group.start_soon(self._guard, self.work, held)

    # -- one unit

    async def work(self, held: HeldUnit) -> None:
        try:
            await super().work(held)
        finally:
            self._changed.set()  # there is room, though the last rows may have been committed before, as a part

    async def work_on(self, held: HeldUnit) -> None:
        try:
            await super().work_on(held)
        except Exception:  # the run ends
            try:
                await self.commit_finished(held)
            finally:
                await self.account(held)
            raise

    def answers_of(self, held: HeldUnit) -> Answers | None:
        del held
        return self.stored

    async def ask(self, call: Callable[[], T]) -> T:
        return call()

    def wait(self, lane: Lane, rows: int) -> None:
        super().wait(lane, rows)
        self._changed.set()

    async def note_reserved(self, account: EngineAccount, reserved: Reserved) -> None:
        """Has the log know of a reservation before its requests are sent, in case this process is killed."""
        if reserved.granted:
            of_engine = {account.name: reserved.of_engine} if account.limits != NO_LIMITS else {}
            self.post(BudgetUsed(used=reserved.used, engines=of_engine))
            await self.sink.caught_up()

    async def exhaust(self, held: HeldUnit, error: BudgetExhausted) -> None:
        del held
        assert self.budget is not None
        raise is_spent(self.queue.progress(self.sink.keys), self.budget, self.plan.engines) from error

    def refused(self, held: HeldUnit) -> None:
        raise AssertionError(f"{held.claim.unit.node}, root {held.claim.unit.root}: nobody else can have this unit")

    async def put_off(self, held: HeldUnit, error: EngineUnavailable) -> None:
        self._require_patience(held, error)
        await super().put_off(held, error)
        self._tell()

    async def process(self, held: HeldUnit) -> Outcome | None:
        if held.result is None:
            return join(self.plan, held.claim.unit, self.hook)
        if held.result.node.kind is NodeKind.STEP:
            await self._ask_engine(held, held.result)
        else:
            await fill(held.result, held.claim.unit.rows, None)
        return None

    async def _ask_engine(self, held: HeldUnit, result: UnitResult) -> None:
        engine = await self.engines.get(result.node.engine)
        self._fit(held.lane, engine.capacity)
        await self.ask_engine(held, result, engine, self.seed)

    def _fit(self, lane: Lane, capacity: int) -> None:
        """Fits the lane to the engine's capacity, and the window to the lanes."""
        budget = budget_for(capacity, self.plan.batch_size)
        if lane.budget != budget:
            lane.budget = budget
            self.queue.widen(_HERE, self._window)

    def _require_patience(self, held: HeldUnit, error: EngineUnavailable) -> None:
        """An engine that did not open was silent meanwhile, and the next try would take as long.

        Raises:
            RunStopped: it refuses whatever is asked, or it has not answered for too long.
        """
        if isinstance(error, RequestsFailed):  # somebody else may be answered
            return
        lane, engine = held.lane, held.plan.engine_of(held.claim.unit.node)
        words = str(error).removeprefix(f"engine {engine!r}: ")
        if isinstance(error, DeclarationRefused):
            raise RunStopped(f"step {held.node!r}: {error}") from error
        if isinstance(error, EngineRefused) and not lane.has_answered:
            raise RunStopped(f"engine {engine!r} refuses to answer: {words}") from error
        opening = 0.0 if engine in self.engines.opened else self.clock() - held.began
        lane.fail(opening)
        assert lane.failing_since is not None
        waited = self.clock() - lane.failing_since
        if waited + opening > self.limits.engine_patience:
            raise RunStopped(f"engine {engine!r} has not answered for {waited:.0f} s: {words}") from error


def _lane_of(plan: Plan, name: str) -> str:
    """The lane of a node's units; joins run beside functions."""
    node = plan.stations.get(name)
    if node is None:
        return PYTHON
    return _EXPANDING if node.cardinality is Cardinality.MANY else node.engine
