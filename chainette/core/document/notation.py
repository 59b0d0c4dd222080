"""The short notation for fields: `text: str`, `price: float | null`, `tags: list[str]`, `mood: [good, bad]`.

A field is a type, a list of the values it may have, or a mapping with the type and constraints:
`stars: {type: int, ge: 1, le: 5, description: ...}`. Types are `str`, `int`, `float`, `bool`, `date`, `datetime`, `time`,
`any`, `null`, quoted values, other models by name, `list[...]`, `dict[str, ...]` and unions of these.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Iterator
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import Field

from chainette.core.annotations import NONE, members
from chainette.core.document.yaml_parts import Part
from chainette.utils.argument_advice import nearest

__all__ = ["CONSTRAINTS", "SIMPLE", "field_of", "values_of"]

#: Types without brackets.
SIMPLE: dict[str, Any] = {
    "str": str,
    "int": int,
    "float": float,
    "bool": bool,
    "date": datetime.date,
    "datetime": datetime.datetime,
    "time": datetime.time,
    "any": Any,
    "null": None,
    "list": list[Any],
    "dict": dict[str, Any],
}

#: Keys of a field that is a mapping, besides `type`, and the types of their values.
CONSTRAINTS: dict[str, tuple[type, ...]] = {
    "description": (str,),
    "default": (object,),
    "ge": (int, float),
    "gt": (int, float),
    "le": (int, float),
    "lt": (int, float),
    "multiple_of": (int, float),
    "min_length": (int,),
    "max_length": (int,),
    "pattern": (str,),
}

_TOKEN = re.compile(r"""\s*(?:(?P<name>[^\W\d]\w*)|(?P<value>'[^']*'|"[^"]*"|-?\d+(?![\w.]))|(?P<mark>[\[\],|]))""")
_LONGEST = 2_000

#: A model by its name; None if there is no such model.
Named = Callable[[str], Any]


def field_of(part: Part, what: str, named: Named, names: Iterator[str] | list[str]) -> tuple[Any, Any]:
    """(annotation, pydantic's field) of one field. `names` are the models', for advice.

    Raises:
        LoadError: it cannot be read, at its line.
    """
    if not isinstance(part.value, dict):
        return _type_of(part, what, named, [*names]), Field()
    keys = part.keys(what, ["type", *CONSTRAINTS], ["type"])
    given = {key: _constraint(keys[key], f"{what}: {key}", kinds) for key, kinds in CONSTRAINTS.items() if key in keys}
    kind = _type_of(keys["type"], what, named, [*names])
    for key in given:
        if not _takes(kind, key):
            raise keys[key].fault(f"{what}: {key} says nothing about {keys['type'].shown}")
    return kind, Field(**given)


def _takes(kind: Any, key: str) -> bool:
    """Whether a constraint fits a type; pydantic itself would fail at the first row."""
    if key in ("description", "default"):
        return True
    sized = (str, list, dict) if key.endswith("_length") else (str,) if key == "pattern" else (int, float)
    return all((get_origin(member) or member) in sized for member in members(kind) if member is not NONE)


def _constraint(part: Part, what: str, kinds: tuple[type, ...]) -> Any:
    value = part.plain
    if not isinstance(value, kinds) or (isinstance(value, bool) and object not in kinds):
        raise part.fault(
            f"{what} is {' or '.join('text' if kind is str else kind.__name__ for kind in kinds)}, found {part.shown}"
        )
    return value


def _type_of(part: Part, what: str, named: Named, names: list[str]) -> Any:
    if isinstance(part.value, list):
        return values_of(part, what)
    if part.value is None:
        raise part.fault(f"{what} has no type; write one, such as str, or null in quotes")
    text = part.text(what)
    if len(text) > _LONGEST:
        raise part.fault(f"{what}: a type of more than {_LONGEST:,} letters")
    return _Types(part, what, text, named, names).whole()


def values_of(part: Part, what: str) -> Any:
    """The type of a list of values: text, whole numbers, true, false and null."""
    items = part.items(what)
    for item in items:
        if not isinstance(item.value, str | int | None):
            raise item.fault(f"{what}: a value is text, a whole number, true, false or null, found {item.shown}")
    return Literal[tuple(item.value for item in items)]


class _Types:
    """Reads a type from left to right."""

    def __init__(self, part: Part, what: str, text: str, named: Named, names: list[str]) -> None:
        self.part, self.what, self.named, self.names = part, what, named, names
        self.tokens = [*self.cut(text)]

    def cut(self, text: str) -> Iterator[tuple[str, str]]:
        at, text = 0, text.rstrip()
        while at < len(text):
            match = _TOKEN.match(text, at)
            if match is None:
                raise self.wrong(f"cannot read {text[at:].strip()[:20]!r}")
            yield str(match.lastgroup), match[match.lastgroup or 0]
            at = match.end()
        yield "end", ""

    def wrong(self, words: str) -> Exception:
        return self.part.fault(f"{self.what}: {words} in the type {self.part.shown}")

    def take(self, *wanted: str) -> str:
        """The next mark, if it is wanted."""
        kind, text = self.tokens[0]
        if kind != "mark" or text not in wanted:
            found = repr(text) if text else "the end"
            raise self.wrong(f"expected {' or '.join(map(repr, wanted))}, found {found}")
        return self.tokens.pop(0)[1]

    def whole(self) -> Any:
        found = self.union(0)
        if self.tokens[0][0] != "end":
            raise self.wrong(f"expected '|' or the end, found {self.tokens[0][1]!r}")
        return found

    def union(self, depth: int) -> Any:
        if depth > 20:
            raise self.wrong("too many brackets")
        found = [self.member(depth)]
        while self.tokens[0] == ("mark", "|"):
            self.tokens.pop(0)
            found.append(self.member(depth))
        values = [value for member in found if get_origin(member) is Literal for value in get_args(member)]
        kinds = [member for member in found if get_origin(member) is not Literal]
        return Union[(*kinds, *([Literal[tuple(values)]] if values else []))]

    def member(self, depth: int) -> Any:
        kind, text = self.tokens.pop(0)
        if kind == "value":
            return Literal[text[1:-1] if text[0] in "'\"" else int(text)]
        if kind != "name":
            raise self.wrong(f"expected a type, found {text!r}" if text else "a type is missing")
        if self.tokens[0] == ("mark", "["):
            return self.inside(text, depth)
        if text in SIMPLE:
            return SIMPLE[text]
        model = self.named(text)
        if model is None:
            raise self.wrong(f"there is no type or model {text!r}{nearest(text, [*SIMPLE, *self.names])},")
        return model

    def inside(self, name: str, depth: int) -> Any:
        """The type in the brackets of a list or dict."""
        self.take("[")
        if name == "dict":
            if self.tokens.pop(0) != ("name", "str"):
                raise self.wrong("the keys of a dict are str")
            self.take(",")
        elif name != "list":
            raise self.wrong(f"{name!r} takes no brackets; only list[...] and dict[str, ...] do,")
        item = self.union(depth + 1)
        self.take("]")
        return list.__class_getitem__(item) if name == "list" else dict.__class_getitem__((str, item))
