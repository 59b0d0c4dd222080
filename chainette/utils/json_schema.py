"""The instruction that makes a model answer with JSON of a pydantic model."""

from __future__ import annotations

import json

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema

__all__ = ["generate_json_output_prompt"]

_INSTRUCTION = (
    "Answer with JSON that follows this JSON Schema, and with nothing else: no explanation, no Markdown.\nJSON Schema:\n"
)


class _WithoutFieldTitles(GenerateJsonSchema):
    """Leaves out titles that repeat the field's name: they cost tokens in every request."""

    def field_title_should_be_set(self, schema: object) -> bool:  # noqa: ARG002
        return False


def generate_json_output_prompt(model: type[BaseModel]) -> str:
    """The text appended to a system prompt so that the answer is an instance of `model`.

    The same model gives the same text in every process. Descriptions and titles the user wrote stay in.
    """
    schema = model.model_json_schema(schema_generator=_WithoutFieldTitles)
    return _INSTRUCTION + json.dumps(schema, ensure_ascii=False, separators=(",", ":"))
