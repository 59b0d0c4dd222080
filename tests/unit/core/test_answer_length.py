"""The longest answer that fits an output model."""

from __future__ import annotations

import json
from datetime import date
from enum import Enum
from typing import Literal

import pytest
from pydantic import BaseModel, Field, create_model

from chainette.core.answer_length import longest_answer


class Mood(Enum):
    HAPPY = "happy"
    SAD = "sad"


class Part(BaseModel):
    name: str = Field(max_length=12)


class Answer(BaseModel):
    text: str = Field(max_length=30)
    mood: Mood
    kind: Literal["a", "bbb"]
    sure: bool | None
    when: date
    parts: list[Part] = Field(max_length=3)


class Tree(BaseModel):
    children: list[Tree] = Field(max_length=2)


def test_an_answer_of_the_largest_values_has_nearly_the_longest_length() -> None:
    parts = [Part(name="n" * 12)] * 3
    answer = Answer(text="t" * 30, mood=Mood.HAPPY, kind="bbb", sure=False, when=date(2026, 1, 1), parts=parts)
    length = len(json.dumps(answer.model_dump(mode="json")))
    found = longest_answer(Answer.model_json_schema())
    assert found is not None and length <= found <= length + 20


@pytest.mark.parametrize("field", [str, list[Part], dict[str, int], Tree, object])
def test_a_value_without_a_limit_gives_none(field: type) -> None:
    model = create_model("Open", first=(bool, ...), value=(field, ...))
    assert longest_answer(model.model_json_schema()) is None
