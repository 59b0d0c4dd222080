"""The types of a template's names, attributes and indexes, derived from annotations alone.

Every function returns a type, or a message if the access can never work. `Any` means the type is unknown;
callers report nothing.
"""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from pydantic import BaseModel

from chainette.core.annotations import (
    NONE,
    element_type,
    is_model,
    list_of,
    mapping_types,
    members,
    plain,
    tuple_of,
    type_name,
    union_of,
)

__all__ = [
    "Access",
    "LoopVariable",
    "Method",
    "attribute",
    "has_member",
    "item_type",
    "iterated",
    "nearest",
    "result_of",
    "same_or_any",
    "value_type",
    "without_none",
]

_CLOSED = (str, int, float, bool, list, tuple, set, frozenset)


@dataclass(frozen=True)
class Method:
    """A method that has not been called."""

    owner: Any
    name: str


@dataclass(frozen=True)
class LoopVariable:
    """The variable `loop` inside a for loop, with its jinja2 attributes."""

    index: int
    index0: int
    revindex: int
    revindex0: int
    first: bool
    last: bool
    length: int
    previtem: Any
    nextitem: Any
    depth: int
    depth0: int
    cycle: Any
    changed: Any


@dataclass(frozen=True)
class Access:
    """The result of `value.name`."""

    type: Any = Any
    #: The reason why it cannot work, without naming `value`; "" if it can.
    problem: str = ""
    #: Whether it works for some values only.
    sometimes: bool = False
    #: A test that a template can append to the value: {% if value<test> %}.
    test: str = ""


