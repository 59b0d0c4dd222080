"""ApplyNode: a Python function per row."""

from __future__ import annotations

import inspect
import typing
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Any, Concatenate, Generic, Unpack, overload

from pydantic import BaseModel
from typing_extensions import TypedDict, TypeVar

from chainette.core.function_signature import (
    checked_model,
    hints_of,
    id_of,
    item_of,
    model_name,
    model_of,
    name_of,
    positional,
    row_of,
    without_none,
    yields,
)
from chainette.core.node import Node
from chainette.errors import DeclarationError, WrongArguments
from chainette.utils.argument_advice import explained
from chainette.utils.call_site import caller_frame, caller_place

__all__ = ["ApplyNode", "Cardinality", "apply"]

In = TypeVar("In", bound=BaseModel, default=BaseModel)
Out = TypeVar("Out", bound=BaseModel, default=BaseModel)


class Cardinality(StrEnum):
    """How many rows a node makes from one."""

    #: exactly one; the row keeps its id
    ONE = "one"
    #: one or none; the row keeps its id or is dropped
    OPTIONAL = "optional"
    #: a list; rows become `<id>~<i>`, even if the list has one item
    MANY = "many"


_HINTS = {
    "callable": "fn={value}",
    "func": "fn={value}",
    "function": "fn={value}",
    "batch_size": "Chain(batch_size={value}, ...)",
    "input": "input_model={value}",
    "output": "output_model={value}",
}


@explained(_HINTS)
@dataclass(frozen=True, eq=False, init=False)
class ApplyNode(Node, Generic[In, Out]):
    """`fn(item)` or `fn(item, history)` for every row, off the event loop unless it is async.

    The declared return type decides: `-> list[OUT]` expands a row to `<id>~<i>`, as does a function that yields
    (`-> Iterator[OUT]`, `-> AsyncIterator[OUT]`); `-> OUT` keeps it; `-> OUT | None` keeps or drops it. Without
    annotation it counts as a list. The models are taken from the annotations, unless they are given. An exception
    rejects the row. After a crash the function may run twice for a row; its outputs count once.

    Raises:
        DeclarationError: the function takes no item, its id cannot be a name (a lambda needs `id=`), or it yields
            although it declares one row.
    """

    fn: Callable[..., Any]
    input_model: type[In] | None
    output_model: type[Out] | None
    cardinality: Cardinality = field(init=False)
    #: Whether the return type was declared; the check warns if it was not.
    annotated: bool = field(init=False)

    def __init__(
        self,
        fn: Callable[..., Any],
        *,
        id: str | None = None,
        name: str = "",
        emoji: str = "",
        input_model: type[In] | None = None,
        output_model: type[Out] | None = None,
    ) -> None:
        place = caller_place()
        if not callable(fn):
            hint = f"; write ApplyNode(fn, id={fn!r})" if isinstance(fn, str) else ""
            raise WrongArguments(f"{place}: ApplyNode: its only positional argument is the function, found {fn!r}{hint}")
        item = item_of(fn, place)
        hints = hints_of(fn, caller_frame().f_locals)
        cardinality, returned = _cardinality(hints.get("return", inspect.Parameter.empty))
        if yields(fn) and cardinality is not Cardinality.MANY:
            wanted = f"{'AsyncIterator' if inspect.isasyncgenfunction(fn) else 'Iterator'}[{model_name(returned)}]"
            raise DeclarationError(f"{place}: {name_of(fn)} yields rows; declare it `-> {wanted}`, or return the one row")
        self._set(name=name, emoji=emoji, place=place, fn=fn, cardinality=cardinality, annotated="return" in hints)
        self._complete(id, (input_model, hints.get(item)), (output_model, returned))

    def _complete(self, id: str | None, given: tuple[Any, Any], returned: tuple[Any, Any]) -> None:
        """Sets the id and the models: each as it was passed, else as the function's annotation says."""
        models = [
            checked_model(passed, label, self.place)
            for label, (passed, _) in (("input_model", given), ("output_model", returned))
        ]
        self._set(
            id=id_of(self.fn, self.place) if id is None else id,
            input_model=models[0] or model_of(given[1]),
            output_model=models[1] or model_of(returned[1]),
        )
        self.__post_init__()

    @cached_property
    def wants_history(self) -> bool:
        """Whether the function takes `(item, history)`."""
        return len(positional(self.fn)) > 1

    def decode(self, value: bytes) -> Out:
        """The validated output from a row's JSON."""
        if self.output_model is None:
            raise TypeError(f"apply {self.id!r} declares no output model")
        return self.output_model.model_validate_json(value)


class _Keys(TypedDict, Generic[In, Out], total=False):
    """The keywords of `apply`, which are those of `ApplyNode`."""

    id: str | None
    name: str
    emoji: str
    input_model: type[In] | None
    output_model: type[Out] | None


@overload
def apply(fn: Callable[Concatenate[In, ...], list[Out]], **keys: Unpack[_Keys[In, Out]]) -> ApplyNode[In, Out]: ...
@overload
def apply(fn: Callable[Concatenate[In, ...], Awaitable[list[Out]]], **keys: Unpack[_Keys[In, Out]]) -> ApplyNode[In, Out]: ...
@overload
def apply(fn: Callable[Concatenate[In, ...], Iterator[Out]], **keys: Unpack[_Keys[In, Out]]) -> ApplyNode[In, Out]: ...
@overload
def apply(fn: Callable[Concatenate[In, ...], AsyncIterator[Out]], **keys: Unpack[_Keys[In, Out]]) -> ApplyNode[In, Out]: ...
@overload
def apply(fn: Callable[Concatenate[In, ...], Awaitable[Out | None]], **keys: Unpack[_Keys[In, Out]]) -> ApplyNode[In, Out]: ...
@overload
def apply(fn: Callable[Concatenate[In, ...], Out | None], **keys: Unpack[_Keys[In, Out]]) -> ApplyNode[In, Out]: ...
@overload
def apply(fn: Callable[..., Any], **keys: Unpack[_Keys[Any, Any]]) -> ApplyNode[Any, Any]: ...
@overload
def apply(fn: None = None, **keys: Unpack[_Keys[Any, Any]]) -> Callable[[Callable[..., Any]], ApplyNode[Any, Any]]: ...
@explained()
def apply(fn: Callable[..., Any] | None = None, **keys: Any) -> Any:
    """An ApplyNode from a function; `@apply`, `@apply(id=...)` and `apply(fn, ...)` all work.

    Raises:
        DeclarationError: as `ApplyNode`.
    """
    if fn is None:
        return lambda function: ApplyNode(function, **keys)
    return ApplyNode(fn, **keys)


def _cardinality(annotation: Any) -> tuple[Cardinality, Any]:
    """(cardinality, type of one row) of a return annotation."""
    if typing.get_origin(annotation) in (Awaitable, Coroutine):
        return _cardinality(typing.get_args(annotation)[-1])
    if (row := row_of(annotation)) is not None:
        return Cardinality.MANY, row
    kept, may_drop = without_none(annotation)
    if may_drop:
        return Cardinality.OPTIONAL, kept
    return (Cardinality.MANY, None) if model_of(kept) is None else (Cardinality.ONE, kept)
