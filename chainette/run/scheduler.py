"""The local mover: one event loop that admits roots, hands units to lanes, and passes outcomes to a writer.

All nodes are in flight at once. What bounds memory is the window: rows that were admitted and are not yet
durable. Where engines share a device, the run goes in phases (SEMANTICS, Sizes).
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from typing import Protocol

import anyio
import anyio.to_thread
from anyio.abc import TaskGroup

from chainette.core.apply import Cardinality
from chainette.core.flow import Durable, frontier
from chainette.core.plan import PYTHON, NodeKind, Plan
from chainette.core.streaming import Finished
from chainette.engine.lifecycle import Engines
from chainette.errors import EngineRefused, EngineUnavailable, RunStopped
from chainette.hooks import Hook
from chainette.io.inputs.roots import Root
from chainette.io.rundir.events import UnitRetried
from chainette.io.rundir.writer import Admitted, Commit, Committed, Item, Suspended
from chainette.records import CHAIN_INPUT, Effects, Outcome, Row, Unit, Usage
from chainette.run.engine_queue import Lane
from chainette.run.limits import Limits, RejectWatch, window_for
from chainette.run.outstanding import Ledger
from chainette.run.process import process
from chainette.run.unit_result import raised
from chainette.utils.foreign import is_stray

__all__ = ["LocalRun", "Writer"]

#: The lane of functions that make many rows of one; one unit at a time, and none while the window is full.
_EXPANDING = "expanding"

#: Bytes of admitted input rows that may be live; one root is always allowed.
_LIVE_BYTES = 128 << 20


class Writer(Protocol):
    """Where outcomes go."""

    def commit(self, group: Sequence[Item]) -> Committed: ...
    def durable(self, root: int) -> Durable | None: ...


@dataclass
class LocalRun:
    """One run, from the first pending root to the last durable row.

    Raises (from `run`):
        RunStopped: an engine did not answer for too long, or too many rows were rejected.
        EngineConfigError: an engine can never be opened.
        DiskError: the disk refused.
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
    clock: Callable[[], float] = time.monotonic

    _ledger: Ledger = field(default_factory=Ledger)
    _lanes: dict[str, Lane] = field(default_factory=dict)
    #: Engines that wait for a later phase.
    _barred: frozenset[str] = frozenset()
    _parked: dict[int, int] = field(default_factory=dict)
    #: Roots that hold window until they are durable -> (rows, bytes).
    _held: dict[int, tuple[int, int]] = field(default_factory=dict)
    _held_rows: int = 0
    _held_bytes: int = 0
    _inbox: list[Item] = field(default_factory=list)
    _rejects: RejectWatch = field(init=False)
    _failure: Exception | None = None
    _torn: bool = False
    #: The writer waits for no function of the user's.
    _own_thread: anyio.CapacityLimiter = field(default_factory=lambda: anyio.CapacityLimiter(1))
    _wake: anyio.Event = field(default_factory=anyio.Event)
    _posted: anyio.Event = field(default_factory=anyio.Event)

    def __post_init__(self) -> None:
        self._rejects = RejectWatch(self.limits.max_reject_rate)

    async def run(self) -> None:
        phases = self.plan.phases
        for config in self.plan.engines.values():
            if not config.lazy and config.name not in phases:
                with suppress(EngineUnavailable):  # its first unit tries again, and is patient
                    await self.engines.get(config.name)
        if len(phases) < 2:
            await self._pass(frozenset())
            return
        for name in phases:
            await self._pass(frozenset(phases) - {name})
            await self.engines.release(name)

    async def _pass(self, barred: frozenset[str]) -> None:
        """Runs every root as far as the engines of this phase bring it."""
        self._barred = barred
        feeding = True

        async def write() -> None:
            while feeding or self._inbox:
                self._posted = anyio.Event()
                if not self._inbox:
                    await self._posted.wait()
                await self._write()

        async with anyio.create_task_group() as writing:
            writing.start_soon(self._guard, write)
            async with anyio.create_task_group() as working:
                await self._guard(self._feed, working)
                if self._failure is not None:
                    working.cancel_scope.cancel()
            feeding = False
            self._posted.set()
        if self._failure is not None:
            raise self._failure

    async def _feed(self, group: TaskGroup) -> None:
        """Admits, dispatches and waits, until nothing is live and the input is at its end."""
        roots = self.roots()
        exhausted = False
        while self._failure is None:
            while not exhausted and self._window_open():
                root = next(roots, None)
                if root is None:
                    exhausted = True
                else:
                    self._admit(root)
                    self._dispatch(group)
                    await anyio.lowlevel.checkpoint()
            self._dispatch(group)
            if exhausted and not self._ledger and not self._held:
                return
            self._wake = anyio.Event()
            if self._failure is None:
                await self._wake.wait()

    # -- admission

    @property
    def _window(self) -> int:
        return window_for(sum(lane.budget for lane in self._lanes.values()), self.limits.window)

    def _window_open(self) -> bool:
        live = max(self._held_rows, self._ledger.rows)
        return not self._held or (live < self._window and self._held_bytes < _LIVE_BYTES)

    def _may_expand(self) -> bool:
        """Whether a function may make many rows of one: below the window, or where nothing else can be done."""
        others = (lane for lane in self._lanes.values() if lane.engine != _EXPANDING)
        return self._ledger.rows < self._window or all(lane.idle for lane in others)

    def _hold(self, root: Root) -> None:
        size = sum(len(value) for row in root.rows for value in row.values.values())
        self._held[root.number] = (len(root.rows), size)
        self._held_rows += len(root.rows)
        self._held_bytes += size

    def _let_go(self, root: int) -> None:
        rows, size = self._held.pop(root)
        self._held_rows -= rows
        self._held_bytes -= size

    def _admit(self, root: Root) -> None:
        durable = self.writer.durable(root.number)
        effects = frontier(self.plan, root.number, root.rows, durable)
        known = durable.rejected(CHAIN_INPUT) if durable is not None else ()
        bad = [rejection for rejection in root.bad if rejection.row_id not in known]
        if self.hook.streams:
            for rejection in bad:
                self.hook.on_stream(rejection)
        self._hold(root)
        self.post(Admitted(root.number, root.rows, root.records, durable, root.read))
        pending = self._ledger.admit(root.number, len(root.rows), effects)
        if bad or not pending:
            unit = Unit(CHAIN_INPUT, root.number, "", "", [])
            self.post(Commit(unit, Outcome([], bad, [], Usage(), Effects()), done=not pending))
        self._queue(root.number, effects.units)

    def _queue(self, root: int, units: Sequence[Unit]) -> None:
        for unit in units:
            engine, depth = self._where(unit)
            if engine in self._barred:
                self._parked[root] = self._parked.get(root, 0) + 1
            else:
                self._lane(engine).push(unit, depth)
        if self._parked.get(root) and self._parked[root] == self._ledger.units(root):
            del self._parked[root]
            self._ledger.drop(root)
            self.post(Suspended(root))

    def _where(self, unit: Unit) -> tuple[str, int]:
        node = self.plan.nodes.get(unit.node)
        if node is None:
            return PYTHON, self.plan.forks[unit.node].depth
        return _EXPANDING if node.cardinality is Cardinality.MANY else node.engine, node.depth

    def _lane(self, engine: str) -> Lane:
        if engine not in self._lanes:
            budget = 1 if engine == _EXPANDING else 2 * self.plan.batch_size
            self._lanes[engine] = Lane(engine, budget, self.clock)
        return self._lanes[engine]

    # -- work

    def _dispatch(self, group: TaskGroup) -> None:
        for lane in self._lanes.values():
            if lane.engine == _EXPANDING and not self._may_expand():
                continue
            while (unit := lane.take()) is not None:
                group.start_soon(self._guard, self._work, group, lane, unit)

    async def _guard(self, work: Callable[..., Awaitable[None]], *arguments: object) -> None:
        """Runs a task; its failure becomes the run's, and ends it."""
        try:
            await work(*arguments)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt) or not is_stray(error):
                raise
            own = error if isinstance(error, Exception) else RunStopped(raised(error))
            self._failure = self._failure or own
            self._wake.set()

    async def _work(self, group: TaskGroup, lane: Lane, unit: Unit) -> None:
        """One unit: its engine, process, and what follows."""
        node = self.plan.nodes.get(unit.node)
        began = self.clock()
        try:
            engine = None
            if node is not None and node.kind is NodeKind.STEP:
                engine = await self.engines.get(lane.engine)
                lane.budget = max(2 * engine.capacity, 2 * self.plan.batch_size)
            outcome = await process(self.plan, unit, engine, seed=self.seed, hook=self.hook)
        except EngineUnavailable as error:
            self._retry(group, lane, unit, error, began)
            return
        lane.succeed(unit)
        units, done = self._ledger.commit(unit, outcome.effects)
        self.post(Commit(unit, outcome, done))
        if not done:
            self._queue(unit.root, units)
        self._dispatch(group)

    def _retry(self, group: TaskGroup, lane: Lane, unit: Unit, error: EngineUnavailable, began: float) -> None:
        """Puts a unit back. An engine that did not open was silent meanwhile, and would be for as long again."""
        opening = 0.0 if lane.engine in self.engines.opened else self.clock() - began
        delay = lane.fail(unit, self._where(unit)[1], opening)
        assert lane.failing_since is not None
        waited = self.clock() - lane.failing_since
        words = str(error).removeprefix(f"engine {lane.engine!r}: ")
        if isinstance(error, EngineRefused) and not lane.answered:
            raise RunStopped(f"engine {lane.engine!r} refuses to answer: {words}") from error
        if waited + opening > self.limits.engine_patience:
            raise RunStopped(f"engine {lane.engine!r} has not answered for {waited:.0f} s: {words}") from error
        event = UnitRetried(node=unit.node, root=unit.root, unit=unit.part, message=str(error), delay=round(delay, 3))
        self.post(event)
        group.start_soon(self._wake_after, delay)

    async def _wake_after(self, delay: float) -> None:
        await anyio.sleep(delay + 0.002)  # uvloop counts in milliseconds: its timers may fire up to two early
        self._wake.set()

    # -- durability

    def post(self, item: Item) -> None:
        """Hands something to the writer."""
        self._inbox.append(item)
        self._posted.set()

    @property
    def torn(self) -> bool:
        """Whether the writer gave up within a group, so that nothing may be written behind it."""
        return self._torn

    def take_inbox(self) -> list[Item]:
        """What is not durable yet, handed over."""
        group, self._inbox = self._inbox, []
        return group

    async def _write(self) -> None:
        """Makes what was posted durable, as one group, then gives back its window."""
        group = self.take_inbox()
        if not group:
            return
        self._torn = True
        with anyio.CancelScope(shield=True):  # what was taken out of the inbox is written, whatever happens
            committed = await anyio.to_thread.run_sync(self.writer.commit, group, limiter=self._own_thread)
        self._torn = False
        for event in committed.events:
            self.hook.on_event(event)
        if self.hook.streams:
            for row in chain.from_iterable(committed.finished):
                self.hook.on_stream(Finished(row))
        if self.deliver is not None:
            for rows in filter(None, committed.finished):
                await self.deliver(rows)
        for item in group:
            self._settle(item)
        self._wake.set()

    def _settle(self, item: Item) -> None:
        match item:
            case Suspended():
                self._let_go(item.root)
            case Commit():
                if item.done:
                    self._let_go(item.unit.root)
                self._rejects.count(item.unit.node, len(item.unit.rows), len(item.outcome.rejected))
            case _:
                pass
