"""The bill of a run, folded from its log: the cost of the answers of each step, including answers that led to no row."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from chainette.engine.budget import Amounts
from chainette.engine.price import Cost, Rate
from chainette.records import Usage, declared_of

__all__ = ["Bill", "plain_cost"]


@dataclass
class _Item:
    """The usage of one engine by one step."""

    #: Usage at the current rate.
    usage: Usage = field(default_factory=Usage)
    #: Its cost at earlier rates.
    before: Cost = field(default_factory=Cost)
    #: All usage, at any rate.
    whole: Usage = field(default_factory=Usage)


@dataclass
class Bill:
    """Usage by step and engine, charged at the rate of its time: a new price applies only to later answers.

    Answers from before an engine had a rate are charged at its first rate.
    """

    #: Engine -> its current rate.
    rates: dict[str, Rate] = field(default_factory=dict)
    _items: dict[tuple[str, str], _Item] = field(default_factory=dict)

    def charge(self, step: str, engine: str, usage: Usage) -> None:
        """Adds the usage of answers."""
        item = self._items.setdefault((declared_of(step), engine), _Item())
        item.usage += usage
        item.whole += usage

    def take_rates(self, rates: Mapping[str, Rate]) -> None:
        """Charges usage at these rates from now on."""
        for (_, engine), item in self._items.items():
            old = self.rates.get(engine)
            if old is not None and old != rates.get(engine, old):
                item.before, item.usage = item.before + old.cost(item.usage), Usage()
        self.rates |= rates

    def cost(self, steps: Iterable[str] | None = None) -> Cost:
        """The cost of some steps, or of all, so far."""
        wanted = None if steps is None else {*steps}
        return sum((cost for step, _, cost in self.lines() if wanted is None or step in wanted), Cost())

    def lines(self) -> Iterator[tuple[str, str, Cost]]:
        """Step, engine and cost, in the order of the first answers."""
        for (step, engine), item in self._items.items():
            yield step, engine, item.before + self.rates.get(engine, Rate()).cost(item.usage)

    def at(self, rates: Mapping[str, Rate]) -> Bill:
        """The bill as if these rates had applied from the start; the charges of other engines stay."""
        items = {
            (step, engine): _Item(item.whole, whole=item.whole) if engine in rates else item
            for (step, engine), item in self._items.items()
        }
        return Bill({**self.rates, **rates}, items)

    def usages(self) -> Iterator[tuple[str, str, Usage]]:
        """Step, engine and usage so far, in the order of the first answers."""
        for (step, engine), item in self._items.items():
            yield step, engine, item.whole

    def usage(self) -> Usage:
        """All usage so far."""
        return sum((item.whole for item in self._items.values()), Usage())

    def amounts(self, engine: str = "") -> Amounts:
        """Usage and cost of an engine, or of all engines, in the form of budgets."""
        usage = sum((used for _, name, used in self.usages() if engine in ("", name)), Usage())
        cost = sum((cost for _, name, cost in self.lines() if engine in ("", name)), Cost())
        tokens = usage.prompt_tokens + usage.completion_tokens
        return Amounts(usage.requests, tokens, round(cost.usd * 1e9), round(cost.gpu_hours * 3.6e6))


def plain_cost(cost: Cost) -> dict[str, Any]:
    """A cost as plain data for people."""
    return {"usd": round(cost.usd, 6), "gpu_hours": round(cost.gpu_hours, 6)}
