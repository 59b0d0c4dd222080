"""Answers drawn for one output model, validated if its schema alone does not make them valid."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from random import Random
from typing import Any

import msgspec
from pydantic import BaseModel, ValidationError

from chainette.engine.simulated.draw import compile_schema
from chainette.engine.simulated.model_schema import drawn_schema
from chainette.errors import Undrawable
from chainette.utils.user_errors import RAISED, told

__all__ = ["compile_model"]

Draw = Callable[[Random], Any]

#: Answers tried when a model is compiled. If all are valid, later ones are not checked.
_TRIED = 24
#: Answers drawn before a model counts as one that cannot be drawn, and for one answer.
_MOST = 400


@lru_cache(maxsize=256)
def compile_model(model: type[BaseModel]) -> Draw:
    """A function that draws values which `model` accepts. The same state of the generator gives the same value.

    Raises:
        Undrawable: no value was found that the model accepts.
    """
    draw = compile_schema(drawn_schema(model))
    refusals = [refusal for seed in range(_TRIED) if (refusal := _refusal(model, draw(_seeded(seed))))]
    if not refusals:
        return draw
    if len(refusals) == _TRIED and all(_refusal(model, draw(_seeded(seed))) for seed in range(_TRIED, _MOST)):
        raise Undrawable(f"no answer can be drawn that {model.__name__} accepts; the last one tried: {refusals[-1]}")
    return _checked(model, draw)


def _checked(model: type[BaseModel], draw: Draw) -> Draw:
    def draw_checked(rng: Random) -> Any:
        value = draw(rng)
        for _ in range(_MOST):
            if not _refusal(model, value):
                break
            value = draw(rng)
        return value

    return draw_checked


def _refusal(model: type[BaseModel], value: Any) -> str:
    """Why a step would reject the value as an answer; "" if it would not."""
    try:
        text = msgspec.json.encode(value)
        answer = model.model_validate_json(text)
        again = model.model_validate_json(answer.model_dump_json(by_alias=True, round_trip=True))
    except ValidationError as error:
        [first, *_] = error.errors(include_url=False, include_context=False)
        where = ".".join(map(str, first["loc"])) or model.__name__
        return f"{where}: {first['msg']}, got {text.decode()[:120]}"
    except RAISED as error:  # validators are the user's code
        return told(error)
    return "" if again == answer else "its dump does not validate back to an equal value"


def _seeded(seed: int) -> Random:
    return Random(seed)  # noqa: S311 (not a secret)
