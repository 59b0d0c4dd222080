"""A worker's part in the budget of a run: the most each request may cost is reserved before it is sent."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import anyio

from chainette.engine.budget import Amounts, Budget, Reserved, budget_spent
from chainette.engine.config import EngineConfig
from chainette.errors import BudgetExhausted, BudgetSpent
from chainette.fleet.protocol.contract import LeasedQueue
from chainette.fleet.protocol.keys import RunKeys
from chainette.fleet.protocol.queue_values import AdmissionProgress
from chainette.io.rundir.event_types import BudgetUsed
from chainette.records import Message, Usage

__all__ = ["BudgetReservation", "budget_used", "estimated_tokens", "is_spent"]

#: Seconds until a refused reservation is tried again, unless this worker gets an answer earlier.
_LOOK = 0.1

#: Bytes of a prompt for each reserved token, and tokens that a server puts around a message.
_BYTES, _AROUND = 3, 8


def estimated_tokens(messages: Iterable[Message]) -> int:
    """The tokens of a prompt, if no tokenizer counts them: a third of its bytes, and some around each message."""
    return sum(_AROUND - -len(message.content.encode()) // _BYTES for message in messages)


def budget_used(
    queue: LeasedQueue, keys: RunKeys, budget: Budget, engines: Mapping[str, EngineConfig]
) -> tuple[AdmissionProgress, BudgetUsed]:
    """The progress of an epoch, and the event that logs the part of the budget that is spent or reserved."""
    names = _by_digest(budget, engines)
    progress = queue.progress(keys, [*names])
    return progress, BudgetUsed(used=progress.used, engines={names[key]: used for key, used in progress.of_engines.items()})


def is_spent(progress: AdmissionProgress, budget: Budget, engines: Mapping[str, EngineConfig]) -> BudgetSpent:
    """The error of a run if its next request does not fit its budget, or the budget of an engine."""
    if engine := _by_digest(budget, engines).get(progress.exhausted_by):
        return budget_spent(budget.engines[engine], progress.of_all_runs, progress.needed, engine)
    return budget_spent(budget.limits, progress.used, progress.needed)


def _by_digest(budget: Budget, engines: Mapping[str, EngineConfig]) -> dict[str, str]:
    """Digest -> name of the engines with a budget: runs with other names for an engine share its budget."""
    return {engines[name].digest: name for name in budget.engines}


#: Reserves through the queue: token, settled amounts, requests that ended, amounts of the next requests.
Reserve = Callable[[str, Amounts, int, Sequence[Amounts]], Awaitable[Reserved]]


@dataclass
class BudgetReservation:
    """Reserves requests before they are sent, and settles them with their usage.

    If a request that was sent is never settled (it was cancelled, or its process was killed), its reservation counts as spent.
    """

    budget: Budget
    #: The engine it asks.
    engine: str
    reserve: Reserve
    #: News for the queue: the difference between usage and reservations, and the number of answers.
    _settled: Amounts = field(default_factory=Amounts)
    _ended: int = 0
    #: The call that is on its way, or whose caller was cancelled before its reply: token, settled amounts, requests, needs.
    _unheard: tuple[str, Amounts, int, Sequence[Amounts]] | None = None
    _calling: anyio.Lock = field(default_factory=anyio.Lock)
    _changed: anyio.Event = field(default_factory=anyio.Event)

    def need(self, messages: Sequence[Message], max_tokens: int, seconds: float) -> Amounts:
        """The reservation of a request: its prompt, estimated, the longest answer, and the seconds the engine has taken for a
        request so far (`SharedTime.per_request`)."""
        return self.budget.spent(self.engine, Usage(1, estimated_tokens(messages), max_tokens, busy=seconds))

    async def take(self, needs: Sequence[Amounts]) -> int:
        """Waits until the first of some requests may be sent; returns how many of them may, in their order.

        Raises:
            BudgetExhausted: none fits, and nothing is in flight.
        """
        while True:
            changed = self._changed
            reply = await self._call(needs)
            if reply.granted:
                return reply.granted
            if reply.exhausted:
                raise BudgetExhausted("the budget of the run, or of one of its engines, is spent")
            with anyio.move_on_after(_LOOK):
                await changed.wait()

    def settle(self, need: Amounts, usage: Usage) -> None:
        """A reserved request was answered."""
        self._end(self.budget.spent(self.engine, usage) - need, 1)

    def forgo(self, needs: Sequence[Amounts]) -> None:
        """Reserved requests got no answer, since their engine gives none."""
        self._end(sum((Amounts() - need for need in needs), Amounts()), len(needs))

    def abandon(self, requests: int) -> None:
        """Reserved requests were cancelled; nobody knows how far they got, so they stay spent."""
        self._end(Amounts(), requests)

    def add(self, usage: Usage) -> None:
        """A request was sent without a reservation."""
        self._end(self.budget.spent(self.engine, usage), 0)

    async def flush(self) -> None:
        """Tells the queue the settled amounts."""
        if self._unheard is not None or self._ended or self._settled != Amounts():
            await self._call(())

    def _end(self, difference: Amounts, requests: int) -> None:
        self._settled, self._ended = self._settled + difference, self._ended + requests
        self._changed.set()
        self._changed = anyio.Event()

    async def _call(self, needs: Sequence[Amounts]) -> Reserved:
        async with self._calling:
            if self._unheard is not None:  # repeated without needs, it grants what it granted before: requests nobody sends
                token, settled, ended, unsent = self._unheard
                granted = (await self.reserve(token, settled, ended, ())).granted
                self._unheard = None
                self.forgo(unsent[:granted])
            self._unheard = secrets.token_hex(8), self._settled, self._ended, needs
            self._settled, self._ended = Amounts(), 0
            reserved = await self.reserve(*self._unheard)
            self._unheard = None
            return reserved
