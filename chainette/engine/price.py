"""Prices of engines, for a million tokens or an hour of a GPU, and the cost of a usage."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import msgspec

from chainette.engine.backends import backend_class
from chainette.errors import EngineConfigError
from chainette.records import Usage
from chainette.utils.argument_advice import nearest

if TYPE_CHECKING:
    from chainette.engine.config import EngineConfig

__all__ = ["Cost", "Price", "Rate", "parse_price", "priced"]

_FORM = "ENGINE=in:0.15,out:0.6 (per million tokens; also cached:0.08 and gpu_hour:2.5)"
_PART = re.compile(r"(?P<name>\w+)\s*[:=]\s*(?P<amount>[\d.eE+-]+)")


class Price(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    omit_defaults=True,
    rename={"prompt": "in", "answer": "out"},
):
    """The price of an engine, in US dollars.

        register_engine("gpt", "gpt-4o-mini", "openai", price={"in": 0.15, "out": 0.6, "cached": 0.075})

    Raises:
        ValueError: an amount is negative or not finite.
    """

    #: A million tokens of prompts (`in`) and of answers (`out`).
    prompt: float | None = None
    answer: float | None = None
    #: A million tokens of prompts the server had in its cache; None: as other tokens of prompts.
    cached: float | None = None
    #: An hour of one GPU in which the engine works on requests.
    gpu_hour: float | None = None

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            amount = getattr(self, name)
            if amount is not None and not (math.isfinite(amount) and amount >= 0):
                raise ValueError(f"a price of {amount} is not possible; it must be 0 or more")


class Cost(msgspec.Struct, frozen=True):
    """Money and GPU time."""

    usd: float = 0.0
    gpu_hours: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.usd + other.usd, self.gpu_hours + other.gpu_hours)


class Rate(msgspec.Struct, frozen=True, omit_defaults=True):
    """How an engine's usage is charged."""

    #: None if it has no price; its GPU-hours may be counted nevertheless.
    price: Price | None = None
    #: GPUs of one loaded engine; 0 if its hours are not counted.
    gpus: int = 0

    @classmethod
    def of(cls, config: EngineConfig) -> Rate:
        """The rate of a declared engine. One with a price per GPU-hour counts as one GPU unless it names or needs more."""
        price = config.price
        asked = price is not None and price.gpu_hour is not None
        return cls(price, len(config.gpu_ids) or backend_class(config.backend).gpus(config) or int(asked))

    def cost(self, usage: Usage) -> Cost:
        """The cost of a usage."""
        hours = usage.busy * self.gpus / 3600
        price = self.price
        if price is None:
            return Cost(0.0, hours)
        cached = min(usage.cached_tokens, usage.prompt_tokens) if price.cached is not None else 0
        tokens = (usage.prompt_tokens - cached) * (price.prompt or 0) + cached * (price.cached or 0)
        tokens += usage.completion_tokens * (price.answer or 0)
        return Cost(tokens / 1e6 + hours * (price.gpu_hour or 0), hours)


def parse_price(text: str) -> tuple[str, Price]:
    """The engine and its price, as `--price` takes them: `gpt=in:0.15,out:0.6`.

    Raises:
        EngineConfigError: it is not of that form.
    """
    engine, _, parts = text.rpartition("=")  # an engine's name may have one
    found = [_PART.fullmatch(part.strip()) for part in parts.split(",")]
    names = [part["name"] for part in found if part is not None]
    if not engine or not all(found) or len({*names}) < len(names):
        raise EngineConfigError(f"--price {text}: expected {_FORM}")
    try:
        return engine.strip(), msgspec.convert({part["name"]: float(part["amount"]) for part in found if part}, Price)
    except (ValueError, msgspec.ValidationError) as error:
        raise EngineConfigError(f"--price {text}: {error}; expected {_FORM}") from None


def priced(engines: Mapping[str, EngineConfig], texts: Iterable[str]) -> dict[str, EngineConfig]:
    """The engines; `--price` replaces the prices of some.

    Raises:
        EngineConfigError: a price is not of the right form, or names an engine the chain does not have.
    """
    found = dict(engines)
    for text in texts:
        name, price = parse_price(text)
        if name not in found:
            raise EngineConfigError(f"--price {text}: the chain has no engine {name!r}{nearest(name, found)}")
        found[name] = msgspec.structs.replace(found[name], price=price)
    return found
