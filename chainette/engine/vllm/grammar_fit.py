"""Reduces a JSON Schema, as little as possible, to what a grammar backend can express.

Validation alone checks the rest: a looser grammar allows more answers and never loses one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["fitted"]

Schema = dict[str, Any]

#: Keywords in the order in which they are dropped. Bounds of strings go late: without them a small model never ends.
_GIVEN_UP: tuple[frozenset[str], ...] = (
    frozenset({"multipleOf", "uniqueItems", "contains", "minContains", "maxContains", "not", "if", "then", "else"}),
    frozenset({"propertyNames", "patternProperties", "dependentRequired", "dependentSchemas", "unevaluatedProperties"}),
    frozenset({"format"}),
    frozenset({"pattern"}),
    frozenset({"minLength", "maxLength", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}),
)


def fitted(schema: Schema, fits: Callable[[Schema], str]) -> tuple[Schema | None, str]:
    """(the fullest schema that fits, why the whole one does not); (None, ...) if nothing fits.

    `fits` gives "" or the reason why not.
    """
    problem = fits(schema)
    if not problem:
        return schema, ""
    return next((candidate for candidate in _candidates(schema) if not fits(candidate)), None), problem


def _candidates(schema: Schema) -> Iterator[Schema]:
    """Ever looser schemas: one group of keywords alone, then more and more of them, then any object."""
    for group in _GIVEN_UP:
        yield _without(schema, group)
    gone: frozenset[str] = frozenset()
    for group in _GIVEN_UP:
        gone |= group
        yield _without(schema, gone)
    yield {"type": "object"}


def _without(schema: Any, gone: frozenset[str]) -> Any:
    if isinstance(schema, list):
        return [_without(part, gone) for part in schema]
    if not isinstance(schema, dict):
        return schema
    return {key: _member(key, part, gone) for key, part in schema.items() if key not in gone}


def _member(key: str, part: Any, gone: frozenset[str]) -> Any:
    """`properties` and `$defs` map names to schemas; `enum`, `const` and `default` hold values."""
    if key in ("properties", "$defs", "patternProperties") and isinstance(part, dict):
        return {name: _without(inner, gone) for name, inner in part.items()}
    return part if key in ("enum", "const", "default", "examples", "required") else _without(part, gone)
