"""The outcome of a unit that goes through its node as a whole."""

from __future__ import annotations

import anyio.to_thread

from chainette.core.plan import Plan
from chainette.engine.base import Engine
from chainette.hooks import Hook
from chainette.records import Outcome, Unit
from chainette.run.functions import Away
from chainette.run.process import fill, join
from chainette.run.unit_result import UnitResult

__all__ = ["process"]


async def process(plan: Plan, unit: Unit, engine: Engine | None, *, away: Away = anyio.to_thread.run_sync) -> Outcome:
    """What a worker commits if all rows finish at once. `away` runs calls that must not hold up the event loop.

    Raises:
        EngineUnavailable: the engine does not answer.
    """
    if unit.node in plan.forks:
        return join(plan, unit)
    result = UnitResult(plan, plan.stations[unit.node], Hook())
    await fill(result, unit.rows, engine, away=away)
    return result.take(unit)
