"""OpenAI's strict dialect: the parts of a pydantic schema that stay, that go, that cannot be expressed."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, RootModel

from chainette.engine.http.strict_dialect import strict_subset


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int = Field(9, ge=1, le=9)


class Dog(BaseModel):
    kind: Literal["dog"]
    name: str = Field(min_length=1, pattern="^[A-Z]", description="as called")


class Owner(BaseModel):
    pet: Annotated[Cat | Dog, Field(discriminator="kind")]
    tags: list[str] = Field([], max_length=3)
    age: int | None = None


class Tree(BaseModel):
    label: str
    children: list[Tree] = []


def _objects(schema: Any) -> list[dict[str, Any]]:
    if isinstance(schema, list):
        return [found for each in schema for found in _objects(each)]
    if not isinstance(schema, dict):
        return []
    own = [schema] if schema.get("type") == "object" else []
    return own + [found for each in schema.values() for found in _objects(each)]


def test_every_object_is_closed_with_all_properties_required() -> None:
    strict = strict_subset(Owner.model_json_schema())
    assert strict.schema is not None
    objects = _objects(strict.schema)
    assert len(objects) == 3
    for each in objects:
        assert each["required"] == list(each["properties"])
        assert each["additionalProperties"] is False


def test_unsupported_keywords_go_and_are_named() -> None:
    strict = strict_subset(Owner.model_json_schema())
    assert strict.dropped == ("default", "maxItems", "maximum", "minLength", "minimum", "pattern")
    assert strict.schema is not None
    assert strict.schema["$defs"]["Dog"]["properties"]["name"] == {
        "type": "string",
        "description": "as called",
        "title": "Name",
    }


def test_one_of_becomes_any_of_and_const_an_enum() -> None:
    schema = strict_subset(Owner.model_json_schema()).schema
    assert schema is not None
    assert schema["properties"]["pet"]["anyOf"] == [{"$ref": "#/$defs/Cat"}, {"$ref": "#/$defs/Dog"}]
    assert schema["$defs"]["Cat"]["properties"]["kind"]["enum"] == ["cat"]


def test_a_recursive_model_keeps_its_references_and_gets_an_object_at_the_root() -> None:
    schema = strict_subset(Tree.model_json_schema()).schema
    assert schema is not None
    assert schema["type"] == "object"
    assert schema["properties"]["children"]["items"] == {"$ref": "#/$defs/Tree"}
    assert schema["$defs"]["Tree"]["additionalProperties"] is False


def test_a_described_reference_has_no_neighbours() -> None:
    class Described(BaseModel):
        pet: Cat = Field(description="the pet")

    schema = strict_subset(Described.model_json_schema()).schema
    assert schema is not None
    assert schema["properties"]["pet"] == {"anyOf": [{"$ref": "#/$defs/Cat"}], "description": "the pet"}


def test_a_field_named_like_a_keyword_is_a_field() -> None:
    class Odd(BaseModel):
        pattern: str
        default: int

    strict = strict_subset(Odd.model_json_schema())
    assert strict.schema is not None
    assert strict.schema["required"] == ["pattern", "default"]
    assert strict.dropped == ()


def test_a_model_without_fields_is_an_empty_closed_object() -> None:
    class Empty(BaseModel):
        model_config = ConfigDict(extra="forbid")

    assert strict_subset(Empty.model_json_schema()).schema == {
        "title": "Empty",
        "type": "object",
        "properties": {},
        "required": [],
        "additionalProperties": False,
    }


def test_what_the_dialect_cannot_say_gives_no_schema_and_the_reason() -> None:
    class Free(BaseModel):
        counts: dict[str, int]
        anything: Any

    strict = strict_subset(Free.model_json_schema())
    assert strict.schema is None
    assert strict.reason == "a mapping with free keys, a value of any type"
    assert strict_subset(RootModel[list[int]].model_json_schema()).reason == "an answer that is not an object"


def test_a_tuple_becomes_a_list_of_its_types() -> None:
    class Pair(BaseModel):
        pair: tuple[int, str]

    strict = strict_subset(Pair.model_json_schema())
    assert strict.schema is not None
    assert strict.schema["properties"]["pair"]["items"] == {"anyOf": [{"type": "integer"}, {"type": "string"}]}
    assert "prefixItems" in strict.dropped
