"""A JSON Schema with constraints that pydantic's has not: on dates and times, keys of mappings, digits of decimals, URLs.

Keywords that begin with `x-` are ours, and only `draw` reads them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue

__all__ = ["drawn_schema"]

#: Bounds in pydantic's own schemas -> ours, which hold dates, times and durations.
_BOUNDS = {"ge": "x-least", "gt": "x-above", "le": "x-most", "lt": "x-below"}
#: Digits before the point, unless a Decimal says more.
_WHOLE_DIGITS = 3


def drawn_schema(model: type[BaseModel]) -> dict[str, Any]:
    """The schema of answers, with hints for `draw`."""
    return model.model_json_schema(schema_generator=_WithHints)


class _WithHints(GenerateJsonSchema):
    def date_schema(self, schema: Any) -> JsonSchemaValue:
        return super().date_schema(schema) | _moments(schema)

    def datetime_schema(self, schema: Any) -> JsonSchemaValue:
        return super().datetime_schema(schema) | _moments(schema)

    def time_schema(self, schema: Any) -> JsonSchemaValue:
        return super().time_schema(schema) | _moments(schema)

    def timedelta_schema(self, schema: Any) -> JsonSchemaValue:
        return super().timedelta_schema(schema) | _moments(schema)

    def bytes_schema(self, schema: Any) -> JsonSchemaValue:
        encoding = {"base64": "base64url", "hex": "hex"}.get(self._config.val_json_bytes, "binary")
        return super().bytes_schema(schema) | {"format": encoding}

    def dict_schema(self, schema: Any) -> JsonSchemaValue:
        found = super().dict_schema(schema)
        if "patternProperties" in found or schema.get("keys_schema", {}).get("type") in (None, "str", "any"):
            return found
        return found | {"propertyNames": self.generate_inner(schema["keys_schema"])}

    def decimal_schema(self, schema: Any) -> JsonSchemaValue:
        if schema.get("max_digits") is None and schema.get("decimal_places") is None:
            return super().decimal_schema(schema)
        return _decimal(schema)

    def complex_schema(self, schema: Any) -> JsonSchemaValue:
        return super().complex_schema(schema) | {"format": "complex"}

    def url_schema(self, schema: Any) -> JsonSchemaValue:
        return super().url_schema(schema) | _scheme(schema)

    def multi_host_url_schema(self, schema: Any) -> JsonSchemaValue:
        return super().multi_host_url_schema(schema) | _scheme(schema)


def _moments(schema: Mapping[str, Any]) -> JsonSchemaValue:
    found = {ours: schema[theirs] for theirs, ours in _BOUNDS.items() if schema.get(theirs) is not None}
    found |= {"x-now": schema["now_op"]} if "now_op" in schema else {}
    return found | ({"x-zone": schema["tz_constraint"]} if "tz_constraint" in schema else {})


def _decimal(schema: Mapping[str, Any]) -> JsonSchemaValue:
    """A number of so many digits: whole steps of the last decimal place between the bounds."""
    digits, places = schema.get("max_digits"), schema.get("decimal_places")
    places = max(0, (digits or 0) - _WHOLE_DIGITS) if places is None else places
    step = float(schema.get("multiple_of") or 10.0**-places)
    bounds = {"minimum": schema.get("ge"), "maximum": schema.get("le")}
    bounds |= {"exclusiveMinimum": schema.get("gt"), "exclusiveMaximum": schema.get("lt")}
    found = {key: float(bound) for key, bound in bounds.items() if bound is not None}
    if digits is not None and not {"maximum", "exclusiveMaximum"} & found.keys():
        found["maximum"] = float(10 ** max(0, digits - places)) - step
    return {"type": "number", "multipleOf": step, **found}


def _scheme(schema: Mapping[str, Any]) -> JsonSchemaValue:
    allowed = schema.get("allowed_schemes")
    return {"x-scheme": allowed[0]} if allowed else {}
