"""OpenAI's strict dialect of JSON Schema: the part of a schema its servers enforce.

Every object is closed (all properties required, no others), and keywords outside the dialect are dropped. The
result admits more than the schema, and less only in that optional fields must be given; the full model
validates the answer later. See "Structured model outputs", Supported schemas, in OpenAI's API guide.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Strict", "strict_subset"]

Schema = dict[str, Any]

_KEPT = frozenset({"type", "enum", "description", "title"})

#: Keywords a closed object or anyOf expresses in another way.
_SAID = frozenset({"properties", "required", "additionalProperties", "discriminator"})


@dataclass(frozen=True)
class Strict:
    """The part of a schema that can be sent."""

    #: None if the dialect cannot express it.
    schema: Schema | None
    #: Keywords that were left out, sorted.
    dropped: tuple[str, ...] = ()
    #: Why there is no schema.
    reason: str = ""


@dataclass
class _Conversion:
    """The conversion of one schema; collects dropped keywords and obstacles."""

    dropped: set[str] = field(default_factory=set)
    reasons: list[str] = field(default_factory=list)

    def convert(self, schema: Any) -> Schema:
        if not isinstance(schema, dict) or not schema.keys() - {"title", "description", "default"}:
            self.reasons.append("a value of any type")
            return {}
        result: Schema = {}
        for key, value in schema.items():
            rule = _RULES.get(key)
            if rule is not None:
                result |= rule(self, value)
            elif key in _KEPT:
                result[key] = value
            elif key not in _SAID:
                self.dropped.add(key)
        if schema.get("type") == "object" or "properties" in schema:
            result |= self._closed(schema)
        return _lone_reference(result)

    def _closed(self, schema: Schema) -> Schema:
        properties = schema.get("properties", {})
        if not properties and schema.get("additionalProperties") is not False:
            self.reasons.append("a mapping with free keys")
        return {"properties": self._each(properties), "required": list(properties), "additionalProperties": False}

    def _each(self, schemas: Schema) -> Schema:
        return {name: self.convert(schema) for name, schema in schemas.items()}

    def _any_of(self, schemas: list[Any]) -> Schema:
        return {"anyOf": [self.convert(schema) for schema in schemas]}

    def _all_of(self, schemas: list[Any]) -> Schema:
        if len(schemas) > 1:
            self.reasons.append("allOf")
        return self.convert(schemas[0])

    def _tuple(self, schemas: list[Any]) -> Schema:
        self.dropped.add("prefixItems")
        different = [schema for index, schema in enumerate(schemas) if schema not in schemas[:index]]
        return {"items": self.convert(different[0]) if len(different) == 1 else self._any_of(different)}


_RULES: dict[str, Callable[[_Conversion, Any], Schema]] = {
    "$ref": lambda _, value: {"$ref": value},
    "$defs": lambda conversion, value: {"$defs": conversion._each(value)},
    "anyOf": _Conversion._any_of,
    "oneOf": _Conversion._any_of,
    "allOf": _Conversion._all_of,
    "const": lambda _, value: {"enum": [value]},
    "items": lambda conversion, value: {"items": conversion.convert(value)} if value is not False else {},
    "prefixItems": _Conversion._tuple,
}


def strict_subset(schema: Schema) -> Strict:
    """The schema in the strict dialect."""
    conversion = _Conversion()
    result = conversion.convert(_root(schema))
    if result.get("type") != "object":
        conversion.reasons.append("an answer that is not an object")
    if conversion.reasons:
        return Strict(None, reason=", ".join(dict.fromkeys(conversion.reasons)))
    return Strict(result, tuple(sorted(conversion.dropped)))


def _root(schema: Schema) -> Schema:
    """The schema with its root spelled out: a recursive model's is a reference."""
    reference = schema.get("$ref", "")
    name = reference.removeprefix("#/$defs/")
    if name == reference or name not in schema.get("$defs", {}):
        return schema
    return {**schema["$defs"][name], "$defs": schema["$defs"]}


def _lone_reference(schema: Schema) -> Schema:
    """A reference may have no neighbours in the dialect; a description moves around it."""
    if "$ref" not in schema or len(schema) == 1:
        return schema
    rest = {key: value for key, value in schema.items() if key != "$ref"}
    return {"anyOf": [{"$ref": schema["$ref"]}], **rest}
