"""The heart of every worker: a unit that was claimed is processed, then committed or put off.

A local run has one worker over the queue in memory; a fleet has many over Redis. They differ in how they reach
their queue, and in where engines and functions run.
"""

from __future__ import annotations

import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from time import monotonic
from typing import TypeVar

from chainette.core.plan import Plan
from chainette.errors import EngineUnavailable
from chainette.fleet.protocol.contract import LeasedQueue
from chainette.fleet.protocol.keys import RunKeys
from chainette.fleet.protocol.run_fields import RunInfo
from chainette.fleet.protocol.states import Claim
from chainette.hooks import Hook, Stage
from chainette.io.rundir.events import UnitRetried
from chainette.records import Outcome
from chainette.run.in_hand import Hands, Lane

__all__ = ["Held", "Place", "Worker", "places_of"]

T = TypeVar("T")


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


@dataclass(frozen=True)
class Held:
    """A unit in hand, with what is known of it."""

    info: RunInfo
    plan: Plan
    hook: Hook
    lane: Lane
    claim: Claim
    #: Whether it was claimed before there was room for it.
    ahead: bool = False


class Worker(ABC):
    """Processes units side by side. A unit leaves its hands when the queue has answered what became of it."""

    queue: LeasedQueue
    incarnation: str
    hands: Hands

    @abstractmethod
    async def ask(self, call: Callable[[], T]) -> T:
        """Calls the queue, until it answers."""

    @abstractmethod
    async def process(self, held: Held) -> Outcome | None:
        """What became of a unit; None if it is no longer the worker's.

        Raises:
            EngineUnavailable: the engine does not answer; nothing is known of any row.
        """

    async def work(self, held: Held) -> None:
        """One unit: process, then commit or put off."""
        try:
            await self.work_on(held)
        finally:
            self.hands.drop(held.lane, held.claim)

    async def work_on(self, held: Held) -> None:
        try:
            outcome = await self.process(held)
        except EngineUnavailable as error:
            await self.put_off(held, error)
        else:
            if outcome is not None:
                held.lane.succeed()
                await self.commit(held, outcome)

    async def commit(self, held: Held, outcome: Outcome) -> None:
        """Hands over what became of the unit.

        Raises:
            TooLarge: the queue does not take that much; the unit is still in hand.
        """
        token, began = secrets.token_hex(8), monotonic()
        call = partial(self.queue.commit, held.claim, self.incarnation, held.plan, outcome, token)
        if not await self.ask(call):
            held.hook.on_refused()
        held.hook.on_stage(held.claim.unit.node, Stage.COMMIT, monotonic() - began)

    async def put_off(self, held: Held, error: EngineUnavailable) -> None:
        """The engine did not answer: its units wait, longer each time."""
        claim, unit, words = held.claim, held.claim.unit, str(error)
        delay = round(held.lane.fail(), 3)
        event = UnitRetried(node=unit.node, root=unit.root, unit=unit.part, message=words, delay=delay)
        await self.ask(partial(self.queue.fail, claim, self.incarnation, delay, words))
        await self.ask(partial(self.queue.note, claim.run, event))
