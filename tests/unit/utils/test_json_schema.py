"""The instruction that asks for JSON."""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel, Field

from chainette.utils.json_schema import generate_json_output_prompt


class Inner(BaseModel):
    """An inner thing."""

    title: str


class Outer(BaseModel):
    full_name: str = Field(alias="fullName", description="First and last, é")
    inner: Inner
    score: int = Field(title="From 1 to 5", ge=1, le=5)


def schema_in(prompt: str) -> dict[str, Any]:
    schema: dict[str, Any] = json.loads(prompt.partition("JSON Schema:\n")[2])
    return schema


def test_the_prompt_holds_the_schema_by_alias_with_the_users_own_words() -> None:
    schema = schema_in(generate_json_output_prompt(Outer))
    assert set(schema["properties"]) == {"fullName", "inner", "score"}
    assert schema["properties"]["fullName"]["description"] == "First and last, é"
    assert schema["properties"]["score"] == {"title": "From 1 to 5", "type": "integer", "minimum": 1, "maximum": 5}
    assert schema["$defs"]["Inner"]["description"] == "An inner thing."


def test_titles_that_repeat_the_field_are_left_out_but_a_field_called_title_stays() -> None:
    schema = schema_in(generate_json_output_prompt(Outer))
    assert "title" not in schema["properties"]["fullName"]
    assert schema["$defs"]["Inner"]["properties"] == {"title": {"type": "string"}}


def test_the_prompt_says_json_and_nothing_else_and_is_the_same_every_time() -> None:
    prompt = generate_json_output_prompt(Outer)
    assert prompt.startswith("Answer with JSON")
    assert "nothing else" in prompt
    assert prompt == generate_json_output_prompt(Outer)
    assert "é" in prompt
