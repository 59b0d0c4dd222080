"""fill() runs the rows of a unit through its node, join() a unit through its fork; nothing else runs nodes.

They know nothing of queues, files or other units: the workers of local runs and fleets call them, and the processes for
functions do.
"""

from __future__ import annotations

from collections.abc import Sequence

import anyio.to_thread

from chainette.core.flow import advance
from chainette.core.forks import Fork, Samples
from chainette.core.joining import join_rows
from chainette.core.plan import Plan
from chainette.core.plan_node import NodeKind
from chainette.core.streaming import Joined
from chainette.engine.base import Engine
from chainette.hooks import Hook, Laps, Stage
from chainette.records import Outcome, Reason, Row, Unit, Usage
from chainette.run.blame import Evidence
from chainette.run.budget_reservation import BudgetReservation
from chainette.run.functions import Away, call
from chainette.run.shared_answers import Questions
from chainette.run.steps import Asking
from chainette.run.unit_result import UnitResult

__all__ = ["fill", "join", "poisoned", "too_large"]

_QUIET = Hook()


async def fill(
    result: UnitResult,
    rows: Sequence[Row],
    engine: Engine | None,
    *,
    seed: int = 0,
    away: Away = anyio.to_thread.run_sync,
    evidence: Evidence | None = None,
    reservation: BudgetReservation | None = None,
    questions: Questions | None = None,
) -> None:
    """Runs rows through the result's node. Each is in the result as soon as it is finished, and stays there.

    Raises:
        EngineUnavailable: the engine does not answer; nothing is known about the rows that are not in the result.
    """
    plan, node, hook = result.plan, result.node, result.hook
    laps = Laps()
    if node.kind is NodeKind.STEP:
        assert engine is not None
        evidence = evidence or Evidence()
        await Asking(plan, node, engine, seed, hook, laps, result, evidence, reservation, questions).run(rows)
    else:
        await call(result, rows, away)
    laps.lap(Stage.GENERATE)
    laps.tell(hook, node.id)


def join(plan: Plan, unit: Unit, hook: Hook = _QUIET) -> Outcome:
    """Merges the branches of a fork, whose unit never goes in parts."""
    laps = Laps()
    outcome = _joined(plan, plan.forks[unit.node], unit, hook)
    laps.lap(Stage.GENERATE)
    laps.tell(hook, unit.node)
    return outcome


def _joined(plan: Plan, fork: Fork, unit: Unit, hook: Hook) -> Outcome:
    joined, lost = join_rows(fork, unit.rows, unit.partials, unit.stopped)
    if hook.streams and not isinstance(fork, Samples):
        aliases = tuple(dict.fromkeys(join.alias for join in fork.joins))
        for row in joined:
            hook.on_stream(Joined(aliases, row))
    return Outcome([], [], [], Usage(), advance(plan, unit, joined, fork.after, lost))


def poisoned(plan: Plan, unit: Unit) -> Outcome:
    """The outcome of a one-row unit that killed every worker that took it."""
    return _without(plan, unit, Reason.POISON, "the processes that took this row died, also when they took nothing else")


def too_large(plan: Plan, unit: Unit, message: str) -> Outcome:
    """The outcome of a one-row unit that no queue takes because of its size."""
    return _without(plan, unit, Reason.TOO_LARGE, message)


def _without(plan: Plan, unit: Unit, reason: Reason, message: str) -> Outcome:
    [row] = unit.rows
    result = UnitResult(plan, plan.stations[unit.node], _QUIET)
    result.reject(row, reason, message)
    return result.take(unit)
