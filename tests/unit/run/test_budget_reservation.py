"""However a unit leaves its worker, none of the requests reserved for it counts as in flight afterwards."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TypeVar

import anyio
import pytest
from anyio.lowlevel import checkpoint

from chainette.engine.base import Completion, Done, Engine, Request
from chainette.engine.budget import NO_LIMITS, Amounts, Budget, Reserved
from chainette.engine.concurrent_requests import ask_all
from chainette.errors import EngineRefused, EngineUnavailable
from chainette.fleet.memory.memory_queue import MemoryQueue
from chainette.fleet.protocol.keys import RunKeys
from chainette.fleet.protocol.queue_values import EngineAccount
from chainette.fleet.protocol.run_fields import RunInfo
from chainette.records import Usage
from chainette.run.budget_reservation import BudgetReservation
from tests.support.patience import LONG
from tests.unit.run.test_unit_worker import Gated, OneUnit

T = TypeVar("T")

KEYS, LLM, ONE = RunKeys("run", 0), EngineAccount("llm", "d", NO_LIMITS), Amounts(1)


def others_wait(queue: MemoryQueue, limit: int, account: EngineAccount = LLM) -> bool:
    """Whether another worker whose request does not fit would wait for those in flight."""
    queue.beat("other", {}, LONG)
    limits = (limit, -1, -1, -1)
    return not queue.reserve(KEYS, "other", "last", limits, Amounts(), 0, [Amounts(limit + 1)], account).exhausted


@pytest.mark.parametrize("arrives", [True, False])
def test_a_call_whose_caller_is_cancelled_reserves_nothing_and_forgets_nothing(arrives: bool) -> None:
    queue, limits = MemoryQueue(), (10, -1, -1, -1)
    queue.install("run", 0, "", "anchor", [], {"window": 100})
    queue.beat("me", {}, LONG)

    async def go() -> None:
        async def reserve(token: str, settled: Amounts, ended: int, needs: Sequence[Amounts]) -> Reserved:
            if cancelled.cancel_called or len(needs) < 3:
                return queue.reserve(KEYS, "me", token, limits, settled, ended, needs, LLM)
            cancelled.cancel()
            if arrives:
                queue.reserve(KEYS, "me", token, limits, settled, ended, needs, LLM)
            await checkpoint()
            raise AssertionError("nobody waits for it")

        cancelled, reservation = anyio.CancelScope(), BudgetReservation(Budget(limits), "llm", reserve)
        assert await reservation.take([ONE, ONE]) == 2
        reservation.settle(ONE, Usage(1))
        reservation.forgo([ONE])
        with cancelled:
            await reservation.take([ONE, ONE, ONE])
        for _ in range(2):
            await reservation.flush()
        assert queue.progress(KEYS).used == Amounts(1)
        assert not others_wait(queue, 10)

    anyio.run(go)


class Restless(Engine):
    """Answers after some turns of the event loop; the first answer about an odd row cannot be used."""

    capacity = 8

    def __init__(self) -> None:
        self.answers = 0
        #: Raised once, as soon as a request is in flight.
        self.failure: Exception | None = None

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    async def generate(self, requests: Sequence[Request], done: Done | None = None) -> list[Completion]:
        return await ask_all([self.answer(request) for request in requests], done)

    async def answer(self, request: Request) -> Completion:
        _, row, ask = request.label.split("/")
        for _ in range(2 + int(row)):
            await checkpoint()
            if (failure := self.failure) is not None:
                self.failure = None
                raise failure
        self.answers += 1
        return Completion("nothing" if int(row) % 2 and ask == "1" else json.dumps({"word": row}), usage=Usage(1, 10, 5))


class Budgeted(OneUnit):
    """Its run has a budget, and a call of its queue takes a while and then comes to its end."""

    limit: int

    def __init__(self, engine: Gated) -> None:
        super().__init__(engine)
        self.reservations = {}
        self.held.info = RunInfo("run", budget=Budget((self.limit, -1, -1, -1)))

    async def ask(self, call: Callable[[], T]) -> T:
        await checkpoint()
        with anyio.CancelScope(shield=True):
            await checkpoint()
            found = call()
            await checkpoint()
        return found

    async def note_reserved(self, account: EngineAccount, reserved: Reserved) -> None:
        await checkpoint()


def is_stopped(_worker: Budgeted, _engine: Restless, scope: anyio.CancelScope) -> None:
    scope.cancel()


def is_lost(worker: Budgeted, _engine: Restless, _scope: anyio.CancelScope) -> None:
    worker.held.lose()


def fails_by(error: Exception) -> Callable[[Budgeted, Restless, anyio.CancelScope], None]:
    def fails(_worker: Budgeted, engine: Restless, _scope: anyio.CancelScope) -> None:
        engine.failure = error

    return fails


#: The ends of a unit, beside that all its rows finish or that the budget is spent.
ENDS = {
    "stopped": is_stopped,
    "lost": is_lost,
    "refused": fails_by(EngineRefused("401")),
    "unavailable": fails_by(EngineUnavailable("gone")),
}


@pytest.mark.parametrize("limit", [4, 8, 20])
@pytest.mark.parametrize("end", ENDS)
def test_no_request_is_in_flight_once_its_unit_has_left(end: str, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Budgeted, "limit", limit, raising=False)

    async def go(turns: int) -> None:
        engine = Restless()
        worker = Budgeted(engine)  # type: ignore[arg-type]
        with anyio.fail_after(LONG):
            async with anyio.create_task_group() as group:
                group.start_soon(worker.work, worker.held)
                for _ in range(turns):
                    await checkpoint()
                ENDS[end](worker, engine, group.cancel_scope)
        spent = worker.memory.progress(worker.keys).used.requests
        assert engine.answers <= spent <= limit
        assert not worker.hands.claims
        account = EngineAccount("llm", worker.plan.engines["llm"].digest, NO_LIMITS)
        assert not others_wait(worker.memory, limit, account), f"after {turns} turns"

    for turns in range(45):
        anyio.run(go, turns)
