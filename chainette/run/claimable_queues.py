"""The queues of a run that a worker may claim units from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from chainette.core.plan import Plan
from chainette.fleet.protocol.keys import RunKeys
from chainette.fleet.protocol.run_fields import RunInfo

__all__ = ["ClaimableQueue", "claimable_queues"]


@dataclass(frozen=True)
class ClaimableQueue:
    """A queue that units may be claimed from."""

    run: str
    queue: str
    lane: str
    #: The most rows of a unit.
    rows: int


def claimable_queues(info: RunInfo, plan: Plan, lane_of: Callable[[Plan, str], str | None]) -> Iterator[ClaimableQueue]:
    """A run's queues, the deepest node's first; those without a lane are left out."""
    for name in sorted(plan.depths, key=lambda name: -plan.depths[name]):
        lane = lane_of(plan, name)
        if lane is not None:
            queue = RunKeys(info.run, info.epoch).queue(plan.engine_of(name), name)
            yield ClaimableQueue(info.run, queue, lane, plan.batch_size)
