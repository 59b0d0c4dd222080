"""The shape of a type's JSON dump, which determines the type of its column.

It is derived from pydantic's JSON Schema of the dump, including aliases, custom serializers and round
trips, so a shape never promises more than the dump contains. Types without a fixed shape are `JSON`:
dicts, unions of different kinds, Any, recursive models, models that allow unknown fields, and floats
whose infinities are dumped as text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

__all__ = ["JsonKind", "Shape", "json_fields", "shape_of"]


class JsonKind(StrEnum):
    """The kind of a JSON value."""

    #: text; dates, times, decimals, UUIDs, bytes and enums of text as pydantic dumps them
    STRING = "string"
    #: a whole number of at most 64 bits
    INTEGER = "integer"
    #: a double
    NUMBER = "number"
    #: true or false
    BOOLEAN = "boolean"
    #: an array of one shape
    LIST = "list"
    #: an object with known fields
    STRUCT = "struct"
    #: anything else; a column keeps it as JSON text
    JSON = "json"


@dataclass(frozen=True)
class Shape:
    """A node in a tree of JSON kinds. Every value may also be null."""

    kind: JsonKind
    #: The shape of the items of a list.
    item: Shape | None = None
    #: The fields of a struct, in the order of the dump.
    fields: tuple[tuple[str, Shape], ...] = ()
    #: Whether a struct may hold fields that are not listed.
    open: bool = False


_JSON = Shape(JsonKind.JSON)
_SCALARS = {
    "string": Shape(JsonKind.STRING),
    "integer": Shape(JsonKind.INTEGER),
    "number": Shape(JsonKind.NUMBER),
    "boolean": Shape(JsonKind.BOOLEAN),
}
_PYTHON = {str: "string", int: "integer", bool: "boolean"}
_COMPUTED = "x-chainette-computed"


class _DumpSchema(GenerateJsonSchema):
    """The JSON Schema of `model_dump_json(by_alias=True, round_trip=True)`."""

    def handle_invalid_for_json_schema(self, schema: Any, error_info: str) -> JsonSchemaValue:  # noqa: ARG002
        return {}

    def computed_field_schema(self, schema: core_schema.ComputedField) -> JsonSchemaValue:  # noqa: ARG002
        return {_COMPUTED: True}

    def float_schema(self, schema: core_schema.FloatSchema) -> JsonSchemaValue:
        finite = not schema.get("allow_inf_nan", self._config.allow_inf_nan)
        return super().float_schema(schema) if finite or self._config.ser_json_inf_nan != "strings" else {}

    def json_schema(self, schema: core_schema.JsonSchema) -> JsonSchemaValue:  # noqa: ARG002
        return {"type": "string"}

    def ser_schema(self, schema: Any) -> JsonSchemaValue | None:
        found = super().ser_schema(schema)
        opaque = schema["type"] in ("function-plain", "function-wrap", "any")
        return {} if found is None and opaque else found

    def field_is_required(self, field: Any, total: bool) -> bool:
        if field["type"] == "typed-dict-field":
            return super().field_is_required(field, total)
        return field.get("serialization_exclude_if") is None


def shape_of(annotation: Any) -> Shape:
    """The shape of a type's dump. A model is always a struct, even if it has no fields or allows unknown ones."""
    schema = TypeAdapter(annotation).json_schema(schema_generator=_DumpSchema, mode="serialization", by_alias=True)
    reader = _ShapeReader(schema.get("$defs", {}))
    top = reader.resolve(schema)
    above = frozenset({_name(schema)} if "$ref" in schema else ())
    return reader.struct(top, above) if "properties" in top else reader.shape(schema, frozenset())


@lru_cache(maxsize=256)
def json_fields(model: Any) -> Mapping[str, bool]:
    """The fields of a model that take an array or an object, by the names that its input uses.

    The value is true if a field also takes text: then a cell that is not JSON is read as text.
    """
    schema = TypeAdapter(model).json_schema(mode="validation", schema_generator=_Lenient)
    reader = _ShapeReader(schema.get("$defs", {}))
    fields = {name: reader.types(field) for name, field in reader.resolve(schema).get("properties", {}).items()}
    return {name: "string" in types for name, types in fields.items() if {"array", "object"} & types}


class _Lenient(GenerateJsonSchema):
    """A JSON Schema in which types that pydantic cannot describe are empty."""

    def handle_invalid_for_json_schema(self, schema: Any, error_info: str) -> JsonSchemaValue:  # noqa: ARG002
        return {}


@dataclass(frozen=True)
class _ShapeReader:
    defs: Mapping[str, Any]

    def resolve(self, schema: Any) -> dict[str, Any]:
        """The schema that a reference points to."""
        while isinstance(schema, dict) and "$ref" in schema:
            schema = self.defs[_name(schema)]
        return schema if isinstance(schema, dict) else {}

    def shape(self, schema: Any, above: frozenset[str]) -> Shape:
        """The shape of a schema. `above` has the enclosing definitions, so that recursion ends as JSON."""
        if isinstance(schema, dict) and "$ref" in schema:
            name = _name(schema)
            return _JSON if name in above else self.shape(self.defs[name], above | {name})
        match schema:
            case {"anyOf": options} | {"oneOf": options}:
                return self._common({self.shape(option, above) for option in options if option != {"type": "null"}})
            case {"enum": values}:
                return self._common({_scalar(value) for value in values if value is not None})
            case {"const": value}:
                return _scalar(value)
            case {"type": "array"}:
                return self._array(schema, above)
            case {"type": "object"}:
                found = self.struct(schema, above)
                return found if found.fields and not found.open else _JSON
            case {"type": str(kind)}:
                return _SCALARS.get(kind, _JSON)
        return _JSON

    def struct(self, schema: dict[str, Any], above: frozenset[str]) -> Shape:
        fields = {name: field for name, field in schema.get("properties", {}).items() if not _is_computed(field)}
        optional = fields.keys() - set(schema.get("required", []))  # in a column, an omitted field would become null
        shapes = tuple((name, self.shape(field, above)) for name, field in fields.items() if name not in optional)
        return Shape(JsonKind.STRUCT, fields=shapes, open=bool(schema.get("additionalProperties")) or bool(optional))

    def _array(self, schema: dict[str, Any], above: frozenset[str]) -> Shape:
        items = [*schema.get("prefixItems", []), *([schema["items"]] if isinstance(schema.get("items"), dict) else [])]
        shapes = {self.shape(item, above) for item in items}
        item = self._common(shapes)
        return _JSON if len(shapes) > 1 else Shape(JsonKind.LIST, item=item)

    def _common(self, shapes: set[Shape]) -> Shape:
        return shapes.pop() if len(shapes) == 1 else _JSON

    def types(self, schema: Any) -> set[str]:
        """The JSON types a field takes."""
        found = self.resolve(schema)
        options = [*found.get("anyOf", ()), *found.get("oneOf", ()), *found.get("allOf", ())]
        nested = set().union(*(self.types(option) for option in options)) if options else set()
        return nested | ({found["type"]} if isinstance(found.get("type"), str) else set())


def _name(schema: Mapping[str, Any]) -> str:
    return str(schema["$ref"]).removeprefix("#/$defs/")


def _is_computed(field: Any) -> bool:
    return isinstance(field, dict) and bool(field.get(_COMPUTED))


def _scalar(value: Any) -> Shape:
    return _SCALARS.get(_PYTHON.get(type(value), ""), _JSON)
