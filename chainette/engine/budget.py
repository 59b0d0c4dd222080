"""Budgets: the limits of a run, the most that a request may cost, and the cost of its answer."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

import msgspec

from chainette.engine.price import Rate
from chainette.errors import InputError
from chainette.records import Message, Usage

if TYPE_CHECKING:
    from chainette.engine.config import EngineConfig

__all__ = ["Amounts", "Budget", "Reserved", "budget_of", "estimated_tokens", "parse_budget", "require_prices", "spent_words"]

_FORM = "20usd, 3gpuh, 5e6tok or 1000req"
_LIMIT = re.compile(r"(?P<amount>\d+(?:\.\d*)?(?:[eE]\+?\d+)?)\s*(?P<unit>usd|gpuh|tok|req)")

#: Unit -> its place in `Amounts`, and how many of those make one.
_UNITS = {"req": (0, 1), "tok": (1, 1), "usd": (2, 10**9), "gpuh": (3, 3_600_000)}

#: The largest amount: exact in the doubles of a Lua script.
_MOST = 2**53

#: Bytes of a prompt for each token that is reserved for it, and tokens that a server puts around a message.
_BYTES, _AROUND = 3, 8


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
        """As the record of a run in Redis has it."""
        return " ".join(map(str, self))

    @classmethod
    def read(cls, words: str) -> Amounts:
        """The amounts out of `words`.

        Raises:
            ValueError: it holds none.
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
    #: Whether none fits, and nothing is in flight that could leave something over.
    exhausted: bool = False


class Budget(msgspec.Struct, frozen=True):
    """The limits of a run, and the rates by which its requests count towards them."""

    #: In the order of `Amounts`; -1 if there is no limit.
    limits: tuple[int, int, int, int]
    rates: dict[str, Rate] = {}

    def need(self, engine: str, messages: Iterable[Message], max_tokens: int, seconds: float) -> Amounts:
        """The reservation of a request: its prompt, estimated, the longest answer, and the seconds that the engine has taken
        for a request so far (`SharedTime.per_request`)."""
        return self.spent(engine, Usage(1, estimated_tokens(messages), max_tokens, busy=seconds))

    def spent(self, engine: str, usage: Usage) -> Amounts:
        """The cost of an answer."""
        return Amounts.of(usage, self.rates.get(engine, Rate()))

    def fits(self, used: Amounts, need: Amounts) -> bool:
        """Whether a request fits beside everything that is spent and reserved."""
        pairs = zip(self.limits, used, need, strict=True)
        return all(limit < 0 or has + max(1, more) <= limit for limit, has, more in pairs)


def estimated_tokens(messages: Iterable[Message]) -> int:
    """The tokens of a prompt, if no tokenizer counts them: a third of its bytes, and some around each message."""
    return sum(_AROUND - -len(message.content.encode()) // _BYTES for message in messages)


def parse_budget(texts: Iterable[str]) -> tuple[int, int, int, int]:
    """The limits that `--budget` gives: 20usd, 3gpuh, 5e6tok or 1000req; `none` is no limit.

    Raises:
        InputError: a text is of another form, or two are of one unit.
    """
    limits = [-1] * len(_UNITS)
    for text in texts:
        if text == "none":
            continue
        found = _LIMIT.fullmatch(text.strip())
        if found is None:
            raise InputError(f"--budget {text}: expected {_FORM}")
        place, whole = _UNITS[found["unit"]]
        if limits[place] >= 0:
            raise InputError(f"--budget {text}: there is another limit in {found['unit']}; give one")
        limits[place] = round(float(found["amount"]) * whole)
        if not 0 < limits[place] <= _MOST:
            raise InputError(f"--budget {text}: it must be above 0, and at most {_MOST // whole:,}{found['unit']}")
    return limits[0], limits[1], limits[2], limits[3]


def budget_of(texts: Iterable[str], rates: Mapping[str, Rate]) -> Budget | None:
    """The budget that texts like `20usd` set; None if they set no limit."""
    limits = parse_budget(texts)
    return Budget(limits, {**rates}) if max(limits) >= 0 else None


def require_prices(texts: Collection[str], asked: Mapping[str, EngineConfig], rates: Mapping[str, Rate]) -> None:
    """Checks that a budget in dollars or GPU-hours can be kept: every engine that is asked has a price.

    Raises:
        InputError: one does not.
    """
    _, _, dollars, hours = parse_budget(texts)
    for name, config in asked.items():
        rate = rates.get(name, Rate.of(config))
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


def spent_words(limits: Iterable[int], used: Amounts) -> str:
    """Says that a budget is spent, and how to go on."""
    places = zip(_UNITS.items(), limits, used, strict=True)
    found = [(unit, limit / whole, amount / whole) for (unit, (_, whole)), limit, amount in places]
    spent = [f"{amount:.6g} of {limit:.6g} {unit}" for unit, limit, amount in found if limit >= 0]
    larger = " ".join(f"--budget {2 * limit:g}{unit}" for unit, limit, _ in found if limit >= 0)
    return (
        f"the budget is spent: {', '.join(spent)} used, and the next request may not fit; it is a total for the directory. "
        f"Go on with a larger one: `chainette resume DIR {larger}`"
    )
