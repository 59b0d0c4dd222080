"""Reading type annotations: members of unions, elements of collections, names of types.

`Any` means the type is unknown; callers report nothing.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from enum import Enum
from typing import Any, ForwardRef, Literal, NewType, TypeVar, Union, get_args, get_origin

__all__ = [
    "NONE",
    "allowed_values",
    "element_type",
    "is_model",
    "list_of",
    "mapping_types",
    "members",
    "plain",
    "tuple_of",
    "tuple_types",
    "type_name",
    "union_of",
]

NONE = type(None)

_UNIONS = (Union, types.UnionType)
_COLLECTIONS = (list, tuple, set, frozenset, Sequence, Set, Collection, Iterable)


def plain(annotation: Any) -> Any:
    """The annotation without `Annotated`, `NewType` and aliases; Any if a name is unresolved."""
    while True:
        if hasattr(annotation, "__metadata__"):
            annotation = annotation.__origin__
        elif type(annotation).__name__ == "TypeAliasType":
            annotation = annotation.__value__
        elif isinstance(annotation, NewType):
            annotation = annotation.__supertype__
        else:
            break
    if annotation is None:
        return NONE
    return Any if annotation is object or isinstance(annotation, (str, ForwardRef, TypeVar)) else annotation


def members(annotation: Any) -> tuple[Any, ...]:
    """The members of a union, flat; the type itself if it is not a union."""
    annotation = plain(annotation)
    if get_origin(annotation) in _UNIONS:
        return tuple(inner for part in get_args(annotation) for inner in members(part))
    return (annotation,)


def union_of(parts: Iterable[Any]) -> Any:
    """The union of `parts`; Any if there are none."""
    flat: list[Any] = []
    for part in parts:
        flat += [member for member in members(part) if member not in flat]
    if not flat or Any in flat:
        return Any
    return flat[0] if len(flat) == 1 else Union[tuple(flat)]  # noqa: UP007


def list_of(element: Any) -> Any:
    """`list[element]` for a type known at run time."""
    return types.GenericAlias(list, (element,))


def tuple_of(parts: tuple[Any, ...]) -> Any:
    """`tuple[a, b]` for types known at run time."""
    return types.GenericAlias(tuple, parts)


def is_model(annotation: Any) -> bool:
    """Whether it is a pydantic model class."""
    from pydantic import BaseModel

    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _base(annotation: Any) -> Any:
    origin = get_origin(annotation)
    return annotation if origin is None else origin


def mapping_types(annotation: Any) -> tuple[Any, Any] | None:
    """(key, value) of a mapping; None for another type."""
    base, arguments = _base(annotation), get_args(annotation)
    if not isinstance(base, type) or not issubclass(base, Mapping) or typing.is_typeddict(base):
        return None
    return (arguments[0], arguments[1]) if len(arguments) == 2 else (Any, Any)


def tuple_types(annotation: Any) -> tuple[Any, ...] | None:
    """The items of a tuple of fixed length; None for another type."""
    arguments = get_args(annotation)
    if get_origin(annotation) is not tuple or Ellipsis in arguments:
        return None
    return tuple(arguments)


def element_type(annotation: Any) -> Any | None:
    """The element type of a list, tuple or set; None for another type, text and mappings included."""
    fixed = tuple_types(annotation)
    if fixed is not None:
        return union_of(fixed)
    base, arguments = _base(annotation), get_args(annotation)
    if base not in _COLLECTIONS:
        return None
    return arguments[0] if arguments else Any


def allowed_values(annotation: Any) -> list[Any] | None:
    """The values of a Literal or an Enum as they are written to JSON; None for another type."""
    if get_origin(annotation) is Literal:
        return [value.value if isinstance(value, Enum) else value for value in get_args(annotation)]
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return [member.value for member in annotation]
    return None


def type_name(annotation: Any) -> str:
    """A short name as the user would write it: `list[Item] | None`."""
    annotation = plain(annotation)
    if annotation is NONE:
        return "None"
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in _UNIONS:
        return " | ".join(map(type_name, arguments))
    if origin is Literal:
        return f"Literal[{', '.join(map(repr, arguments))}]"
    if origin is None:
        return str(getattr(annotation, "__name__", annotation))
    inner = ", ".join("..." if argument is Ellipsis else type_name(argument) for argument in arguments)
    return f"{getattr(origin, '__name__', origin)}[{inner}]"
