"""Reads a user's function: its name, its parameters, and the annotations that resolve."""

from __future__ import annotations

import contextlib
import functools
import inspect
import keyword
import types
import typing
from collections.abc import AsyncIterable, Awaitable, Callable, Coroutine, Iterable, Mapping
from typing import Any

from pydantic import BaseModel

from chainette.core.annotations import type_name
from chainette.errors import DeclarationError, Place
from chainette.records import Message
from chainette.utils.ids import snake_case

__all__ = [
    "builder_problem",
    "checked_model",
    "hints_of",
    "id_of",
    "item_of",
    "model_name",
    "model_of",
    "name_of",
    "positional",
    "row_of",
    "without_none",
    "yields",
]


def name_of(fn: Callable[..., Any]) -> str:
    fn = fn.func if isinstance(fn, functools.partial) else fn
    return getattr(fn, "__name__", type(fn).__name__)


def id_of(fn: Callable[..., Any], place: Place) -> str:
    """The id made from a function's name; `import_` keeps its underscore, since `import` cannot be an id.

    Raises:
        DeclarationError: the name has no letters, or the function has none.
    """
    name = name_of(fn)
    if name == "<lambda>" or not any(map(str.isalnum, name)):
        called = "a lambda has no name" if name == "<lambda>" else f"the function's name {name!r} cannot be an id"
        raise DeclarationError(f"{place}: {called}; give the node an id: apply(..., id='...')")
    short = snake_case(name)
    return name if keyword.iskeyword(short) else short


def item_of(fn: Callable[..., Any], place: Place) -> str:
    """The name of the parameter that gets the item."""
    parameters = positional(fn)
    if not 1 <= len(parameters) <= 2:
        raise DeclarationError(
            f"{place}: {name_of(fn)} must take (item) or (item, history), it takes {len(parameters)} parameters"
        )
    return parameters[0]


def positional(fn: Callable[..., Any]) -> list[str]:
    """The parameters a caller must give by position."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [p.name for p in inspect.signature(fn).parameters.values() if p.kind in kinds and p.default is p.empty]


def _function(fn: Callable[..., Any]) -> Any:
    """The function inside a partial, or behind a callable object."""
    fn = fn.func if isinstance(fn, functools.partial) else fn
    return fn if inspect.isfunction(fn) or inspect.ismethod(fn) else type(fn).__call__


def yields(fn: Callable[..., Any]) -> bool:
    """Whether it is a generator function."""
    function = _function(fn)
    return inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)


def hints_of(fn: Callable[..., Any], local: Mapping[str, Any]) -> dict[str, Any]:
    """The annotations that resolve, also to models of the calling function; others are left out."""
    function = _function(fn)
    names = {**local, **getattr(function, "__globals__", {})}
    found: dict[str, Any] = {}
    for name, annotation in getattr(function, "__annotations__", {}).items():
        with contextlib.suppress(NameError, TypeError, AttributeError, SyntaxError):
            found |= typing.get_type_hints(types.SimpleNamespace(__annotations__={name: annotation}), names)
    return found


def model_of(annotation: Any) -> type[BaseModel] | None:
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def model_name(annotation: Any) -> str:
    return str(getattr(annotation, "__name__", annotation))


def checked_model(model: Any, label: str, place: Place) -> Any:
    if model is not None and model_of(model) is None:
        raise DeclarationError(f"{place}: {label} is {model!r}, not a pydantic model")
    return model


def row_of(annotation: Any) -> Any:
    """The ROW of `list[ROW]`, `Iterator[ROW]` and the like, awaited or not; None for other types."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (Awaitable, Coroutine):
        return row_of(arguments[-1])
    several = isinstance(origin, type) and issubclass(origin, (Iterable, AsyncIterable)) and not issubclass(origin, Mapping)
    return arguments[0] if several and arguments else None


def without_none(annotation: Any) -> tuple[Any, bool]:
    """(the type beside None, or None if there are several; whether the annotation allows None)."""
    arguments = typing.get_args(annotation)
    if typing.get_origin(annotation) not in (typing.Union, types.UnionType) or type(None) not in arguments:
        return annotation, False
    rest = [argument for argument in arguments if argument is not type(None)]
    return rest[0] if len(rest) == 1 else None, True


def builder_problem(builder: Any, local: Mapping[str, Any]) -> str:
    """Why `prompt_builder=` cannot give a row's messages; "" if nothing speaks against it. `local` as of `hints_of`."""
    wanted = "give a function (step, row, history) -> list[Message]"
    if not callable(builder):
        return f"prompt_builder is {builder!r}; {wanted}"
    name, given = f"prompt_builder={name_of(builder)}", hints_of(builder, local).get("return", Any)
    if inspect.iscoroutinefunction(_function(builder)):
        return f"{name} is async; look things up in an apply(...) before the step, and {wanted}"
    try:
        inspect.signature(builder).bind(None, None, None)
    except TypeError:
        return f"{name} takes ({', '.join(positional(builder))}); {wanted}"
    except ValueError:  # built in, without a signature
        return ""
    row = row_of(given)
    no_list = _is_class(given) and (issubclass(given, str) or not issubclass(given, Iterable))
    no_message = typing.get_origin(row) is dict or (_is_class(row) and not issubclass(Message, row))
    return f"{name} gives {type_name(given)}; {wanted}" if no_list or no_message else ""


def _is_class(annotation: Any) -> bool:
    return isinstance(annotation, type) and annotation is not Any
