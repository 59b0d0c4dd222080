"""Output fields without a limit: a model that does not stop can fill `max_tokens` with one of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue

from chainette.core.plan import Plan
from chainette.core.step import Step
from chainette.errors import Problem

__all__ = ["unbounded_fields", "unbounded_outputs"]

#: Formats of text with a bounded length.
_SHORT = frozenset({"date", "date-time", "duration", "ipv4", "ipv6", "time", "uuid"})
#: Fields a warning names.
_NAMED = 6


class _Sizes(GenerateJsonSchema):
    """A Decimal counts as the number it is: pydantic also takes it as text, and no argument of Field bounds that text."""

    def decimal_schema(self, schema: Any) -> JsonSchemaValue:  # noqa: ARG002 - of pydantic
        return {"type": "number"}


def unbounded_outputs(plan: Plan) -> list[Problem]:
    """One warning for each output model of a step that has fields without a limit."""
    steps: dict[type[BaseModel], list[Step[Any, Any]]] = {}
    for node in plan.steps:
        if isinstance(node.node, Step):
            steps.setdefault(node.node.output_model, []).append(node.node)
    return [
        Problem(_warning(model, fields, [step.id for step in users]), users[0].place, warning=True)
        for model, users in steps.items()
        if (fields := unbounded_fields(model))
    ]


def _warning(model: type[BaseModel], fields: list[str], steps: list[str]) -> str:
    shown = ", ".join(fields[:_NAMED]) + (f" and {len(fields) - _NAMED} more" if len(fields) > _NAMED else "")
    users = ", ".join(f"step {step!r}" for step in steps)
    return (
        f"{users}: {model.__name__} has no limit on {shown}; an answer that does not stop fills max_tokens and is rejected: "
        "Field(max_length=...) sets a limit"
    )


def unbounded_fields(model: type[BaseModel]) -> list[str]:
    """Paths of text, lists and maps without a limit, as `reply`, `items`, `items[].name`."""
    schema = model.model_json_schema(schema_generator=_Sizes)
    return [*dict.fromkeys(path or model.__name__ for path in _paths(schema, "", schema.get("$defs", {}), frozenset()))]


def _paths(schema: Any, path: str, definitions: Mapping[str, Any], around: frozenset[str]) -> Iterator[str]:
    if not isinstance(schema, dict) or "enum" in schema or "const" in schema:
        return
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        if name not in around:  # a model that contains itself
            yield from _paths(definitions.get(name), path, definitions, around | {name})
        return
    parts = [part for key in ("anyOf", "oneOf", "allOf") for part in schema.get(key, ())]
    for part in parts:
        yield from _paths(part, path, definitions, around)
    if _grows(schema, bool(parts)):
        yield path
    yield from _inner_paths(schema, path, definitions, around)


def _inner_paths(schema: dict[str, Any], path: str, definitions: Mapping[str, Any], around: frozenset[str]) -> Iterator[str]:
    for name, inner in schema.get("properties", {}).items():
        yield from _paths(inner, f"{path}.{name}" if path else name, definitions, around)
    for inner in [schema.get("items"), *schema.get("prefixItems", ())]:
        yield from _paths(inner, f"{path}[]", definitions, around)


def _grows(schema: dict[str, Any], has_parts: bool) -> bool:
    """Whether a value may be of any size, apart from its parts."""
    match schema.get("type"):
        case "string":
            return not ("maxLength" in schema or "pattern" in schema or schema.get("format") in _SHORT)
        case "array":
            return "maxItems" not in schema
        case "object":
            return schema.get("additionalProperties", False) is not False and "maxProperties" not in schema
        case None:  # Any
            return not has_parts
        case _:
            return False