def nearest(word: str, known: Iterable[str], *, shown: int = 8) -> str:
    """`; did you mean ...?`, or the first known names."""
    names = sorted({name for name in known if not name.startswith("_")})
    close = difflib.get_close_matches(word, names, n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    more = ", ..." if len(names) > shown else ""
    return f"; it has: {', '.join(names[:shown])}{more}" if names else ""


def attribute(annotation: Any, name: str) -> Access:
    """The result of `.name` on a value of this type."""
    if isinstance(annotation, Method):
        return Access()
    parts = members(annotation)
    kept = [part for part in parts if part is not NONE]
    found = [_member_attribute(part, name) for part in kept]
    good = [access for access in found if not access.problem]
    if not good:
        return found[0] if found else Access(problem=f"is None and has no {name!r}")
    result = good[0].type if len(good) == 1 else union_of(access.type for access in good if not isinstance(access.type, Method))
    if len(good) < len(found):
        bad = [type_name(part) for part, access in zip(kept, found, strict=True) if access.problem]
        return Access(
            result, f"may be {' or '.join(bad)}, which has no field {name!r}", sometimes=True, test=f".{name} is defined"
        )
    if len(kept) < len(parts):
        return Access(result, f"may be None, which has no {name!r}", sometimes=True)
    return Access(result)


def _member_attribute(kind: Any, name: str) -> Access:
    if kind is Any:
        return Access()
    mapping = mapping_types(kind)
    if mapping is not None:
        return Access(Method(kind, name) if hasattr(dict, name) else mapping[1])
    if name.startswith("_"):
        return Access(problem=f"has {name!r}, but templates cannot use names that start with '_'")
    if is_model(kind):
        return _model_attribute(kind, name)
    element = element_type(kind)
    if element is not None:
        return _collection_attribute(kind, element, name)
    if isinstance(kind, type):
        return _class_attribute(kind, name)
    return Access()


def _model_attribute(model: type[BaseModel], name: str) -> Access:
    field = model.model_fields.get(name)
    if field is not None:
        return Access(plain(field.annotation))
    if hasattr(model, name):
        return Access(_descriptor_type(model, name))
    if model.model_config.get("extra") == "allow" or _answers_any_name(model):
        return Access()
    return Access(problem=f"({model.__name__}) has no field {name!r}{_field_hint(model, name)}")


def _answers_any_name(model: type[BaseModel]) -> bool:
    return any("__getattr__" in vars(base) for base in model.__mro__ if base is not BaseModel)


def _field_hint(model: type[BaseModel], name: str) -> str:
    for own, field in model.model_fields.items():
        if name in (field.alias, field.serialization_alias, field.validation_alias):
            return f"; {name!r} is an alias, templates use the field's own name: {own!r}"
    return nearest(name, [*model.model_fields, *_properties(model)])


def _properties(model: type[BaseModel]) -> list[str]:
    own = [item for base in model.__mro__ if base is not BaseModel for item in vars(base).items()]
    return [name for name, value in own if hasattr(value, "fget") and not name.startswith("_")]


def has_member(model: type[BaseModel], name: str) -> bool:
    """Whether `name` is a field of the model, or another attribute that its author defined."""
    return name in model.model_fields or (not name.startswith("_") and not hasattr(BaseModel, name) and hasattr(model, name))


def _descriptor_type(owner: type, name: str) -> Any:
    """The declared type of a property, a Method for a function, or Any for anything else."""
    found = getattr(owner, name)
    getter = getattr(found, "fget", None)
    if getter is not None:
        return _returned(getter)
    return Method(owner, name) if callable(found) and not isinstance(found, type) else Any


def _returned(function: Any) -> Any:
    try:
        return plain(typing.get_type_hints(function).get("return", Any))
    except (NameError, TypeError, AttributeError):
        return Any


def _collection_attribute(kind: Any, element: Any, name: str) -> Access:
    base = typing.get_origin(kind) or kind
    if isinstance(base, type) and hasattr(base, name):
        return Access(Method(kind, name))
    if base not in _CLOSED:
        return Access()
    inner = f" of {type_name(element)}" if element is not Any else ""
    return Access(problem=f"is a {base.__name__}{inner} and has no {name!r}; use a loop, or an index like [0]")


def _class_attribute(kind: type, name: str) -> Access:
    if hasattr(kind, name) or issubclass(kind, Enum):
        known = hasattr(kind, name) or name in ("name", "value")
        if not known:
            return Access(problem=f"({kind.__name__}) has no {name!r}; an enum has name and value")
        return Access(_descriptor_type(kind, name) if hasattr(kind, name) and not issubclass(kind, Enum) else Any)
    if kind in _CLOSED:
        return Access(problem=f"is {_article(kind)} and has no {name!r}")
    if dataclasses.is_dataclass(kind):
        names = [field.name for field in dataclasses.fields(kind)]
        return Access() if name in names else Access(problem=f"({kind.__name__}) has no field {name!r}{nearest(name, names)}")
    return Access()


def _article(kind: type) -> str:
    return f"{'an' if kind.__name__[0] in 'aeiou' else 'a'} {kind.__name__}"


def iterated(annotation: Any) -> Access:
    """The items of a loop over a value of this type."""
    if isinstance(annotation, Method):
        return Access(problem=f"is a method; call it: .{annotation.name}()")
    parts = members(annotation)
    kept = [part for part in parts if part is not NONE]
    if not kept:
        return Access(problem="is None and cannot be looped over")
    if all(part in (int, float, bool) for part in kept):
        return Access(problem=f"is {_article(kept[0])} and cannot be looped over")
    result = union_of(_iterated_member(part) for part in kept)
    if len(kept) < len(parts):
        return Access(result, "may be None, which cannot be looped over", sometimes=True)
    return Access(result)


def _iterated_member(kind: Any) -> Any:
    mapping = mapping_types(kind)
    if mapping is not None:
        return mapping[0]
    element = element_type(kind)
    if element is not None:
        return element
    return str if kind is str else Any


def item_type(kind: Any) -> Any:
    """The type of `value[i]`."""
    mapping = mapping_types(kind)
    if mapping is not None:
        return mapping[1]
    if kind is str:
        return str
    element = element_type(kind)
    return Any if element is None else element


def result_of(called: Any, arguments: Sequence[Any]) -> Any:
    """The type of a call, for methods whose results matter to later names; Any for others."""
    if not isinstance(called, Method):
        return Any
    mapping = mapping_types(called.owner)
    if mapping is not None:
        key, value = mapping
        match called.name:
            case "items":
                return list_of(tuple_of((key, value)))
            case "values":
                return list_of(value)
            case "keys":
                return list_of(key)
            case "get" if len(arguments) == 1:
                return union_of([value, NONE])
    if is_model(called.owner) and not hasattr(BaseModel, called.name):
        return _returned(getattr(called.owner, called.name))
    return Any


def value_type(kind: Any) -> Any:
    """The type, or Any for a method."""
    return Any if isinstance(kind, Method) else kind


def without_none(kind: Any) -> Any:
    """The type of the values that are not None."""
    if isinstance(kind, Method):
        return kind
    return union_of(part for part in members(kind) if part is not NONE)


def same_or_any(left: Any, right: Any) -> Any:
    """The type of an expression whose value is either of the two."""
    return left if left == right else Any
