"""The dump of a value gives the value back, or is refused."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field, PrivateAttr, SecretStr, ValidationError, field_serializer, field_validator

from chainette.core.dump import NotRoundTrip, dump_model, explain


class Inner(BaseModel):
    labels: set[str] = set()


class Wider(Inner):
    more: int = 1


class Thing(BaseModel):
    name: str = Field("a", alias="nom")
    price: float = 0
    note: float | None = None
    inner: Inner = Inner()
    many: list[Inner] = []
    by_name: dict[str, float | None] = {}
    count: int = 0
    secret: SecretStr | None = None
    amount: Decimal = Decimal("1.10")
    at: datetime = datetime(2026, 1, 1, tzinfo=UTC)
    _cache: object = PrivateAttr(default_factory=object)


def _thing(**values: Any) -> Thing:
    return Thing.model_construct(**{"name": "a", **values})


def test_a_dump_is_the_json_dump_by_alias() -> None:
    thing = Thing(nom="é")
    assert dump_model(thing) == thing.model_dump_json(by_alias=True, round_trip=True).encode()
    assert dump_model(thing).startswith('{"nom":"é","price":0.0,'.encode())


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"note": float("nan")}, "Thing.note: nan"),
        ({"by_name": {"x": float("inf")}}, "Thing.by_name.x: inf"),
        ({"price": float("inf")}, "price: Input should be a valid number"),
        ({"inner": Wider()}, "Thing.inner: Wider"),
        ({"many": [Inner(), Wider()]}, "Thing.many.1: Wider"),
        ({"secret": SecretStr("key")}, "Thing.secret"),
        ({"count": 2**63}, "does not fit 64 bits"),
        ({"name": "\ud800"}, "cannot be dumped"),
        ({"name": 3}, "nom: Input should be a valid string, got 3"),
    ],
)
def test_what_json_does_not_give_back_is_refused_and_named(values: dict[str, Any], named: str) -> None:
    with pytest.raises(NotRoundTrip) as refused:
        dump_model(_thing(**values))
    assert named in str(refused.value)


@pytest.mark.parametrize(
    "values",
    [
        {"price": 0},
        {"count": -(2**63)},
        {"count": 2**63 - 1},
        {"name": "9" * 40},
        {"inner": Inner(labels={str(number) for number in range(100)})},
        {"amount": Decimal("1E+30")},
    ],
)
def test_what_json_gives_back_passes(values: dict[str, Any]) -> None:
    assert Thing.model_validate_json(dump_model(_thing(**values))).model_dump(include=set(values)) == values | {
        key: value.model_dump() for key, value in values.items() if isinstance(value, BaseModel)
    }


class Shouting(BaseModel):
    text: str

    @field_serializer("text")
    def shout(self, text: str) -> str:
        return text + "!"


class Crashing(BaseModel):
    text: str

    @field_validator("text")
    @classmethod
    def crash(cls, text: str) -> str:
        return {"fine": text}[text]


@pytest.mark.parametrize("make", [lambda: Shouting(text="a"), lambda: Crashing.model_construct(text="b")])
def test_a_models_own_code_cannot_slip_a_change_or_an_exception_through(make: Callable[[], BaseModel]) -> None:
    with pytest.raises(NotRoundTrip):
        dump_model(make())


@settings(deadline=None)
@given(
    st.builds(
        Thing, nom=st.text(), note=st.none() | st.floats(), count=st.integers(), by_name=st.dictionaries(st.text(), st.floats())
    )
)
def test_every_dump_that_passes_validates_back_to_the_same_value(thing: Thing) -> None:
    try:
        dump = dump_model(thing)
    except NotRoundTrip:
        assert "nan" in repr(thing) or "inf" in repr(thing) or not -(2**63) <= thing.count < 2**63
    else:
        assert Thing.model_validate_json(dump).model_dump() == thing.model_dump()


def test_explain_names_three_fields_and_counts_the_rest() -> None:
    with pytest.raises(ValidationError) as found:
        Thing.model_validate({"price": "abc", "count": "z" * 500, "many": 1, "note": [], "inner": {"labels": 3}})
    text = explain(found.value)
    assert text.startswith("price: Input should be a valid number")
    assert "got 'abc'; " in text
    assert text.endswith("; and 2 more")
    assert "z" * 100 not in text
