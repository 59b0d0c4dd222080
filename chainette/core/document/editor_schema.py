"""The JSON Schema of a chain file, for editors. Names, code and templates are left to `chainette inspect`."""

from __future__ import annotations

from typing import Any

import msgspec
from pydantic import TypeAdapter

from chainette.core.chain import Chain
from chainette.core.document.chain_keys import FUNCTION_KEYS, MODELS, PROMPTS, parameter_type, parameters_of
from chainette.core.document.models import JSON_SCHEMA
from chainette.core.document.notation import CONSTRAINTS
from chainette.core.loop import Loop
from chainette.core.step import Step
from chainette.engine.base import SamplingParams
from chainette.engine.config import EngineConfig

__all__ = ["editor_schema"]

_TEXT = {"type": "string"}
_CODE = {
    "type": "string",
    "pattern": r"^[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*$",
    "description": "module:name, below the chain root",
}
_FILE = {"type": "object", "properties": {"file": _TEXT}, "required": ["file"], "additionalProperties": False}
_MODEL = {"type": "string", "description": "a model of `models:`, or module:Class"}
_KINDS = ("step", "apply", "batch_apply", "branch", "branches", "route", "loop")
_WAY = {"type": "array", "items": {"$ref": "#/$defs/entry"}}
_STEPS = {"$ref": "#/$defs/steps"}


def editor_schema() -> dict[str, Any]:
    """The schema, as plain data: draft 2020-12, which takes every file that loads."""
    chain = {key: _value(Chain, key) for key in parameters_of(Chain) if key != "steps"}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A chain of Chainette",
        **_object(
            {**chain, "models": _by_name("model"), "engines": {"anyOf": [_FILE, _by_name("engine")]}, "steps": _STEPS},
            ["name", "steps"],
        ),
        "$defs": {
            "steps": _list({"$ref": "#/$defs/entry"}),
            "entry": {"oneOf": [{"$ref": f"#/$defs/{kind}"} for kind in _KINDS]},
            "step": _step(),
            "apply": _function("apply"),
            "batch_apply": _function("batch_apply"),
            "branch": _object({"branch": _TEXT, "steps": _STEPS, "join": _TEXT, "emoji": _TEXT}, ["branch", "steps"]),
            "branches": _object(
                {"branches": {"type": "array", "items": {"$ref": "#/$defs/branch"}, "minItems": 1}}, ["branches"]
            ),
            "route": _route(),
            "loop": _loop(),
            "sampling": _fields(SamplingParams),
            "model": {"anyOf": [_CODE, _json_schema(), {"type": "object", "additionalProperties": {"$ref": "#/$defs/field"}}]},
            "field": _field(),
            "engine": _engine(),
        },
    }


def _object(properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _list(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items, "minItems": 1}


def _by_name(definition: str) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": {"$ref": f"#/$defs/{definition}"}}


def _step() -> dict[str, Any]:
    keys = {key: _value(Step, key) for key in parameters_of(Step) if key != "id"}
    return _object({"step": {**_TEXT, "description": "the id"}, **keys}, ["step", "output_model", "engine_name"])


def _function(kind: str) -> dict[str, Any]:
    return _object({kind: _CODE, **{key: _value(Step, key) for key in FUNCTION_KEYS}}, [kind])


def _route() -> dict[str, Any]:
    by_name = {"type": "object", "additionalProperties": _WAY}
    ways = {"cases": by_name, "then": _WAY, "default": _WAY}
    when = {"anyOf": [_TEXT, {"type": "object", "additionalProperties": _TEXT}]}
    return _object({"route": _TEXT, "on": _TEXT, "when": when, **ways, "join": _TEXT, "emoji": _TEXT}, ["route"])


def _loop() -> dict[str, Any]:
    ending = {key: _value(Loop, key) for key in ("max_rounds", "on_exhausted", "result")}
    conditions = {"until": _TEXT, "best": _TEXT}
    keys = {"loop": _TEXT, "steps": _STEPS, **conditions, **ending, "join": _TEXT, "emoji": _TEXT}
    return _object(keys, ["loop", "steps", "until", "max_rounds"])


def _value(owner: type, key: str) -> dict[str, Any]:
    """The schema of a parameter's value."""
    if key in MODELS:
        return _MODEL
    if key in PROMPTS:
        return {"anyOf": [_TEXT, _FILE]}
    if key == "sampling":
        return {"$ref": "#/$defs/sampling"}
    if key == "prompt_builder":
        return _CODE
    if key == "pick":
        return _TEXT
    return TypeAdapter(parameter_type(owner, key)).json_schema()


def _fields(kind: type[msgspec.Struct]) -> dict[str, Any]:
    """The schema of a struct's fields."""
    properties: dict[str, Any] = msgspec.json.schema(kind)["$defs"][kind.__name__]["properties"]
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _engine() -> dict[str, Any]:
    """An engine's settings; those of its backend are left to the loader."""
    properties = _fields(EngineConfig)["properties"]
    known = {key: value for key, value in properties.items() if key not in ("name", "options")}
    known |= {"endpoint": {"anyOf": [_TEXT, _list(_TEXT)]}, "exclusive": {"type": "boolean"}}
    return {"type": "object", "properties": known, "required": ["model"]}


def _json_schema() -> dict[str, Any]:
    return _object({JSON_SCHEMA: {"anyOf": [_FILE, {"type": "object"}]}}, [JSON_SCHEMA])


def _field() -> dict[str, Any]:
    kinds = {str: "string", int: "integer", float: "number"}
    limits = {key: {} if object in types else {"type": [kinds[each] for each in types]} for key, types in CONSTRAINTS.items()}
    values = _list({"type": ["string", "integer", "boolean", "null"]})
    kind = {"anyOf": [{**_TEXT, "description": "str, list[str], float | null, another model"}, values]}
    return {"anyOf": [*kind["anyOf"], _object({"type": kind, **limits}, ["type"])]}
