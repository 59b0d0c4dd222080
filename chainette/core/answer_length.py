"""How long an answer that fits its schema can be, in characters of JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["longest_answer"]

#: Of values that no keyword bounds: the digits of an integer or a number as models write them, and of dates and ids.
_SCALARS: Mapping[str, int] = {"boolean": 5, "null": 4, "integer": 20, "number": 25}
_FORMATS: Mapping[str, int] = {"date": 10, "time": 21, "date-time": 35, "duration": 40, "uuid": 36, "ipv4": 15, "ipv6": 45}

#: The characters around a text, a list or an object, and after a name or a value: a colon or a comma, and a space.
_QUOTES, _BETWEEN = 2, 2


def longest_answer(schema: Mapping[str, Any]) -> int | None:
    """The characters of the longest answer; None if something in it has no limit."""
    return _Lengths(schema.get("$defs", {})).of(schema, frozenset())


@dataclass(frozen=True)
class _Lengths:
    definitions: Mapping[str, Any]

    def of(self, schema: Any, around: frozenset[str]) -> int | None:
        """The length of a value; `around` are the definitions that it is part of."""
        if not isinstance(schema, dict):
            return None
        if "$ref" in schema:
            name = schema["$ref"].rpartition("/")[2]
            return None if name in around else self.of(self.definitions.get(name), around | {name})
        if values := schema.get("enum", [schema["const"]] if "const" in schema else []):
            return max(len(json.dumps(value, ensure_ascii=False)) for value in values)
        if parts := [part for key in ("anyOf", "oneOf", "allOf") for part in schema.get(key, ())]:
            lengths = [self.of(part, around) for part in parts]
            known = [length for length in lengths if length is not None]
            return max(known) if len(known) == len(lengths) else None
        return self._of_type(schema, around)

    def _of_type(self, schema: dict[str, Any], around: frozenset[str]) -> int | None:
        match schema.get("type"):
            case "string":
                length = schema.get("maxLength", _FORMATS.get(schema.get("format", "")))
                return None if length is None else int(length) + _QUOTES
            case "array":
                return self._of_items(schema, around)
            case "object":
                is_open = schema.get("additionalProperties", False) is not False
                return None if is_open else self._of_members(schema, around)
            case kind:
                return _SCALARS.get(str(kind))

    def _of_items(self, schema: dict[str, Any], around: frozenset[str]) -> int | None:
        first = [self.of(item, around) for item in schema.get("prefixItems", [])]
        count = schema.get("maxItems", len(first) or None)
        if count is None or None in first:
            return None
        others = max(0, count - len(first))
        each = self.of(schema.get("items"), around) if others else 0
        return None if each is None else _QUOTES + sum(one + _BETWEEN for one in first if one) + others * (each + _BETWEEN)

    def _of_members(self, schema: dict[str, Any], around: frozenset[str]) -> int | None:
        length = _QUOTES
        for name, inner in schema.get("properties", {}).items():
            value = self.of(inner, around)
            if value is None:
                return None
            length += len(json.dumps(name, ensure_ascii=False)) + _BETWEEN + value + _BETWEEN
        return length
