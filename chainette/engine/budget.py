"""Budgets: the limits of a run and of its engines, and the cost of an answer in the units of these limits."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from decimal import ROUND_CEILING, Context, Decimal
from typing import TYPE_CHECKING

import msgspec

from chainette.engine.price import Rate
from chainette.errors import BudgetSpent, InputError
from chainette.records import Usage
from chainette.utils.argument_advice import nearest

if TYPE_CHECKING:
    from chainette.engine.config import EngineConfig

__all__ = [
    "NO_LIMITS",
    "Amounts",
    "Budget",
    "BudgetLimits",
    "Reserved",
    "budget_of",
    "budget_spent",
    "budgeted",
    "engine_limits",
    "fits",
    "limit_words",
    "merged",
    "parse_budget",
    "require_prices",
]

#: In the order of `Amounts`; -1 if there is no limit.
BudgetLimits = tuple[int, int, int, int]

NO_LIMITS: BudgetLimits = (-1, -1, -1, -1)

_FORM = "20usd, 3gpuh, 5e6tok or 1000req"
_LIMIT = re.compile(r"(?P<amount>\d+(?:\.\d*)?(?:[eE][+-]?\d+)?)\s*(?P<unit>usd|gpuh|tok|req)")

#: Unit -> its place in `Amounts`, and how many of those make one.
_UNITS = {"req": (0, 1), "tok": (1, 1), "usd": (2, 10**9), "gpuh": (3, 3_600_000)}

#: A larger budget is suggested in two digits; amounts are told in six.
_UP, _DIGITS = Context(prec=2, rounding=ROUND_CEILING), Context(prec=6)

#: The largest amount: exact in the doubles of a Lua script.
_MOST = 2**53


class Amounts(msgspec.Struct, frozen=True, array_like=True):
    """Amounts in whole numbers, so that they add up alike in every process."""

    requests: int = 0
    #: Of prompts and answers.
    tokens: int = 0
    #: Billionths of a dollar.
    nanodollars: int = 0
    gpu_milliseconds: int = 0

    def __add__(self, other: Amounts) -> Amounts:
        return Amounts(*(mine + its for mine, its in zip(self, other, strict=True)))

    def __sub__(self, other: Amounts) -> Amounts:
        return Amounts(*(mine - its for mine, its in zip(self, other, strict=True)))

    def __iter__(self) -> Iterator[int]:
        return iter(msgspec.structs.astuple(self))

    def at_least(self, other: Amounts) -> Amounts:
        """The larger of each."""
        return Amounts(*map(max, self, other))

    @classmethod
    def of(cls, usage: Usage, rate: Rate) -> Amounts:
        """A usage, and its cost."""
        cost, tokens = rate.cost(usage), usage.prompt_tokens + usage.completion_tokens
        return cls(usage.requests, tokens, round(cost.usd * 1e9), round(cost.gpu_hours * 3.6e6))

    @property
    def words(self) -> str:
        """The amounts as they are in a run's record in Redis."""
        return " ".join(map(str, self))

    @classmethod
    def read(cls, words: str) -> Amounts:
        """The amounts in `words`.

        Raises:
            ValueError: there are none.
        """
        found = [int(word) for word in words.split()]
        if len(found) != len(_UNITS) or not all(0 <= amount <= _MOST for amount in found):
            raise ValueError(f"{words[:40]!r} are no amounts")
        return cls(*found)


class Reserved(msgspec.Struct, frozen=True):
    """The reply to a reservation."""

    #: How many of the requests may be sent, in their order.
    granted: int
    #: Spent and reserved, after it.
    used: Amounts
    #: Whether none fits, and no request in flight could free a part of its reservation.
    exhausted: bool = False
    #: The run's part of the engine's budget that is spent and reserved.
    of_engine: Amounts = Amounts()


class Budget(msgspec.Struct, frozen=True):
    """The limits of a run, and the rates by which its requests count towards them."""

    limits: BudgetLimits
    rates: dict[str, Rate] = {}
    #: Engine -> its limits, over all runs of a fleet.
    engines: dict[str, BudgetLimits] = {}

    def spent(self, engine: str, usage: Usage) -> Amounts:
        """The cost of an answer."""
        return Amounts.of(usage, self.rates.get(engine, Rate()))


def fits(limits: BudgetLimits, used: Amounts, need: Amounts) -> bool:
    """Whether a request fits beside everything that is spent and reserved."""
    return all(limit < 0 or has + max(1, more) <= limit for limit, has, more in zip(limits, used, need, strict=True))


def parse_budget(texts: Iterable[str], what: str = "--budget") -> BudgetLimits:
    """The limits in texts like 20usd, 3gpuh, 5e6tok and 1000req; `none` is no limit.

    Raises:
        InputError: a text has another form, or two have the same unit; `what` is their name in the message.
    """
    limits = [*NO_LIMITS]
    for text in texts:
        if text == "none":
            continue
        found = _LIMIT.fullmatch(text.strip())
        if found is None:
            raise InputError(f"{what} {text}: expected {_FORM}")
        place, whole = _UNITS[found["unit"]]
        if limits[place] >= 0:
            raise InputError(f"{what} {text}: there is another limit in {found['unit']}; give one")
        limits[place] = round(float(found["amount"]) * whole)
        if not 0 < limits[place] <= _MOST:
            raise InputError(f"{what} {text}: it must be above 0, and at most {_MOST // whole:,}{found['unit']}")
    return limits[0], limits[1], limits[2], limits[3]


