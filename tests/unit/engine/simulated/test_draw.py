"""A value drawn from a schema passes the model the schema came from."""

from __future__ import annotations

import re
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import StrEnum
from random import Random
from typing import Annotated, Any, Literal
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import AnyUrl, BaseModel, ConfigDict, Field, IPvAnyAddress, Json, RootModel

from chainette.engine.simulated.draw import compile_schema, draw
from chainette.engine.simulated.patterns import compile_pattern


class Color(StrEnum):
    RED = "red"
    BLUE = "blue"


class Product(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str = Field(min_length=3, max_length=12)
    color: Color
    kind: Literal["a", "b"]
    one: Literal[7]
    sku: str = Field(pattern=r"^[A-Z]{3}-\d{4}$")
    note: str | None = None


class Numbers(BaseModel):
    a: int = Field(ge=5, le=9)
    b: int = Field(gt=5, lt=7)
    c: int = Field(multiple_of=7, ge=10, le=30)
    d: float = Field(gt=0, lt=0.001)
    e: float = Field(ge=-3, le=-1)
    f: int = Field(le=-1000)
    g: Decimal = Field(ge=1, le=2)
    h: float = Field(multiple_of=0.5, ge=0, le=3)
    i: bool
    j: None


class Formats(BaseModel):
    day: date
    moment: datetime
    clock: time
    span: timedelta
    url: AnyUrl
    id: UUID
    address: IPvAnyAddress
    payload: Json[dict[str, int]]


class Containers(BaseModel):
    items: list[Product] = Field(min_length=1, max_length=3)
    tags: set[Color] = Field(min_length=2)
    pair: tuple[int, str]
    many: tuple[float, ...]
    scores: dict[str, float] = Field(min_length=2)
    by_code: dict[Annotated[str, Field(pattern="^[a-z]{2}$")], int]
    by_color: dict[Color, Product]
    anything: Any
    either: int | str | Product


class Cat(BaseModel):
    type: Literal["cat"]
    lives: int = Field(le=9)


class Dog(BaseModel):
    type: Literal["dog"]
    tricks: list[str]


class Pet(BaseModel):
    pet: Annotated[Cat | Dog, Field(discriminator="type")]
    aliased: int = Field(alias="aliasedName")


class Tree(BaseModel):
    value: int
    left: Tree | None
    children: list[Tree]
    by_name: dict[str, Tree]


class Number(BaseModel):
    value: float


class Sum(BaseModel):
    """Grows faster than it ends: only the bound on depth stops it."""

    left: Sum | Factors | Number
    right: Sum | Factors | Number


class Factors(BaseModel):
    factors: list[Sum | Factors | Number] = Field(min_length=3)


class Answers(RootModel[list[Annotated[str, Field(max_length=5)]]]):
    pass


MODELS = [Product, Numbers, Formats, Containers, Pet, Tree, Sum, Answers]


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
@given(seed=st.integers(0, 2**31 - 1))
@settings(max_examples=60, deadline=None)
def test_a_drawn_value_validates(model: type[BaseModel], seed: int) -> None:
    model.model_validate(draw(model.model_json_schema(), Random(seed)))


@given(low=st.integers(-(10**6), 10**6), width=st.integers(0, 10**6), seed=st.integers(0, 1000))
def test_an_integer_is_within_its_bounds(low: int, width: int, seed: int) -> None:
    drawn = draw({"type": "integer", "minimum": low, "maximum": low + width}, Random(seed))
    assert low <= drawn <= low + width


def test_the_same_seed_gives_the_same_value_and_other_seeds_others() -> None:
    schema = Containers.model_json_schema()
    compiled = compile_schema(schema)
    assert compiled(Random(5)) == compiled(Random(5)) == draw(schema, Random(5))
    assert len({str(compiled(Random(seed))) for seed in range(50)}) == 50


def test_values_vary_over_the_whole_range() -> None:
    compiled = compile_schema({"type": "integer", "minimum": 1, "maximum": 3})
    assert {compiled(Random(seed)) for seed in range(100)} == {1, 2, 3}


def test_all_of_merges_its_parts() -> None:
    schema = {
        "$defs": {"A": {"type": "object", "properties": {"x": {"const": 1}}, "required": ["x"]}},
        "allOf": [{"$ref": "#/$defs/A"}, {"properties": {"y": {"const": 2}}, "required": ["y"]}],
    }
    assert draw(schema, Random(0)) == {"x": 1, "y": 2}


def test_constraints_beside_a_reference_count() -> None:
    schema = {"$defs": {"N": {"type": "integer", "minimum": 0}}, "$ref": "#/$defs/N", "maximum": 0}
    assert {draw(schema, Random(seed)) for seed in range(20)} == {0}


def test_a_schema_without_a_finite_value_ends() -> None:
    schema = {
        "$defs": {"N": {"type": "object", "properties": {"n": {"$ref": "#/$defs/N"}}, "required": ["n"]}},
        "$ref": "#/$defs/N",
    }
    assert "None" in str(draw(schema, Random(0)))


def test_a_text_keeps_to_its_lengths() -> None:
    drawn = [draw({"type": "string", "minLength": 40, "maxLength": 42}, Random(seed)) for seed in range(30)]
    assert all(40 <= len(text) <= 42 and text == text.strip() for text in drawn)


def test_a_recursive_value_stays_small() -> None:
    compiled = compile_schema(Sum.model_json_schema())
    assert max(len(str(compiled(Random(seed)))) for seed in range(30)) < 100_000


@pytest.mark.parametrize(
    "pattern",
    [
        r"^\d{3}-\d{4}$",
        r"^[a-zA-Z_]\w*$",
        r"(foo|bar)+",
        r"^[^@\s]+@[^@\s]+\.[a-z]{2,}$",
        r"^#[0-9a-f]{6}$",
        r"^(?!0)\d+$",
        "a?b*c{2,3}.",
    ],
)
def test_a_drawn_text_matches_its_pattern(pattern: str) -> None:
    compiled = compile_pattern(pattern)
    texts = [compiled(Random(seed)) for seed in range(30)]
    assert all(text is not None and re.search(pattern, text) for text in texts)


def test_a_pattern_that_cannot_be_drawn_is_named_in_the_value() -> None:
    drawn = draw({"type": "string", "pattern": "(?=abc)xyz"}, Random(0))
    assert drawn == "<no text drawn for (?=abc)xyz>"


def test_a_pattern_keeps_to_the_lengths() -> None:
    schema = {"type": "string", "pattern": "^[a-z]+$", "minLength": 12, "maxLength": 14}
    assert all(12 <= len(draw(schema, Random(seed))) <= 14 for seed in range(30))
