"""Types from JSON Schema: only the keywords that usually describe models.

A keyword that would be ignored is an error, since a row could then be valid here and invalid elsewhere.
"""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Union

from pydantic import Field

from chainette.core.document.notation import values_of
from chainette.core.document.yaml_parts import Part
from chainette.utils.argument_advice import nearest

__all__ = ["SchemaTypes"]

#: Keywords that say nothing about values.
_NOTES = frozenset({"$schema", "$id", "$comment", "$defs", "definitions", "title", "description", "default", "examples"})

_OF_KIND = {
    "string": {"minLength": "min_length", "maxLength": "max_length", "pattern": "pattern"},
    "integer": {
        "minimum": "ge",
        "maximum": "le",
        "exclusiveMinimum": "gt",
        "exclusiveMaximum": "lt",
        "multipleOf": "multiple_of",
    },
    "array": {"minItems": "min_length", "maxItems": "max_length"},
    "object": {},
    "boolean": {},
    "null": {},
}
_OF_KIND["number"] = _OF_KIND["integer"]

#: Keywords with a meaning of their own, by kind.
_MORE = {"string": {"format"}, "array": {"items"}, "object": {"properties", "required", "additionalProperties"}}

_SIMPLE: dict[str, Any] = {"string": str, "integer": int, "number": float, "boolean": bool, "null": None}
_FORMATS: dict[str, Any] = {
    "date": datetime.date,
    "date-time": datetime.datetime,
    "time": datetime.time,
    "uuid": uuid.UUID,
}

_NUMBER = (int, float)
_VALUES: dict[str, tuple[type, ...]] = {
    "min_length": (int,),
    "max_length": (int,),
    "pattern": (str,),
    "ge": _NUMBER,
    "le": _NUMBER,
    "gt": _NUMBER,
    "lt": _NUMBER,
    "multiple_of": _NUMBER,
}

#: Makes a model of an object: (name, its schema, whether other fields are refused).
Objects = Callable[[str, Part], Any]


class SchemaTypes:
    """Reads one schema. `objects` makes the models of objects in it, `referred` finds the type of a `$ref`."""

    def __init__(self, objects: Objects, referred: Callable[[Part], Any]) -> None:
        self._objects = objects
        self._referred = referred

    def type_of(self, part: Part, name: str) -> Any:
        """The type a schema describes; an object's model is called `name`.

        Raises:
            LoadError: a keyword is unknown here or has a wrong value, at its line.
        """
        if part.value is True:
            return Any
        keys = part.mapping(f"the schema of {name}")
        for keyword, read in {"$ref": self._ref, "const": self._const, "enum": self._enum}.items():
            if keyword in keys:
                _known(keys, {keyword, "type"}, name)
                return read(keys[keyword], name)
        for keyword in ("anyOf", "oneOf"):
            if keyword in keys:
                _known(keys, {keyword}, name)
                return self._union(keys[keyword], name)
        if "type" not in keys:
            _known(keys, set(), name)
            return Any
        return self._of_type(keys, part, name)

    def _ref(self, part: Part, _name: str) -> Any:
        return self._referred(part)

    def _const(self, part: Part, name: str) -> Any:
        return values_of(Part([part], part.place), f"{name}: const")

    def _enum(self, part: Part, name: str) -> Any:
        return values_of(part, f"{name}: enum")

    def _union(self, part: Part, name: str) -> Any:
        return Union[tuple(self.type_of(member, name) for member in part.items(f"{name}: anyOf"))]  # noqa: UP007  (as above)

    def _of_type(self, keys: Mapping[str, Part], part: Part, name: str) -> Any:
        kind = keys["type"]
        if isinstance(kind.value, list):
            _known(keys, {"type"}, name)
            return Union[tuple(self.type_of(Part({"type": each}, each.place), name) for each in kind.items(f"{name}: type"))]  # noqa: UP007
        word = kind.text(f"{name}: type")
        if word not in _OF_KIND:
            raise kind.fault(f"{name}: type {word!r} is not known{nearest(word, _OF_KIND)}")
        _known(keys, {"type", *_OF_KIND[word], *_MORE.get(word, ())}, name)
        if word == "object":
            return self._object(keys, part, name)
        found = (
            self._items(keys, name) if word == "array" else self._formatted(keys, name) if word == "string" else _SIMPLE[word]
        )
        limits = {ours: _limit(keys[theirs], theirs, ours, name) for theirs, ours in _OF_KIND[word].items() if theirs in keys}
        return Annotated[found, Field(**limits)] if limits else found

    def _object(self, keys: Mapping[str, Part], part: Part, name: str) -> Any:
        more = keys.get("additionalProperties")
        if "properties" in keys:
            return self._objects(name, part)
        if more is None or isinstance(more.value, bool):
            return dict[str, Any]
        return dict.__class_getitem__((str, self.type_of(more, name)))

    def _items(self, keys: Mapping[str, Part], name: str) -> Any:
        return list.__class_getitem__(self.type_of(keys["items"], name) if "items" in keys else Any)

    def _formatted(self, keys: Mapping[str, Part], name: str) -> Any:
        if "format" not in keys:
            return str
        word = keys["format"].text(f"{name}: format")
        if word not in _FORMATS:
            raise keys["format"].fault(
                f"{name}: the format {word!r} is not checked here; leave it out, or use a model of Python"
            )
        return _FORMATS[word]


def _known(keys: Mapping[str, Part], known: set[str], name: str) -> None:
    for keyword, part in keys.items():
        if keyword not in known and keyword not in _NOTES:
            raise part.fault(
                f"{name}: the keyword {keyword!r} is not understood here; leave it out, or use a model of Python, module:Class"
            )


def _limit(part: Part, keyword: str, ours: str, name: str) -> Any:
    if not isinstance(part.value, _VALUES[ours]) or isinstance(part.value, bool):
        raise part.fault(f"{name}: {keyword} is {part.shown}, which is not a limit")
    return part.value
