"""From records to rows: unknown columns, aliases, keys, and validators that raise."""

from __future__ import annotations

import datetime as dt

import pytest
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, field_validator

from chainette.io.inputs.locate import BadRecord, InputModel, Record


class Product(BaseModel):
    name: str
    price: float = 0.0
    tags: list[str] = []


def _json(line: str) -> Record:
    return Record(0, 1, line.encode())


def test_unknown_columns_follow_the_model_and_ignored_ones_are_remembered() -> None:
    rows = InputModel(Product)
    rows.validate(_json('{"name":"a","sku":1,"shop":2}'))
    rows.validate(Record(0, 1, {"name": "a", "colour": "red"}))
    assert rows.ignored == {"sku", "shop", "colour"}

    class Strict(Product):
        model_config = ConfigDict(extra="forbid")

    class Loose(Product):
        model_config = ConfigDict(extra="allow")

    with pytest.raises(BadRecord, match="sku: Extra inputs are not permitted, got 1"):
        InputModel(Strict).validate(_json('{"name":"a","sku":1}'))
    loose = InputModel(Loose)
    assert loose.validate(_json('{"name":"a","sku":1}'))[0] == b'{"name":"a","price":0.0,"tags":[],"sku":1}'
    assert not loose.ignored


def test_aliases_are_known_columns() -> None:
    class Named(BaseModel):
        one: str = Field(alias="Eins")
        two: str = Field(validation_alias=AliasChoices("Zwei", "Deux"), serialization_alias="Zwei")

    rows = InputModel(Named)
    assert rows.validate(_json('{"Eins":"a","Deux":"b"}'))[0] == b'{"Eins":"a","Zwei":"b"}'
    assert not rows.ignored


@pytest.mark.parametrize(
    ("record", "key"),
    [
        (_json('{"name":"a","sku":"x-1"}'), b'"x-1"'),
        (_json('{"name":"a","sku":{"n": 1}}'), b'{"n": 1}'),
        (_json('{"name":"a","sku":null}'), None),
        (_json('{"name":"a"}'), None),
        (Record(0, 1, {"name": "a", "sku": dt.date(2026, 1, 2)}), b'"2026-01-02"'),
        (Record(0, 1, {"name": "a"}), None),
    ],
)
def test_the_key_column_goes_along_as_json(record: Record, key: bytes | None) -> None:
    assert InputModel(Product, "sku").validate(record)[1] == key


def test_a_validator_that_raises_rejects_only_its_record() -> None:
    class Picky(BaseModel):
        name: str

        @field_validator("name")
        @classmethod
        def look_up(cls, name: str) -> str:
            return {"known": name}[name]

    with pytest.raises(BadRecord, match="a validator of Picky raised KeyError: 'x'"):
        InputModel(Picky).validate(_json('{"name":"x"}'))
