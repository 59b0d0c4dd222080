"""The heart of every worker: a unit that was claimed is processed, then committed or put off.

A local run has one worker over the queue in memory; a fleet has many over Redis. They differ in how they reach
their queue, and in the processes that run engines and functions.

Rows of a slow engine do not wait for their unit (PROTOCOL 21): a part with those that have finished is committed once the
oldest of them is a second old, and before the unit leaves the worker for any reason. A unit that finishes within that
second is one commit.
"""

from __future__ import annotations

import asyncio
import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from functools import partial
from time import monotonic
from typing import TypeVar

import anyio
import anyio.lowlevel

from chainette.core.plan import Plan
from chainette.errors import EngineUnavailable
from chainette.fleet.protocol.contract import LeasedQueue
from chainette.fleet.protocol.keys import RunKeys
from chainette.fleet.protocol.run_fields import RunInfo
from chainette.fleet.protocol.states import Claim
from chainette.hooks import Hook, Stage
from chainette.io.rundir.events import AnswersDiscarded, UnitRetried
from chainette.records import Outcome, Usage
from chainette.run.in_hand import Hands, Lane
from chainette.run.unit_result import UnitResult

__all__ = ["Held", "Place", "Worker", "places_of"]

T = TypeVar("T")

#: Seconds that a finished row waits for the rest of its unit, and seconds between two looks at how long it has waited.
_PART, _LOOK = 1.0, 0.25

#: Seconds in which a worker that stops commits the rows that have finished.
_LAST_PARTS = 5.0


@dataclass(frozen=True)
class Place:
    """A queue that units may be claimed from."""

    run: str
    queue: str
    lane: str
    #: The most rows of a unit.
    rows: int


def places_of(info: RunInfo, plan: Plan, lane_of: Callable[[Plan, str], str | None]) -> Iterator[Place]:
    """A run's queues, the deepest node's first; those without a lane are left out."""
    for name in sorted(plan.depths, key=lambda name: -plan.depths[name]):
        lane = lane_of(plan, name)
        if lane is not None:
            queue = RunKeys(info.run, info.epoch).queue(plan.engine_of(name), name)
            yield Place(info.run, queue, lane, plan.batch_size)


@dataclass(eq=False)
class Held:
    """A unit in hand."""

    info: RunInfo
    plan: Plan
    hook: Hook
    lane: Lane
    #: Holds the rows that no part has ended yet.
    claim: Claim
    #: Whether it was claimed before there was room for it.
    ahead: bool = False
    #: The rows that have finished; None for a join, which ends as a whole.
    result: UnitResult | None = None
    #: Whether the unit is no longer the worker's; nothing more is done about it.
    lost: bool = False
    #: The work on the unit.
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    #: One part of a unit is on its way at a time.
    sending: asyncio.Lock = field(default_factory=asyncio.Lock)
    #: The commit on its way, and the rows that it ends: it is repeated as it is until the queue answers.
    unanswered: tuple[Callable[[], bool], Collection[str] | None] | None = None

    def lose(self) -> None:
        """The unit is somebody else's from here on: its requests are cancelled."""
        self.lost = True
        self.scope.cancel()

    @property
    def has_part(self) -> bool:
        """Whether finished rows have waited long enough for the rest of the unit."""
        return self.result is not None and self.result.age() >= _PART and not self.sending.locked()


