"""Rows come back equal from shards in every format, whatever their model dumps; other models are refused before the run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, RootModel, field_serializer, model_serializer
from pydantic import SerializerFunctionWrapHandler as Handler

from chainette import Chain, apply
from chainette.core.run_settings import Format
from chainette.errors import PlanError
from chainette.io.rundir.result import RunResult

FORMATS = pytest.mark.parametrize("format", ["jsonl", "parquet", "csv"])
INFINITY, NAN = float("inf"), float("nan")


class Index(BaseModel):
    at: int


def run(values: Sequence[BaseModel], folder: Path, format: Format) -> RunResult:
    """A run that gives `values[n]` for row n."""

    def give(item: Index) -> Any:
        return values[item.at]

    give.__annotations__ = {"item": Index, "return": type(values[0])}
    return Chain(name="values", steps=[apply(give)]).run([Index(at=at) for at in range(len(values))], folder, format=format)


class Texts(BaseModel):
    model_config = ConfigDict(ser_json_inf_nan="strings")
    score: float | None
    scores: list[float] = []


class Inside(BaseModel):
    inner: Texts
    plain: float


class Wrapped(BaseModel):
    value: int

    @model_serializer(mode="wrap")
    def write(self, handler: Handler) -> Any:
        return handler(self)


class Plain(BaseModel):
    value: int
    other: str = "x"

    @model_serializer(mode="plain")
    def write(self) -> dict[str, Any]:
        return {"value": self.value} | ({} if self.other == "x" else {"other": self.other})


class Nested(BaseModel):
    one: Wrapped
    many: list[Plain]


class Cat(BaseModel):
    kind: Literal["cat"] = "cat"
    lives: int


class Dog(BaseModel):
    kind: Literal["dog"] = "dog"
    born: str


class Pet(RootModel[Annotated[Cat | Dog, Field(discriminator="kind")]]):
    pass


class Dict(RootModel[dict[str, Any]]):
    pass


class Renamed(RootModel[Cat]):
    pass


class Short(BaseModel):
    size: int = Field(1, exclude_if=lambda size: size == 1)
    name: str


class Written(BaseModel):
    text: int
    free: int

    @field_serializer("text")
    def write_text(self, value: int) -> str:
        return str(value)

    @field_serializer("free")
    def write_free(self, value: int) -> Any:
        return value


DUMPED: dict[str, Sequence[BaseModel]] = {
    "infinities as text": [Texts(score=1), Texts(score=None, scores=[-INFINITY, 2]), Texts(score=INFINITY), Texts(score=NAN)],
    "infinities inside": [Inside(inner=Texts(score=INFINITY), plain=1), Inside(inner=Texts(score=1), plain=2)],
    "a model serializer": [Wrapped(value=1), Wrapped(value=2)],
    "a model serializer that leaves fields out": [Plain(value=1), Plain(value=2, other="y")],
    "model serializers inside": [Nested(one=Wrapped(value=1), many=[]), Nested(one=Wrapped(value=2), many=[Plain(value=1)])],
    "a root of models": [Pet(Cat(lives=9)), Pet(Dog(born="2024-01-09"))],
    "a root of a dict": [Dict({"a": [1]}), Dict({}), Dict({"b": {"c": None}})],
    "a root of a model": [Renamed(Cat(lives=9)), Renamed(Cat(lives=7))],
    "fields that are left out": [Short(name="a"), Short(name="b", size=2)],
    "field serializers": [Written(text=7, free=1), Written(text=8, free=2)],
}


@FORMATS
@pytest.mark.parametrize("name", DUMPED)
def test_what_serializers_write_comes_back_equal_in_every_format(tmp_path: Path, name: str, format: Format) -> None:
    result = run(DUMPED[name], tmp_path / "run", format)
    dumps = [json.loads(value.model_dump_json(by_alias=True, round_trip=True)) for value in DUMPED[name]]
    assert list(result.rows("give")) == [{"row_id": str(at)} | dump for at, dump in enumerate(dumps)]
    spread = [{key.removeprefix("give."): value for key, value in row.items()} for row in result.rows("flattened")]
    kept = [row.get("give") or {key: row[key] for key in dump} for row, dump in zip(spread, dumps, strict=True)]
    assert kept == dumps


def of_any_model(item):  # type: ignore[no-untyped-def]
    return [Cat(lives=item.at), Dog(born="2024-01-09")]


@FORMATS
def test_rows_of_a_function_without_annotations_come_back_equal(tmp_path: Path, format: Format) -> None:
    chain = Chain(name="any", steps=[apply(of_any_model, input_model=Index)])
    result = chain.run([Index(at=9)], tmp_path / "run", format=format)
    cat, dog = {"kind": "cat", "lives": 9}, {"kind": "dog", "born": "2024-01-09"}
    assert list(result.rows("of_any_model")) == [{"row_id": "0~0"} | cat, {"row_id": "0~1"} | dog]
    assert [row["of_any_model"] for row in result.rows("flattened")] == [cat, dog]


class Constants(BaseModel):
    model_config = ConfigDict(ser_json_inf_nan="constants")
    score: float


class HasConstants(BaseModel):
    inner: list[Constants]


@pytest.mark.parametrize("value", [Constants(score=1), HasConstants(inner=[])])
def test_infinities_that_are_no_json_are_refused_before_the_run(tmp_path: Path, value: BaseModel) -> None:
    with pytest.raises(PlanError, match=r"Infinity and NaN, which are not JSON.*set ser_json_inf_nan='strings'"):
        run([value], tmp_path / "run", "jsonl")
    assert not (tmp_path / "run").exists()


class AsText(BaseModel):
    value: int

    @model_serializer
    def write(self) -> str:
        return str(self.value)


def test_a_model_that_is_written_as_text_is_refused_before_the_run(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"AsText is a JSON string, and a row is an object"):
        run([AsText(value=1)], tmp_path / "run", "jsonl")


class Lies(BaseModel):
    count: Annotated[int, PlainSerializer(str, return_type=int)]


def lie(item: Index) -> Lies:
    return Lies(count=item.at)


@FORMATS
def test_a_serializer_that_gives_another_type_than_it_says_costs_its_row_only(tmp_path: Path, format: Format) -> None:
    result = Chain(name="lies", steps=[apply(lie)]).run([Index(at=1)], tmp_path / "run", format=format)
    [rejected] = result.rows("rejected")
    assert rejected["reason"] == "apply_error"
    assert "Lies cannot be dumped as JSON" in rejected["message"] and "Expected `int`" in rejected["message"]


@pytest.mark.parametrize("value", [INFINITY, -INFINITY, NAN])
def test_an_infinity_that_a_model_would_write_as_null_rejects_its_row(tmp_path: Path, value: float) -> None:
    class Null(BaseModel):
        score: float | None

    result = run([Null(score=1), Null(score=value)], tmp_path / "run", "jsonl")
    assert [row["row_id"] for row in result.rows("give")] == ["0"]
    assert ["comes back from JSON as None" in row["message"] for row in result.rows("rejected")] == [True]
