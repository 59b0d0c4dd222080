"""Models out of the short notation and out of JSON Schema."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any, Literal, Optional

import pytest
from pydantic import BaseModel, Field, ValidationError

from chainette.core.document.models import Models
from chainette.core.document.yaml_parts import Part, parts_of
from chainette.core.model_fit import misfits, model_problems
from chainette.core.usercode.fingerprint import fingerprint_model
from chainette.errors import LoadError


def nothing(part: Part) -> Any:
    raise part.fault("no code and no files here")


def models(text: str) -> Any:
    return Models(parts_of(Path("chain.yml"), text.encode()).value, nothing, nothing).made()


def fault(text: str) -> str:
    with pytest.raises(LoadError) as caught:
        models(text)
    return str(caught.value)


def annotation(text: str) -> Any:
    model = models(f"M:\n  f: {text}\nOther:\n  n: int")["M"]
    return model.model_fields["f"].annotation


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("str", str),
        ("float | null", Optional[float]),  # noqa: UP045  (what pydantic keeps)
        ("list[str]", list[str]),
        ("dict[str, list[int]]", dict[str, list[int]]),
        ("[good, bad]", Literal["good", "bad"]),
        ("[on, no, 1, null]", Literal["on", "no", 1, None]),
        ('\'list["a" | "b b"]\'', list[Literal["a", "b b"]]),
        ("date", datetime.date),
        ("any", Any),
        ("list", list[Any]),
    ],
)
def test_a_type_in_the_short_notation(text: str, kind: Any) -> None:
    assert annotation(text) == kind


def test_models_refer_to_one_another_in_any_order_and_in_circles() -> None:
    made = models("A:\n  b: B\nB:\n  parts: list[A]\n  c: C | null\nC:\n  n: int\nTree:\n  kids: list[Tree]")
    found = made["A"].model_validate({"b": {"parts": [{"b": {"parts": [], "c": {"n": 1}}}], "c": None}})
    assert type(found.b.parts[0].b.c) is made["C"]
    assert made["Tree"].model_validate({"kids": [{"kids": []}]}).kids[0].kids == []
    assert not any(model_problems(model) for model in made.values())


def test_a_field_may_have_constraints_a_default_and_a_description() -> None:
    made = models(
        "M:\n  stars: {type: int, ge: 1, le: 5, default: 3, description: how good}\n  name: {type: str, pattern: '^a'}"
    )["M"]

    class M(BaseModel):
        stars: int = Field(3, ge=1, le=5, description="how good")
        name: str = Field(pattern="^a")

    assert made.model_json_schema() == M.model_json_schema()
    with pytest.raises(ValidationError):
        made.model_validate({"stars": 6, "name": "a"})
    assert misfits(made, M) == misfits(M, made) == []


def test_equal_models_have_equal_fingerprints_and_a_changed_one_has_another() -> None:
    first, same, other = (models(f"M:\n  n: {{type: int, ge: {least}}}")["M"] for least in (1, 1, 2))
    assert fingerprint_model(first) == fingerprint_model(same) != fingerprint_model(other)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("M:\n  f: strr", "chain.yml:2: M.f: there is no type or model 'strr'; did you mean 'str'?, in the type 'strr'"),
        ("M:\n  f: list[str", "chain.yml:2: M.f: expected ']', found the end"),
        ("M:\n  f: str int", "expected '|' or the end, found 'int'"),
        ("M:\n  f: set[str]", "'set' takes no brackets"),
        ("M:\n  f: dict[int, str]", "the keys of a dict are str"),
        ("M:\n  f: '|'", "expected a type, found '|'"),
        ("M:\n  f: ''", "a type is missing"),
        ("M:\n  f: os.system", "cannot read '.system'"),
        ("M:\n  f: __import__", "there is no type or model '__import__'"),
        ("M:\n  f:", "M.f has no type"),
        ("M:\n  f: 3", "M.f is text, found 3"),
        ("M:\n  f: [1.5]", "a value is text, a whole number, true, false or null, found 1.5"),
        ("M:\n  f: {type: int, max: 3}", "M.f has no key 'max'"),
        ("M:\n  f: {ge: 3}", "M.f needs the key 'type'"),
        ("M:\n  f: {type: str, ge: 3}", "chain.yml:2: M.f: ge says nothing about 'str'"),
        ("M:\n  f: {type: int, ge: yes}", "M.f: ge is int or float, found 'yes'"),
        ("M:\n  f: {type: str, pattern: '('}", "chain.yml:2: model 'M': field 'f': regex parse error: unclosed group"),
        ("M:\n  f: {type: str, max_length: -1}", "model 'M': field 'f': OverflowError: can't convert negative int"),
        ("M:\n  f: {type: int, default: many}", "chain.yml:2: M.f: the default 'many' does not fit"),
        ("M:\n  copy: str", "the field 'copy' has the name of a method of pydantic"),
        ("M:\n  _f: str", "M: a field cannot be called '_f'"),
        ("M:\n  a-b: str", "M: a field cannot be called 'a-b'"),
        ("a b:\n  f: str", "a model cannot be called 'a b'"),
        ("M: {}", "model 'M' has no fields"),
        ("M: [a]", "model 'M' (fields by name, json_schema: ..., or module:Class) is a mapping"),
        ("M:\n  f: " + "list[" * 30 + "str" + "]" * 30, "too many brackets"),
    ],
)
def test_a_model_that_cannot_be_read_is_refused_at_its_line(text: str, said: str) -> None:
    assert said in fault(text)


SCHEMA = """
M:
  json_schema:
    $schema: https://json-schema.org/draft/2020-12/schema
    description: A product.
    type: object
    additionalProperties: false
    required: [name, size]
    properties:
      name: {type: string, minLength: 1, description: its name}
      size: {enum: [S, M]}
      price: {type: number, minimum: 0}
      stock: {type: [integer, 'null'], default: null}
      day: {type: string, format: date}
      tags: {type: array, items: {type: string}, maxItems: 3}
      maker: {type: object, properties: {name: {type: string}}, required: [name]}
      parts: {type: array, items: {$ref: '#'}}
      tree: {anyOf: [{$ref: '#/$defs/Tree'}, {type: 'null'}]}
      counts: {type: object, additionalProperties: {type: integer}}
    $defs:
      Tree: {type: object, properties: {kids: {type: array, items: {$ref: '#/$defs/Tree'}}}, required: [kids]}