class Worker(ABC):
    """Processes units side by side. A unit leaves its hands when the queue has accepted or refused its outcome."""

    queue: LeasedQueue
    incarnation: str
    hands: Hands
    #: Units that are being worked on.
    busy: set[Held]

    @abstractmethod
    async def ask(self, call: Callable[[], T]) -> T:
        """Calls the queue, until it answers."""

    @abstractmethod
    async def process(self, held: Held) -> Outcome | None:
        """Puts each row of the unit into `held.result` when it finishes; returns the outcome of a join instead.

        Raises:
            EngineUnavailable: the engine does not answer; nothing is known of the rows that are not in the result.
        """

    async def work(self, held: Held) -> None:
        """One unit: process, then commit or put off."""
        try:
            with held.scope:
                await self.work_on(held)
        finally:
            self.hands.drop(held.lane, held.claim)

    async def work_on(self, held: Held) -> None:
        node = held.plan.nodes.get(held.claim.unit.node)
        if node is not None:
            held.result = UnitResult(held.plan, node, held.hook)
        self.busy.add(held)
        try:
            await self._work_through(held)
        except anyio.get_cancelled_exc_class():
            with anyio.move_on_after(_LAST_PARTS, shield=True):
                await self.commit_finished(held)
                await self.count_discarded(held)
            raise
        finally:
            self.busy.discard(held)

    async def count_discarded(self, held: Held) -> None:
        """Tells the log which answers, of a unit that leaves unfinished, were asked for in vain."""
        usage = Usage() if held.result is None else held.result.discard()
        if usage.requests:
            event = AnswersDiscarded(node=held.claim.unit.node, usage=usage)
            await self.ask(partial(self.queue.note, held.claim.run, event))

    async def _work_through(self, held: Held) -> None:
        try:
            outcome = await self.process(held)
        except EngineUnavailable as error:
            await self.commit_finished(held)
            await self.count_discarded(held)
            if not held.lost:
                await self.put_off(held, error)
            return
        if not held.lost:
            held.lane.succeed()
        if outcome is not None:
            await self.commit(held, outcome)
        else:
            await self.commit_finished(held)
        if held.lost:
            await anyio.lowlevel.checkpoint()  # raises: the unit's scope is cancelled, and counts asks in vain

    async def commit_parts(self) -> None:
        """Commits finished rows of units that go on; runs beside the work, as long as the worker does."""
        try:
            async with anyio.create_task_group() as group:
                while True:
                    await anyio.sleep(_LOOK)
                    for held in [held for held in self.busy if held.has_part]:
                        group.start_soon(self.commit_finished, held)
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None

    async def commit_finished(self, held: Held) -> None:
        """Commits the rows of a unit that have finished so far."""
        async with held.sending:
            if held.unanswered is not None:
                await self._send(held)
            if held.result is None or held.lost:
                return
            rows = held.result.finished()
            if rows:
                outcome = held.result.take(held.claim.piece(rows))
                await self.commit(held, outcome, rows if len(rows) < len(held.claim.unit.rows) else None)

    async def commit(self, held: Held, outcome: Outcome, rows: Collection[str] | None = None) -> None:
        """Hands over the outcome of these rows, or of all that are left.

        Raises:
            TooLarge: the queue does not take that much; the unit is still in hand.
        """
        token, began = secrets.token_hex(8), monotonic()
        held.unanswered = partial(self.queue.commit, held.claim, self.incarnation, held.plan, outcome, token, rows), rows
        is_in = False
        try:
            is_in = await self._send(held)
        finally:
            if not is_in and held.unanswered is None and held.result is not None:
                held.result.usage += outcome.usage  # refused: discarded with the rest
        held.hook.on_stage(held.claim.unit.node, Stage.COMMIT, monotonic() - began)

    async def _send(self, held: Held) -> bool:
        assert held.unanswered is not None
        call, rows = held.unanswered
        try:
            is_in = await self.ask(call)
        except Exception:
            held.unanswered = None
            raise
        held.unanswered = None
        if not is_in:
            self.refused(held)
            held.lose()
        elif rest := held.claim.rest(rows):
            self.hands.shorten(held.lane, held.claim, rest)
            held.claim = rest
        return is_in

    def refused(self, held: Held) -> None:
        """The claim did not hold; its answers are thrown away."""
        held.hook.on_refused()

    async def put_off(self, held: Held, error: EngineUnavailable) -> None:
        """The engine did not answer: its units wait, longer each time."""
        claim, unit, words = held.claim, held.claim.unit, str(error)
        delay = round(held.lane.fail(), 3)
        event = UnitRetried(node=unit.node, root=unit.root, unit=unit.part, message=words, delay=delay)
        await self.ask(partial(self.queue.fail, claim, self.incarnation, delay, words))
        await self.ask(partial(self.queue.note, claim.run, event))
