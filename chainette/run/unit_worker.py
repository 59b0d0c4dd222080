"""The heart of every worker: a unit that was claimed is processed, then committed or put off.

A local run has one worker over the queue in memory; a fleet has many over Redis. They differ in how they reach
their queue, and in the processes that run engines and functions.

Rows of a slow engine do not wait for their unit (PROTOCOL 21): a part with those that have finished is committed once the
oldest of them is a second old, and before the unit leaves the worker for any reason. A unit that finishes within that
second is one commit.
"""

from __future__ import annotations

import random
import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from functools import partial
from math import inf
from time import monotonic
from typing import TypeVar

import anyio
import anyio.lowlevel

from chainette.engine.base import Engine
from chainette.engine.budget import NO_LIMITS, Amounts, BudgetLimits, Reserved
from chainette.errors import BudgetExhausted, DeclarationRefused, EngineUnavailable, RequestsFailed
from chainette.fleet.protocol.contract import LeasedQueue
from chainette.fleet.protocol.keys import RunKeys
from chainette.fleet.protocol.queue_values import EngineAccount, Lost
from chainette.hooks import Stage
from chainette.io.rundir.event_types import AnswersDiscarded, EngineAdapted, EngineProbed, UnitRetried
from chainette.records import Outcome, Usage
from chainette.run.answer_sources import Answers
from chainette.run.blame import Evidence
from chainette.run.budget_reservation import BudgetReservation
from chainette.run.held_unit import HeldUnit, Sending
from chainette.run.in_flight import InFlight, Lane
from chainette.run.process import fill
from chainette.run.shared_answers import Questions, SharedAnswers
from chainette.run.unit_result import UnitResult
from chainette.utils.backoff import backoff

__all__ = ["Worker"]

T = TypeVar("T")

#: Seconds between two looks at how long finished rows have waited for the rest of their units.
_LOOK = 0.25

#: Seconds a row waits whose request failed: at first, and at most; give or take a quarter.
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 60.0

#: Seconds for a stopping worker to commit the rows that have finished.
_LAST_PARTS = 5.0