"""


def test_a_json_schema_becomes_a_model() -> None:
    model = models(SCHEMA)["M"]
    full = {"name": "a", "size": "S", "price": 1.5, "stock": 2, "day": "2026-11-29", "tags": ["x"], "maker": {"name": "b"}}
    full |= {"parts": [{"name": "c", "size": "M"}], "tree": {"kids": [{"kids": []}]}, "counts": {"a": 1}}
    found = model.model_validate(full)
    assert found.day == datetime.date(2026, 11, 29) and found.parts[0].size == "M" and found.tree.kids[0].kids == []
    assert model.model_validate({"name": "a", "size": "S"}).price is None
    for wrong in ({"name": ""}, {"size": "L"}, {"price": -1}, {"tags": ["a"] * 4}, {"other": 1}, {"counts": {"a": "b"}}):
        with pytest.raises(ValidationError):
            model.model_validate(full | wrong)
    assert model_problems(model) == [] and model.__doc__ == "A product."


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ("{type: object, properties: {a: {not: {}}}}", "M_a: the keyword 'not' is not understood here"),
        ("{type: object, properties: {a: {type: string, format: email}}}", "the format 'email' is not checked here"),
        ("{type: object, properties: {a: {type: text}}}", "type 'text' is not known"),
        ("{type: object, properties: {a: {$ref: 'http://x/y'}}}", "is not followed; only '#/$defs/NAME' is"),
        ("{type: object, properties: {a: {$ref: '#/$defs/X'}}}", "leads nowhere"),
        ("{type: object, properties: {a: {$ref: '#/$defs/X'}}, $defs: {X: {$ref: '#/$defs/X'}}}", "chain.yml:2"),
        ("{type: object, properties: {a: {type: integer, minimum: x}}}", "minimum is 'x', which is not a limit"),
        ("{type: object, properties: {a: {type: integer}}, required: [b]}", "'b' is required, but not among the properties"),
        ("{type: string}", "the schema must be of an object with properties"),
        ("{type: object, properties: {a-b: {type: integer}}}", "a field cannot be called 'a-b'"),
    ],
)
def test_a_schema_that_would_be_understood_by_half_is_refused(schema: str, said: str) -> None:
    assert said in fault(f"M:\n  json_schema: {schema}")