def limit_words(limits: BudgetLimits) -> Iterator[str]:
    """BudgetLimits as texts like `20usd`."""
    for (unit, (_, whole)), limit in zip(_UNITS.items(), limits, strict=True):
        if limit >= 0:
            yield f"{_plain(Decimal(limit) / whole)}{unit}"


def _scope(text: str) -> str:
    """The engine of a limit in `--budget`; "" if it is a limit of the run."""
    return text.rpartition("=")[0].strip()


def merged(known: Iterable[str], given: Collection[str]) -> tuple[str, ...]:
    """The limits of a session: the given ones, and earlier ones of the run or of engines for which none is given."""
    scopes = {_scope(text) for text in given}
    return (*(text for text in known if _scope(text) not in scopes), *given)


def budgeted(engines: Mapping[str, EngineConfig], texts: Iterable[str]) -> dict[str, EngineConfig]:
    """The engines; texts like `gpt=20usd` replace the budgets of some.

    Raises:
        InputError: a text names an engine the chain does not have, or is of another form.
    """
    found, given = dict(engines), dict[str, tuple[str, ...]]()
    for text in texts:
        if name := _scope(text):
            if name not in found:
                raise InputError(f"--budget {text}: the chain has no engine {name!r}{nearest(name, found)}")
            given[name] = (*given.get(name, ()), text.rpartition("=")[2].strip())
    for name, own in given.items():
        parse_budget(own, f"--budget {name}=")
        found[name] = msgspec.structs.replace(found[name], budget=own)
    return found


def engine_limits(engines: Mapping[str, EngineConfig]) -> dict[str, BudgetLimits]:
    """The limits of those engines that have a budget."""
    limits = {name: parse_budget(config.budget) for name, config in engines.items()}
    return {name: found for name, found in limits.items() if found != NO_LIMITS}


def _of_run(texts: Iterable[str]) -> BudgetLimits:
    return parse_budget(text for text in texts if not _scope(text))


def budget_of(texts: Iterable[str], rates: Mapping[str, Rate], engines: Mapping[str, BudgetLimits]) -> Budget | None:
    """The budget of a run: the limits that `--budget` sets for it, and those of its engines; None if there are none."""
    limits = _of_run(texts)
    return Budget(limits, {**rates}, {**engines}) if engines or limits != NO_LIMITS else None


def require_prices(texts: Collection[str], asked: Mapping[str, EngineConfig], rates: Mapping[str, Rate]) -> None:
    """Checks that budgets in dollars or GPU-hours can be kept: every engine they concern has a price.

    Raises:
        InputError: one does not.
    """
    for name, config in asked.items():
        rate = rates.get(name, Rate.of(config))
        pairs = zip(_of_run(texts), parse_budget(config.budget), strict=True)
        _, _, dollars, hours = (max(pair) for pair in pairs)
        if dollars >= 0 and rate.price is None:
            raise InputError(
                f"a budget in usd needs the price of engine {name!r}: --price {name}=in:0.15,out:0.6 (or gpu_hour:2.5), "
                "or price={...} where it is declared"
            )
        if hours >= 0 and not rate.gpus and config.backend != "openai":
            raise InputError(
                f"a budget in gpuh needs to know that engine {name!r} runs on a GPU: --price {name}=gpu_hour:2.5, "
                "or gpu_ids=[...] where it is declared"
            )


def budget_spent(limits: Iterable[int], used: Amounts, needed: Amounts, engine: str = "") -> BudgetSpent:
    """The error of a run if the next request needs more than its budget, or the budget of an engine, has left."""
    spent, next_one, most = [], [], []
    for (unit, (_, whole)), limit, has, needs in zip(_UNITS.items(), limits, used, needed, strict=True):
        if limit >= 0:
            one = max(1, needs)
            spent.append(f"{_plain(Decimal(has) / whole)} of {_plain(Decimal(limit) / whole)} {unit} used")
            next_one.append(f"{_plain(Decimal(one) / whole)} {unit}")
            most.append(f"{_plain(_UP.plus(Decimal(max(2 * limit, has + one)) / whole))}{unit}")
    of = f"{engine}=" if engine else ""
    larger = tuple(word for amount in most for word in ("--budget", f"{of}{amount}"))
    what, total, or_declare = "the budget", "for the directory", ""
    if engine:
        what, or_declare = f"the budget of engine {engine!r}", ", or where the engine is declared"
        total = "over all runs of the engine in the fleet, or over the resumes of a run without one"
    return BudgetSpent(
        f"{what} is spent: {', '.join(spent)}, and the next request reserves {' and '.join(next_one)}; it is a total {total}. "
        f"Go on with a larger one: {' '.join(larger)}{or_declare}",
        larger,
    )


def _plain(number: Decimal) -> str:
    """A number without an exponent, as `parse_budget` reads it; of long fractions the digits that count."""
    return f"{_DIGITS.plus(number).normalize():f}"
