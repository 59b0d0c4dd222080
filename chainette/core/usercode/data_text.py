"""Data of the user's code as text that is the same in every process.

The text of data is fixed when it is first needed. A chain is compiled before its first row, so that is the value after
the import, and a cache or a counter that fills up later changes nothing.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import hashlib
import re
import uuid
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterable, Iterator
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from types import FunctionType, MappingProxyType
from typing import Any, NewType, get_args, get_origin

from pydantic import BaseModel

__all__ = [
    "IdentityKey",
    "attributes_at_first",
    "canonical",
    "code_at_first",
    "instance_attributes",
    "is_constant",
    "parts_of_type",
    "text_at_first",
    "types_within",
    "without_places",
]

_CONSTANTS = (type(None), bool, int, float, complex, str, bytes, range, Decimal, Fraction, uuid.UUID)
_TIMES = (datetime.date, datetime.time, datetime.timedelta, datetime.tzinfo)


class IdentityKey:
    """A value as the key of a cache: it is equal only to itself, and kept alive."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __hash__(self) -> int:
        return id(self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, IdentityKey) and self.value is other.value


def is_constant(value: Any) -> bool:
    """Whether a value is immutable and its own text."""
    return isinstance(value, (Enum, re.Pattern)) or type(value) in _CONSTANTS


def text_at_first(value: Any, *, ordered: bool = True, file: str = "") -> str | None:
    """Data as text: constants as they are, other data as they were at the first call; None for anything else.

    Folders above `file` are written relative to it, so that moving a project changes nothing.
    """
    if is_constant(value):
        text = canonical(value)
        return text and without_places(text if ordered else "".join(sorted(text)), file)
    return _digest_at_first(IdentityKey(value), ordered, file)


@lru_cache(maxsize=4096)
def _digest_at_first(held: IdentityKey, ordered: bool, file: str) -> str | None:
    try:
        text = canonical(held.value, ordered=ordered)
    except Exception:  # the user's containers may raise anything, and may contain themselves
        return None
    return text and hashlib.sha256(without_places(text, file).encode(errors="surrogatepass")).hexdigest()


def without_places(text: str, file: str) -> str:
    """The text with folders above a file written relative to the file."""
    above = "."
    for folder in Path(file).absolute().parents[:-1] if file else ():
        text, above = text.replace(str(folder), above), f"{above}."
    return text


def attributes_at_first(value: Any) -> tuple[tuple[str, Any], ...]:
    """(name, value) of an object's attributes, as they were at the first call."""
    return _attributes_at_first(IdentityKey(value))


@lru_cache(maxsize=1024)
def _attributes_at_first(held: IdentityKey) -> tuple[tuple[str, Any], ...]:
    return tuple(sorted(instance_attributes(held.value).items()))


def instance_attributes(value: Any) -> dict[str, Any]:
    """An object's attributes, including those in slots."""
    slots = (name for kind in type(value).__mro__ for name in _slots(kind))
    return {**{name: getattr(value, name) for name in slots if hasattr(value, name)}, **getattr(value, "__dict__", {})}


def _slots(kind: type) -> tuple[str, ...]:
    names = vars(kind).get("__slots__", ())
    return (names,) if isinstance(names, str) else tuple(names)


def code_at_first(value: Any) -> tuple[Any, ...]:
    """The functions and classes directly inside a container (such as a registry), as they were at the first call."""
    return _code_at_first(IdentityKey(value))


@lru_cache(maxsize=1024)
def _code_at_first(held: IdentityKey) -> tuple[Any, ...]:
    value = held.value
    parts = value.values() if type(value) in (dict, OrderedDict, defaultdict) else value if type(value) in (list, tuple) else ()
    return tuple(part for part in parts if isinstance(part, (FunctionType, type)))


def types_within(value: Any) -> Iterator[type]:
    """The classes of the models and dataclasses inside data, each once."""
    found: dict[type, None] = {}
    pending = [value]
    while pending:
        part = pending.pop()
        if isinstance(part, BaseModel) or dataclasses.is_dataclass(part):
            found[type(part)] = None
        elif isinstance(part, (dict, MappingProxyType)):
            pending += part.values()
        elif isinstance(part, (list, tuple, set, frozenset, deque)):
            pending += part
    return iter(sorted(found, key=lambda kind: kind.__qualname__))


def parts_of_type(described: Any) -> Iterator[Any]:
    """Everything inside a type such as `list[Annotated[int, AfterValidator(clamp)]]`, or inside an object of pydantic."""
    found: dict[int, Any] = {}
    pending = [described]
    while pending:
        part = pending.pop()
        if id(part) in found:
            continue
        found[id(part)] = part
        yield part
        pending += [get_origin(part), *get_args(part)]
        if isinstance(part, (list, tuple)):
            pending += part
        elif isinstance(part, dict):
            pending += part.values()
        elif isinstance(part, functools.partial):
            pending += [part.func, part.args, part.keywords]
        elif isinstance(part, (staticmethod, classmethod)):
            pending.append(part.__func__)
        elif isinstance(part, NewType):
            pending.append(part.__supertype__)
        elif type(part).__name__ == "TypeAliasType":
            pending.append(part.__value__)
        elif not isinstance(part, type) and type(part).__module__.partition(".")[0] in ("annotated_types", "pydantic"):
            pending += [value for name, value in instance_attributes(part).items() if name != "core_schema"]


def canonical(value: Any, *, ordered: bool = True) -> str | None:
    """Data as text; None if any part is not data."""
    if isinstance(value, Enum):
        return f"{type(value).__name__}.{value.name}={value.value!r}"
    if isinstance(value, re.Pattern):
        return f"re {value.pattern!r} {value.flags}"
    if type(value) in _CONSTANTS or isinstance(value, _TIMES):
        return repr(value)
    if isinstance(value, (set, frozenset)):
        return _all_canonical("{}", value, ordered=False)
    if isinstance(value, (list, tuple, deque)):
        return _all_canonical("[]", value, ordered)
    if isinstance(value, (dict, MappingProxyType)):
        return _all_canonical("{:}", value.items(), ordered)
    if isinstance(value, BaseModel):
        return _model_text(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _all_canonical(type(value).__qualname__, [getattr(value, field.name) for field in dataclasses.fields(value)])
    return None


def _all_canonical(kind: str, values: Iterable[Any], ordered: bool = True) -> str | None:
    parts: list[str] = []
    for value in values:
        part = canonical(value)
        if part is None:
            return None
        parts.append(part)
    return f"{kind}({','.join(parts if ordered else sorted(parts))})"


def _model_text(model: BaseModel) -> str | None:
    try:
        return f"{type(model).__qualname__} {model.model_dump_json()}"
    except ValueError:
        return None
