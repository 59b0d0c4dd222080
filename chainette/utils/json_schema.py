"""The JSON Schema of a pydantic model, and the instruction that makes a language model answer with such JSON."""

from __future__ import annotations

import json
from collections.abc import Hashable
from copy import deepcopy
from functools import lru_cache
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode

__all__ = ["generate_json_output_prompt", "json_schema_of"]

_INSTRUCTION = (
    "Answer with JSON that follows this JSON Schema, and with nothing else: no explanation, no Markdown.\nJSON Schema:\n"
)


class _WithoutFieldTitles(GenerateJsonSchema):
    """Leaves out titles that repeat the field's name: they cost tokens in every request."""

    def field_title_should_be_set(self, schema: object) -> bool:  # noqa: ARG002
        return False


def json_schema_of(model: type[BaseModel], mode: JsonSchemaMode = "validation") -> dict[str, Any]:
    """The result of `model_json_schema`, cached because a call takes a millisecond. The caller may change the copy."""
    return deepcopy(_schema(model, model.__pydantic_validator__, mode))


# the validator is part of the key because a model that is rebuilt gets another one


@lru_cache(maxsize=256)
def _schema(model: type[BaseModel], _validator: Hashable, mode: JsonSchemaMode) -> dict[str, Any]:
    return model.model_json_schema(mode=mode)


@lru_cache(maxsize=256)
def _instruction(model: type[BaseModel], _validator: Hashable) -> str:
    schema = model.model_json_schema(schema_generator=_WithoutFieldTitles)
    return _INSTRUCTION + json.dumps(schema, ensure_ascii=False, separators=(",", ":"))


def generate_json_output_prompt(model: type[BaseModel]) -> str:
    """The text appended to a system prompt so that the answer is an instance of `model`.

    The same model gives the same text in every process. Descriptions and titles that the user wrote are kept.
    """
    return _instruction(model, model.__pydantic_validator__)
