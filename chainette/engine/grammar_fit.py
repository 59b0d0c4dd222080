"""Reduces a JSON Schema, as little as possible, to the keywords a grammar backend can express.

Validation alone checks the rest: a looser grammar allows more answers and never loses one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

__all__ = ["VALIDATED_LATER", "fitted", "lightened", "loosened"]

Schema = dict[str, Any]
#: Whether a keyword with this value stays.
Keep = Callable[[str, Any], bool]

#: Keywords in the order in which they are dropped. Bounds of strings go late: without them a small model never ends.
_GIVEN_UP: tuple[frozenset[str], ...] = (
    frozenset({"multipleOf", "uniqueItems", "contains", "minContains", "maxContains", "not", "if", "then", "else"}),
    frozenset({"propertyNames", "patternProperties", "dependentRequired", "dependentSchemas", "unevaluatedProperties"}),
    frozenset({"format"}),
    frozenset({"pattern"}),
    frozenset({"minLength", "maxLength", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}),
)

#: The end of a warning about a schema that a grammar cannot express in full.
VALIDATED_LATER = "a looser grammar holds the answers; the rest is validated when the answer comes"

#: The largest values a grammar may hold. Beyond them llguidance and xgrammar overflow, take gigabytes, or never end.
_LARGEST: Mapping[str, float] = (
    dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"), 10**15)
    | dict.fromkeys(("minLength", "maxLength"), 100_000)
    | dict.fromkeys(("minItems", "maxItems", "minProperties", "maxProperties"), 2_000)
)
#: Characters of a pattern, and values of an enum.
_LONGEST = {"pattern": 2_000, "enum": 5_000}


def fitted(schema: Schema, fits: Callable[[Schema], str]) -> tuple[Schema | None, str]:
    """(the fullest schema that fits, the reason why the whole one does not fit); (None, ...) if nothing fits.

    `fits` gives "" or the reason why not; it never sees a value that could cost it minutes.
    """
    light, lost = lightened(schema)
    problem = fits(light)
    whole = "; ".join(filter(None, [f"too large for a grammar: {', '.join(lost)}" if lost else "", problem]))
    if not problem:
        return light, whole
    return next((candidate for candidate in _candidates(light) if not fits(candidate)), None), whole


def lightened(schema: Schema) -> tuple[Schema, list[str]]:
    """The schema without the values that are too large for a grammar, and the parts that were left out."""
    lost: list[str] = []

    def keep(key: str, value: Any) -> bool:
        fine = _is_light(key, value)
        if not fine:
            lost.append(key if key in _LONGEST else f"{key}={value!s:.24}")
        return fine

    return _filtered(schema, keep), [*dict.fromkeys(lost)]


def loosened(schema: Schema) -> Schema:
    """The schema without the keywords that some grammars cannot express; bounds stay."""
    return dict(_without(schema, frozenset().union(*_GIVEN_UP[:-1])))


def _is_light(key: str, value: Any) -> bool:
    if key in _LARGEST:
        return bool(abs(value) <= _LARGEST[key])
    return key not in _LONGEST or len(value) <= _LONGEST[key]


def _candidates(schema: Schema) -> Iterator[Schema]:
    """Ever looser schemas: one group of keywords alone, then more and more of them, then any object."""
    for group in _GIVEN_UP:
        yield _without(schema, group)
    gone: frozenset[str] = frozenset()
    for group in _GIVEN_UP:
        gone |= group
        yield _without(schema, gone)
    yield {"type": schema.get("type", "object")}


def _without(schema: Schema, gone: frozenset[str]) -> Any:
    return _filtered(schema, lambda key, _value: key not in gone)


def _filtered(schema: Any, keep: Keep) -> Any:
    """The schema without the keywords that `keep` refuses, at every depth."""
    if isinstance(schema, list):
        return [_filtered(part, keep) for part in schema]
    if not isinstance(schema, dict):
        return schema
    return {key: _member(key, part, keep) for key, part in schema.items() if keep(key, part)}


def _member(key: str, part: Any, keep: Keep) -> Any:
    """`properties` and `$defs` map names to schemas; `enum`, `const` and `default` hold values."""
    if key in ("properties", "$defs", "patternProperties") and isinstance(part, dict):
        return {name: _filtered(inner, keep) for name, inner in part.items()}
    return part if key in ("enum", "const", "default", "examples", "required") else _filtered(part, keep)
