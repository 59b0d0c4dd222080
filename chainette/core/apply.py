"""ApplyNode: a Python function per row."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Any, Generic, overload

from pydantic import BaseModel
from typing_extensions import TypeVar

from chainette.core.node import Node, caller_frame, caller_place
from chainette.errors import DeclarationError
from chainette.utils.ids import snake_case

__all__ = ["ApplyNode", "Cardinality", "apply"]

In = TypeVar("In", bound=BaseModel, default=BaseModel)
Out = TypeVar("Out", bound=BaseModel, default=BaseModel)


class Cardinality(StrEnum):
    """How many rows a node makes of one."""

    #: exactly one; the row keeps its id
    ONE = "one"
    #: one or none; the row keeps its id or is dropped
    OPTIONAL = "optional"
    #: a list; rows become `<id>~<i>`, also where the list has one item
    MANY = "many"


@dataclass(frozen=True, kw_only=True, eq=False)
class ApplyNode(Node, Generic[In, Out]):
    """`fn(item)` or `fn(item, history)` for every row, off the event loop unless it is `async def`.

    The declared return type says what becomes of a row: `-> list[OUT]` expands it to `<id>~<i>`,
    `-> OUT` keeps it, `-> OUT | None` keeps or drops it. Without annotation it counts as a list. An
    exception rejects the row. The function may run twice for a row after a crash; its outputs count once.
    """

    fn: Callable[..., Any]
    input_model: type[In] | None = None
    output_model: type[Out] | None = None
    cardinality: Cardinality = Cardinality.MANY
    #: Whether the return type was declared; the check warns where it was not.
    annotated: bool = False

    @cached_property
    def wants_history(self) -> bool:
        """Whether the function takes `(item, history)`."""
        return len(_positional(self.fn)) > 1

    def decode(self, value: bytes) -> Out:
        """The validated output out of a row's JSON."""
        if self.output_model is None:
            raise TypeError(f"apply {self.id!r} declares no output model")
        return self.output_model.model_validate_json(value)


@overload
def apply(
    fn: Callable[[In], list[Out]] | Callable[[In, Any], list[Out]],
    *,
    id: str | None = ...,
    name: str = ...,
    emoji: str = ...,
    input_model: type[In] | None = ...,
    output_model: type[Out] | None = ...,
) -> ApplyNode[In, Out]: ...
@overload
def apply(
    fn: Callable[[In], Awaitable[list[Out]]],
    *,
    id: str | None = ...,
    name: str = ...,
    emoji: str = ...,
    input_model: type[In] | None = ...,
    output_model: type[Out] | None = ...,
) -> ApplyNode[In, Out]: ...
@overload
def apply(
    fn: Callable[[In], Out | None] | Callable[[In, Any], Out | None],
    *,
    id: str | None = ...,
    name: str = ...,
    emoji: str = ...,
    input_model: type[In] | None = ...,
    output_model: type[Out] | None = ...,
) -> ApplyNode[In, Out]: ...
@overload
def apply(fn: Callable[..., Any], **keys: Any) -> ApplyNode[Any, Any]: ...
@overload
def apply(fn: None = None, **keys: Any) -> Callable[[Callable[..., Any]], ApplyNode[Any, Any]]: ...
def apply(fn: Callable[..., Any] | None = None, **keys: Any) -> Any:
    """An ApplyNode from a function; `@apply`, `@apply(id=...)` and `apply(fn, ...)` all work.

    `input_model` and `output_model` are read from the annotations where they are not given.

    Raises:
        DeclarationError: the function takes no item, or its id cannot be a name (a lambda needs `id=`).
    """
    if fn is None:
        return lambda function: apply(function, **keys)
    place = caller_place()
    parameters = _positional(fn)
    if not 1 <= len(parameters) <= 2:
        raise DeclarationError(
            f"{place}: {_name(fn)} must take (item) or (item, history), it takes {len(parameters)} parameters"
        )
    hints = _hints(fn, caller_frame().f_locals)
    cardinality, returned = _cardinality(hints.get("return", inspect.Parameter.empty))
    keys.setdefault("id", None)
    keys["id"] = keys["id"] or _id(fn)
    keys.setdefault("input_model", None)
    keys["input_model"] = keys["input_model"] or _model(hints.get(parameters[0]))
    keys.setdefault("output_model", None)
    keys["output_model"] = keys["output_model"] or _model(returned)
    return ApplyNode(fn=fn, cardinality=cardinality, annotated="return" in hints, **keys)


def _name(fn: Callable[..., Any]) -> str:
    return getattr(fn, "__name__", type(fn).__name__)


def _id(fn: Callable[..., Any]) -> str:
    """The id that a function's name makes; a name without letters stays as it is and is refused as an id."""
    name = _name(fn)
    return snake_case(name) if any(map(str.isalnum, name)) else name


def _positional(fn: Callable[..., Any]) -> list[str]:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [p.name for p in inspect.signature(fn).parameters.values() if p.kind in kinds and p.default is p.empty]


def _hints(fn: Callable[..., Any], local: Mapping[str, Any]) -> dict[str, Any]:
    """The annotations that resolve, also to models of the calling function; one that does not counts as none."""
    target = fn if inspect.isfunction(fn) or inspect.ismethod(fn) else type(fn).__call__
    try:
        return typing.get_type_hints(target, localns={**local, **getattr(target, "__globals__", {})})
    except (NameError, TypeError):
        return {}


def _model(annotation: Any) -> type[BaseModel] | None:
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def _cardinality(annotation: Any) -> tuple[Cardinality, Any]:
    """(cardinality, type of one row) out of a return annotation."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return Cardinality.MANY, arguments[0]
    if origin in (typing.Union, types.UnionType) and type(None) in arguments:
        rest = [argument for argument in arguments if argument is not type(None)]
        return Cardinality.OPTIONAL, rest[0] if len(rest) == 1 else None
    if _model(annotation) is not None:
        return Cardinality.ONE, annotation
    return Cardinality.MANY, None
