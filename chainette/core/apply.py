"""ApplyNode: a Python function per row."""

from __future__ import annotations

import contextlib
import functools
import inspect
import keyword
import types
import typing
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Any, Concatenate, Generic, overload

from pydantic import BaseModel
from typing_extensions import TypeVar

from chainette.core.node import Node
from chainette.errors import DeclarationError, Place, WrongArguments
from chainette.utils.callers import caller_frame, caller_place
from chainette.utils.ids import snake_case
from chainette.utils.mistakes import explained

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
        item = _item(fn, place)
        hints = _hints(fn, caller_frame().f_locals)
        cardinality, returned = _cardinality(hints.get("return", inspect.Parameter.empty))
        if _yields(fn) and cardinality is not Cardinality.MANY:
            wanted = f"{'AsyncIterator' if inspect.isasyncgenfunction(fn) else 'Iterator'}[{_model_name(returned)}]"
            raise DeclarationError(f"{place}: {_name(fn)} yields rows; declare it `-> {wanted}`, or return the one row")
        values = {
            "id": _id(fn, place) if id is None else id,
            "name": name,
            "emoji": emoji,
            "place": place,
            "fn": fn,
            "input_model": _checked(input_model, "input_model", place) or _model(hints.get(item)),
            "output_model": _checked(output_model, "output_model", place) or _model(returned),
            "cardinality": cardinality,
            "annotated": "return" in hints,
        }
        for key, value in values.items():
            object.__setattr__(self, key, value)
        self.__post_init__()

    @cached_property
    def wants_history(self) -> bool:
        """Whether the function takes `(item, history)`."""
        return len(_positional(self.fn)) > 1

    def decode(self, value: bytes) -> Out:
        """The validated output from a row's JSON."""
        if self.output_model is None:
            raise TypeError(f"apply {self.id!r} declares no output model")
        return self.output_model.model_validate_json(value)


@overload
def apply(
    fn: Callable[Concatenate[In, ...], list[Out]],
    *,
    id: str | None = ...,
    name: str = ...,
    emoji: str = ...,
    input_model: type[In] | None = ...,
    output_model: type[Out] | None = ...,
) -> ApplyNode[In, Out]: ...
@overload
def apply(
    fn: Callable[Concatenate[In, ...], Awaitable[list[Out]]],
    *,
    id: str | None = ...,
    name: str = ...,
    emoji: str = ...,
    input_model: type[In] | None = ...,
    output_model: type[Out] | None = ...,
) -> ApplyNode[In, Out]: ...
@overload
def apply(
    fn: Callable[Concatenate[In, ...], Iterator[Out]],
    *,
    id: str | None = ...,
    name: str = ...,
    emoji: str = ...,
    input_model: type[In] | None = ...,
    output_model: type[Out] | None = ...,
) -> ApplyNode[In, Out]: ...
@overload
def apply(
    fn: Callable[Concatenate[In, ...], AsyncIterator[Out]],
    *,
    id: str | None = ...,
    name: str = ...,
    emoji: str = ...,
    input_model: type[In] | None = ...,
    output_model: type[Out] | None = ...,
) -> ApplyNode[In, Out]: ...
@overload
def apply(
    fn: Callable[Concatenate[In, ...], Awaitable[Out | None]],
    *,
    id: str | None = ...,
    name: str = ...,
    emoji: str = ...,
    input_model: type[In] | None = ...,
    output_model: type[Out] | None = ...,
) -> ApplyNode[In, Out]: ...
@overload
def apply(
    fn: Callable[Concatenate[In, ...], Out | None],
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
@explained()
def apply(fn: Callable[..., Any] | None = None, **keys: Any) -> Any:
    """An ApplyNode from a function; `@apply`, `@apply(id=...)` and `apply(fn, ...)` all work.

    Raises:
        DeclarationError: as `ApplyNode`.
    """
    if fn is None:
        return lambda function: ApplyNode(function, **keys)
    return ApplyNode(fn, **keys)


def _name(fn: Callable[..., Any]) -> str:
    fn = fn.func if isinstance(fn, functools.partial) else fn
    return getattr(fn, "__name__", type(fn).__name__)


def _id(fn: Callable[..., Any], place: Place) -> str:
    """The id made from a function's name; `import_` keeps its underscore, since `import` cannot be an id.

    Raises:
        DeclarationError: the name has no letters, or the function has none.
    """
    name = _name(fn)
    if name == "<lambda>" or not any(map(str.isalnum, name)):
        called = "a lambda has no name" if name == "<lambda>" else f"the function's name {name!r} cannot be an id"
        raise DeclarationError(f"{place}: {called}; give the node an id: apply(..., id='...')")
    short = snake_case(name)
    return name if keyword.iskeyword(short) else short


def _item(fn: Callable[..., Any], place: Place) -> str:
    """The name of the parameter that gets the item."""
    parameters = _positional(fn)
    if not 1 <= len(parameters) <= 2:
        raise DeclarationError(
            f"{place}: {_name(fn)} must take (item) or (item, history), it takes {len(parameters)} parameters"
        )
    return parameters[0]


def _positional(fn: Callable[..., Any]) -> list[str]:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [p.name for p in inspect.signature(fn).parameters.values() if p.kind in kinds and p.default is p.empty]


def _function(fn: Callable[..., Any]) -> Any:
    """The function inside a partial, or behind a callable object."""
    fn = fn.func if isinstance(fn, functools.partial) else fn
    return fn if inspect.isfunction(fn) or inspect.ismethod(fn) else type(fn).__call__


def _yields(fn: Callable[..., Any]) -> bool:
    function = _function(fn)
    return inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)


def _hints(fn: Callable[..., Any], local: Mapping[str, Any]) -> dict[str, Any]:
    """The annotations that resolve, also to models of the calling function; others are left out."""
    function = _function(fn)
    names = {**local, **getattr(function, "__globals__", {})}
    found: dict[str, Any] = {}
    for name, annotation in getattr(function, "__annotations__", {}).items():
        with contextlib.suppress(NameError, TypeError, AttributeError, SyntaxError):
            found |= typing.get_type_hints(types.SimpleNamespace(__annotations__={name: annotation}), names)
    return found


def _model(annotation: Any) -> type[BaseModel] | None:
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def _model_name(annotation: Any) -> str:
    return str(getattr(annotation, "__name__", annotation))


def _checked(model: Any, label: str, place: Place) -> Any:
    if model is not None and _model(model) is None:
        raise DeclarationError(f"{place}: {label} is {model!r}, not a pydantic model")
    return model


def _cardinality(annotation: Any) -> tuple[Cardinality, Any]:
    """(cardinality, type of one row) of a return annotation."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (Awaitable, Coroutine):
        return _cardinality(arguments[-1])
    if isinstance(origin, type) and issubclass(origin, (Iterable, AsyncIterable)) and not issubclass(origin, Mapping):
        return Cardinality.MANY, arguments[0]
    if origin in (typing.Union, types.UnionType) and type(None) in arguments:
        rest = [argument for argument in arguments if argument is not type(None)]
        return Cardinality.OPTIONAL, rest[0] if len(rest) == 1 else None
    if _model(annotation) is not None:
        return Cardinality.ONE, annotation
    return Cardinality.MANY, None