class Worker(ABC):
    """Processes units side by side. A unit leaves its hands when the queue has accepted or refused its outcome."""

    queue: LeasedQueue
    incarnation: str
    hands: InFlight
    #: Units that are being worked on.
    busy: set[HeldUnit]
    #: (run, epoch, step) -> evidence about its requests.
    evidence: dict[tuple[str, int, str], Evidence]
    #: (run, epoch, engine) -> this worker's part in the budgets of the run and of the engine.
    reservations: dict[tuple[str, int, str], BudgetReservation]
    #: Questions that rows share.
    shared: SharedAnswers
    #: Seconds an engine may not answer before a run gives up.
    patience: float = inf

    @abstractmethod
    async def ask(self, call: Callable[[], T]) -> T:
        """Calls the queue, until it answers."""

    @abstractmethod
    async def process(self, held: HeldUnit) -> Outcome | None:
        """Puts each row of the unit into `held.result` when it finishes; returns the outcome of a join instead.

        Raises:
            EngineUnavailable: the engine does not answer; nothing is known of the rows that are not in the result.
        """

    def answers_of(self, held: HeldUnit) -> Answers | None:
        """The answers of the earlier runs the unit's run takes some from; None if it takes none."""
        del held
        return None

    async def work(self, held: HeldUnit) -> None:
        """One unit: process, then commit or put off."""
        try:
            with held.scope:
                await self.work_on(held)
        finally:
            self.hands.drop(held.lane, held.claim)

    async def work_on(self, held: HeldUnit) -> None:
        node = held.plan.stations.get(held.claim.unit.node)
        if node is not None:
            answers, unfinished = self.answers_of(held), {**held.claim.unfinished}
            held.result = UnitResult(held.plan, node, held.hook, stored=answers, unfinished=unfinished)
        held.began = held.lane.clock()
        self.busy.add(held)
        try:
            await self._work_through(held)
        except anyio.get_cancelled_exc_class():
            with anyio.move_on_after(_LAST_PARTS, shield=True):
                await self.commit_finished(held)
                if not held.lost:
                    await self.hand_back(held)
                await self.account(held)
            raise
        finally:
            self.busy.discard(held)

    async def hand_back(self, held: HeldUnit) -> None:
        """Returns a unit that is left unfinished, if its queue outlives the worker."""
        del held

    async def account(self, held: HeldUnit) -> None:
        """Accounts for all requests of a unit that leaves unfinished."""
        await self.tell_log(held)
        await self.count_discarded(held)
        await self.settle(held)

    async def count_discarded(self, held: HeldUnit) -> None:
        """Tells the log which answers, of a unit that leaves unfinished, were asked for in vain."""
        usage = Usage() if held.result is None else held.result.discard()
        if usage.requests:
            event = AnswersDiscarded(node=held.node, engine=held.told_engine, usage=usage)
            await self.ask(partial(self.queue.note, held.claim.run, event))

    async def tell_log(self, held: HeldUnit) -> None:
        """Tells the log the usage of probes, and how the declaration was adapted to the engine."""
        evidence = self.evidence.get(_key_of(held))
        if evidence is not None and evidence.spent.requests:
            if (reservation := self.reservation_of(held)) is not None:
                reservation.add(evidence.spent)
            event = EngineProbed(node=held.node, engine=held.told_engine, usage=evidence.spent)
            evidence.spent = Usage()
            await self.ask(partial(self.queue.note, held.claim.run, event))
        if evidence is not None and evidence.adaptations != evidence.told:
            evidence.told = evidence.adaptations
            adapted = EngineAdapted(engine=held.plan.engine_of(held.claim.unit.node), changes=dict(evidence.told))
            await self.ask(partial(self.queue.note, held.claim.run, adapted))

    async def _work_through(self, held: HeldUnit) -> None:
        try:
            outcome = await self.process(held)
        except BudgetExhausted as error:
            await self.commit_finished(held)
            await self.exhaust(held, error)
            await self.account(held)
            return
        except EngineUnavailable as error:
            await self.commit_finished(held)
            if not held.lost:
                await self.put_off(held, error)
            await self.account(held)
            return
        await self.tell_log(held)
        await self.settle(held)
        if outcome is not None:
            await self.commit(held, outcome)
        else:
            await self.commit_finished(held)
        if held.lost:
            await anyio.lowlevel.checkpoint()  # raises: the unit's scope is cancelled, and counts asks in vain

    # -- the budget

    def reservation_of(self, held: HeldUnit) -> BudgetReservation | None:
        """This worker's part in the budgets of the unit's run and engine; None if neither has one."""
        budget, node = held.info.budget, held.plan.stations.get(held.claim.unit.node)
        if budget is None or node is None or node.engine not in held.plan.engines:
            return None
        key = run, epoch, engine = held.claim.run, held.claim.epoch, node.engine
        if key not in self.reservations:
            self.reservations = {
                known: each for known, each in self.reservations.items() if known[0] != run or known[1] == epoch
            }
            account = EngineAccount(engine, held.plan.engines[engine].digest, budget.engines.get(engine, NO_LIMITS))
            self.reservations[key] = BudgetReservation(
                budget, engine, partial(self.reserve, RunKeys(run, epoch), budget.limits, account)
            )
        return self.reservations[key]

    async def reserve(
        self,
        keys: RunKeys,
        limits: BudgetLimits,
        account: EngineAccount,
        token: str,
        settled: Amounts,
        ended: int,
        needs: Sequence[Amounts],
    ) -> Reserved:
        """See `LeasedQueue.reserve`."""
        call = partial(self.queue.reserve, keys, self.incarnation, token, limits, settled, ended, needs, account)
        try:
            reserved = await self.ask(call)
        except Lost as error:
            raise BudgetExhausted(str(error)) from error
        if needs:
            await self.note_reserved(account, reserved)
        return reserved

    async def note_reserved(self, account: EngineAccount, reserved: Reserved) -> None:
        """Called before the requests of a reservation are sent."""
        del account, reserved

    async def settle(self, held: HeldUnit) -> None:
        """Tells the queue the cost of the unit's answers."""
        if (reservation := self.reservation_of(held)) is not None:
            with suppress(BudgetExhausted):  # the epoch is over
                await reservation.flush()

    async def exhaust(self, held: HeldUnit, error: BudgetExhausted) -> None:
        """Returns a unit whose requests do not fit the budget, until the run goes on with a larger one."""
        del error
        if not held.lost:
            await self.hand_back(held)

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

    async def commit_finished(self, held: HeldUnit) -> None:
        """Commits the rows of a unit that have finished so far."""
        async with held.sending:
            if held.unanswered is not None:
                await self._send(held)
            while held.result is not None and not held.lost and (rows := held.result.finished()):
                outcome = held.result.take(held.claim.piece(rows))
                await self.commit(held, outcome, rows if len(rows) < len(held.claim.unit.rows) else None)
                if not held.has_waited:
                    return

    async def commit(self, held: HeldUnit, outcome: Outcome, rows: Collection[str] | None = None) -> None:
        """Hands over the outcome of these rows, or of all that are left.

        Raises:
            TooLarge: the queue does not take that much; the unit is still in hand.
        """
        token, began = secrets.token_hex(8), monotonic()
        call = partial(self.queue.commit, held.claim, self.incarnation, held.plan, outcome, token, rows)
        sending = held.unanswered = Sending(call, rows)
        is_in = False
        try:
            is_in = await self._send(held)
        finally:
            # a call whose reply was lost may have committed the end of the unit, which the queue does not remember
            may_be_in = sending.tries > 1 and held.claim.rest(rows) is None
            if not is_in and held.unanswered is None and held.result is not None and not may_be_in:
                held.result.give_back(outcome)  # discarded with the rest, unless the rows are committed in smaller parts
        held.hook.on_stage(held.claim.unit.node, Stage.COMMIT, monotonic() - began)

    async def _send(self, held: HeldUnit) -> bool:
        assert held.unanswered is not None
        sending = held.unanswered
        try:
            is_in = await self.ask(sending)
        except Exception:
            held.unanswered = None
            raise
        held.unanswered = None
        if not is_in:
            self.refused(held)
            held.lose()
        elif rest := held.claim.rest(sending.rows):
            self.hands.shorten(held.lane, held.claim, rest)
            held.claim = rest
        return is_in

    def refused(self, held: HeldUnit) -> None:
        """The claim did not hold; its answers are thrown away."""
        held.hook.on_refused()

    async def put_off(self, held: HeldUnit, error: EngineUnavailable) -> None:
        """The unit waits, longer each time: for its engine, or because its rows' requests failed again."""
        delay, claim = self.delay(held, error), held.handed_back()
        event = self.retried(held, error, delay)
        await self.ask(partial(self.queue.fail, claim, self.incarnation, event.delay, event.message))
        await self.ask(partial(self.queue.note, claim.run, event))

    def retried(self, held: HeldUnit, error: EngineUnavailable, delay: float) -> UnitRetried:
        unit = held.claim.unit
        return UnitRetried(
            node=held.node,
            engine=held.told_engine,
            root=unit.root,
            unit=unit.part,
            message=str(error),
            delay=round(delay, 3),
            alone=isinstance(error, RequestsFailed),
            refused=isinstance(error, DeclarationRefused),
        )

    def delay(self, held: HeldUnit, error: EngineUnavailable) -> float:
        """Seconds a unit waits. The engine rests as well if it answers nobody."""
        if not isinstance(error, RequestsFailed):
            return held.lane.fail()
        unfinished = {} if held.result is None else held.result.unfinished
        failures = min((unfinished[row].failures for row in error.rows if row in unfinished), default=1)
        wait = backoff(failures - 1, _FIRST_WAIT, _LONGEST_WAIT) * random.uniform(0.75, 1.25)  # noqa: S311 - only jitter
        if held.lane.answered_at < held.began:
            held.lane.doubt()
        return wait

    # -- whose fault it is that a request got no answer

    async def ask_engine(self, held: HeldUnit, result: UnitResult, engine: Engine, seed: int) -> None:
        """Asks for the rows of a unit. Rows that are themselves the cause of getting no answer are rejected.

        Raises:
            RequestsFailed: some rows got no answer, and whose fault that is has yet to show.
            EngineUnavailable: the engine does not answer.
        """
        evidence, rows, questions = self.evidence_of(held), held.claim.unit.rows, self.questions_of(held, result)
        while True:
            try:
                reservation = self.reservation_of(held)
                await fill(result, rows, engine, seed=seed, evidence=evidence, reservation=reservation, questions=questions)
            except RequestsFailed as error:
                tries = max((result.unfinished[row].tries for row in error.rows if row in result.unfinished), default=0)
                if not self.must_probe(held.lane, evidence, error, tries):
                    raise
                await evidence.probe(engine, result.node.engine)
                rows = [row for row in rows if row.row_id in error.rows]  # they fail once more before they are rejected
            else:
                return
            finally:
                evidence.adaptations = engine.adaptations

    def must_probe(self, lane: Lane, evidence: Evidence, error: RequestsFailed, tries: int) -> bool:
        """Whether a fixed question must show if the engine answers at all. `tries`: the most failures of a row."""
        impatient = lane.doubted_since is not None and lane.clock() - lane.doubted_since > self.patience
        refuses_all = error.denied and not lane.has_answered
        return refuses_all or impatient or evidence.is_due(tries)

    def questions_of(self, held: HeldUnit, result: UnitResult) -> Questions | None:
        """The questions that rows of the unit share with others of their step; None if each asks for itself."""
        if not result.node.dedupe:
            return None
        keys = RunKeys(held.claim.run, held.claim.epoch)
        return self.shared.of(keys, result.node.station, partial(self.wait, held.lane))

    def wait(self, lane: Lane, rows: int) -> None:
        """The number of rows that wait for the answers of others changes by so many; waiting rows leave room in their
        engine."""
        self.hands.wait(lane, rows)

    def evidence_of(self, held: HeldUnit) -> Evidence:
        key = run, epoch, _ = _key_of(held)
        if key not in self.evidence:
            self.evidence = {known: each for known, each in self.evidence.items() if known[0] != run or known[1] == epoch}
            self.evidence[key] = Evidence(held.lane)
        self.evidence[key].follow(held.info.owner)
        return self.evidence[key]


def _key_of(held: HeldUnit) -> tuple[str, int, str]:
    return held.claim.run, held.claim.epoch, held.claim.unit.node
