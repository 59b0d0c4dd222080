"""Reservations in memory: the one count of the amounts that runs and engines have spent or reserved (as `reserve.lua`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from chainette.engine.budget import NO_LIMITS, Amounts, BudgetLimits, Reserved, fits
from chainette.fleet.protocol.queue_values import EngineAccount

__all__ = ["Reservations", "RunBudget"]

#: The field of a run's record with its part of an engine's budget begins so.
_OF_ENGINE = "used:"


@dataclass
class RunBudget:
    """The amounts of a run in its current epoch."""

    #: The amounts spent or reserved, and whether the next request does not fit.
    used: Amounts = field(default_factory=Amounts)
    exhausted: bool = False
    #: The same for each engine with a budget, by its digest; the engine whose budget does not suffice, and its use by all runs.
    of_engines: dict[str, Amounts] = field(default_factory=dict)
    exhausted_by: str = ""
    of_all_runs: Amounts = field(default_factory=Amounts)
    #: The reservation that does not fit.
    needed: Amounts = field(default_factory=Amounts)
    #: (worker, engine) -> its last reservation: token, requests granted, requests in flight after it.
    reserved: dict[tuple[str, str], tuple[str, int, int]] = field(default_factory=dict)


class Reservations:
    """The budgets of a queue: `budgets` gives those of its live runs, and `lives` says whether a worker has a lease."""

    def __init__(self, budgets: Callable[[], Iterable[RunBudget]], lives: Callable[[str], bool]) -> None:
        self._budgets, self._lives = budgets, lives
        #: Digest of an engine with a budget -> the amounts that closed runs have spent.
        self._closed: dict[str, Amounts] = {}

    def begin(self, known: RunBudget | None, epoch: int, words: Mapping[str, str]) -> RunBudget:
        """The amounts of a run in a new epoch: those of the epoch before, or those in its record if they are larger."""
        budget = RunBudget() if known is None else RunBudget(known.used, of_engines=known.of_engines)
        if "used" in words:
            budget.used = budget.used.at_least(Amounts.read(words["used"]))
        for name in (name for name in words if name.startswith(_OF_ENGINE)):
            engine, used = name.removeprefix(_OF_ENGINE), Amounts.read(words[name])
            if known is None and epoch:  # it was closed before
                self._closed[engine] = (self._closed.get(engine, Amounts()) - used).at_least(Amounts())
            budget.of_engines[engine] = budget.of_engines.get(engine, Amounts()).at_least(used)
        return budget

    def close(self, budget: RunBudget) -> None:
        """A closed run's part of the engines' budgets stays spent."""
        for engine, used in budget.of_engines.items():
            self._closed[engine] = self._closed.get(engine, Amounts()) + used

    def reserve(
        self,
        run: RunBudget,
        incarnation: str,
        token: str,
        limits: BudgetLimits,
        settled: Amounts,
        ended: int,
        needs: Sequence[Amounts],
        engine: EngineAccount,
    ) -> Reserved:
        """See `LeasedQueue.reserve`."""
        last, granted, open_ = run.reserved.get((incarnation, engine.digest), ("", 0, 0))
        own = run.of_engines.get(engine.digest, Amounts())
        if last == token:
            return Reserved(granted, run.used, of_engine=own)
        parts = (each.of_engines.get(engine.digest, Amounts()) for each in self._budgets() if each is not run)
        others = sum(parts, self._closed.get(engine.digest, Amounts()))
        granted, run.used, own = 0, (run.used + settled).at_least(Amounts()), (own + settled).at_least(Amounts())
        for need in needs:
            if run.exhausted or not (fits(limits, run.used, need) and fits(engine.limits, others + own, need)):
                break
            granted, run.used, own = granted + 1, run.used + need, own + need
        run.reserved[incarnation, engine.digest] = (token, granted, max(0, open_ - ended) + granted)
        if engine.limits != NO_LIMITS:
            run.of_engines[engine.digest] = own
        if needs and not granted and not run.exhausted and not self._has_requests([run]):
            is_full = not fits(limits, run.used, needs[0])
            by_engine = not is_full and not fits(engine.limits, others + own, needs[0])
            run.exhausted = is_full or (by_engine and not self._has_requests(self._budgets(), engine.digest))
            run.needed = needs[0]
            if run.exhausted and by_engine:
                run.exhausted_by, run.of_all_runs = engine.digest, others + own
        return Reserved(granted, run.used, bool(needs) and run.exhausted, own)

    def _has_requests(self, runs: Iterable[RunBudget], engine: str = "") -> bool:
        """Whether a live worker has a request of these runs in flight, and of the engine, if one is named."""
        found = ((name, of, requests) for run in runs for (name, of), (_, _, requests) in run.reserved.items())
        return any(requests for name, of, requests in found if engine in ("", of) and self._lives(name))
