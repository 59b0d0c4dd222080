"""BatchApply: a Python function over all rows of a unit at once."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from typing_extensions import TypeVar

from chainette.core.apply import ApplyNode, Cardinality
from chainette.core.function_signature import (
    hints_of,
    model_name,
    name_of,
    positional,
    row_of,
    without_none,
)
from chainette.errors import DeclarationError, Place, WrongArguments
from chainette.utils.argument_advice import explained
from chainette.utils.call_site import caller_frame, caller_place

__all__ = ["BatchApply"]

In = TypeVar("In", bound=BaseModel, default=BaseModel)
Out = TypeVar("Out", bound=BaseModel, default=BaseModel)

_HINTS = dict.fromkeys(("callable", "func", "function"), "fn={value}") | {
    "batch_size": "Chain(batch_size={value}, ...), which is the most rows of one call",
    "input": "input_model={value}",
    "output": "output_model={value}",
}


@explained(_HINTS)
@dataclass(frozen=True, eq=False, init=False)
class BatchApply(ApplyNode[In, Out]):
    """`fn(list[IN]) -> list[OUT]` over the rows of a unit: for vectorised functions, embeddings, databases.

    The function is called once for each unit, with at most `Chain(batch_size=...)` rows, off the event loop unless it is
    async. It returns one row for each it got, in the same order; if it declares `-> list[OUT | None]`, None drops
    the row. If it raises, or returns another number of rows, it is called again with each half, down to single rows:
    a row that fails alone is rejected, and its neighbours are not. A row may therefore be passed several times; its
    output counts once.

        @BatchApply
        def embed(texts: list[Text]) -> list[Vector]:
            return [Vector(values=v) for v in model.encode([text.text for text in texts])]

    Raises:
        DeclarationError: the function does not take one list, declares to return something else than a list, or its
            name cannot be an id (a lambda needs `id=`).
    """

    def __init__(
        self,
        fn: Callable[[list[In]], Iterable[Out | None] | AsyncIterable[Out | None] | Awaitable[Iterable[Out | None]]],
        *,
        id: str | None = None,
        name: str = "",
        emoji: str = "",
        input_model: type[In] | None = None,
        output_model: type[Out] | None = None,
    ) -> None:
        place = caller_place()
        if not callable(fn):
            raise WrongArguments(f"{place}: BatchApply: its only positional argument is the function, found {fn!r}")
        hints = hints_of(fn, caller_frame().f_locals)
        item = row_of(hints.get(_only_parameter(fn, place)))
        returned, drops = _returned(fn, hints.get("return", inspect.Parameter.empty), place)
        cardinality = Cardinality.OPTIONAL if drops else Cardinality.ONE
        self._set(name=name, emoji=emoji, place=place, fn=fn, cardinality=cardinality, annotated=True)
        self._complete(id, (input_model, item), (output_model, returned))


def _only_parameter(fn: Callable[..., Any], place: Place) -> str:
    parameters = positional(fn)
    if len(parameters) != 1:
        raise DeclarationError(f"{place}: {name_of(fn)} must take one list of rows, it takes {len(parameters)} parameters")
    return parameters[0]


def _returned(fn: Callable[..., Any], annotation: Any, place: Place) -> tuple[Any, bool]:
    """(type of one row the function returns, whether None may take its place)."""
    if annotation is inspect.Parameter.empty or annotation is list:
        return None, False
    row = row_of(annotation)
    if row is None:
        found, wanted = model_name(annotation), "a BatchApply returns one row for each that it got, `-> list[OUT]`"
        raise DeclarationError(f"{place}: {name_of(fn)} is declared `-> {found}`; {wanted}")
    return without_none(row)
