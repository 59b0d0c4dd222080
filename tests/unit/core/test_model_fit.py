"""Whether a model's rows fit another model, and whether a model can carry rows."""

from __future__ import annotations

from datetime import datetime
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, NewType, TypeVar
from uuid import UUID

import pytest
from pydantic import (
    AliasChoices,
    AliasPath,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    RootModel,
    SecretStr,
    create_model,
    field_serializer,
    field_validator,
    model_serializer,
    model_validator,
)

from chainette.core.model_fit import misfits, model_problems, same_but_for_case

T = TypeVar("T")
Age = NewType("Age", int)


class Color(Enum):
    RED = "red"
    BLUE = "blue"


class Warm(Enum):
    RED = "red"


class Address(BaseModel):
    street: str
    zip: int | None = None


class Street(BaseModel):
    street: str


class Numbered(BaseModel):
    street: str
    number: int


class Tree(BaseModel):
    value: int
    children: list[Tree] = []


class OtherTree(BaseModel):
    value: int
    children: list[OtherTree] = []


class TextTree(BaseModel):
    value: int
    children: list[TextTree] = []
    label: str


class Names(RootModel[list[str]]):
    pass


def one(annotation: Any) -> type[BaseModel]:
    """A model with the one required field `x`."""
    model: type[BaseModel] = create_model("One", x=(annotation, ...))
    return model


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (int, int),
        (int, float),
        (bool, int),
        (int, int | None),
        (int, int | str),
        (Literal["a"], Literal["a", "b"]),
        (Literal["a"], str),
        (Literal[1], float),
        (Color, str),
        (Warm, Color),
        (Literal["red"], Color),
        (Warm, Literal["red", "blue"]),
        (Color, Color),
        (bool, Literal[True, False]),
        (list[int], list[float]),
        (list[int], set[int]),
        (tuple[int, str], tuple[int, str]),
        (tuple[int, ...], list[int]),
        (dict[str, int], dict[str, float]),
        (list[Address], list[Street]),
        (Address, Street),
        (Address | None, Street | None),
        (Tree, OtherTree),
        (Address, dict[str, Any]),
        (dict[str, Any], Address),
        (Any, int),
        (int, Any),
        (Age, int),
        (Annotated[int, Field(gt=0)], int),
        (datetime, str),
        (str, datetime),
        (UUID, str),
        (Path, str),
        (str, Annotated[int, BeforeValidator(len)]),
        (list[str], list[Annotated[int, BeforeValidator(len)]]),
        (Annotated[str, PlainSerializer(len)], int),
        (list[str], Names),
        (Names, list[str]),
    ],
)
def test_types_that_fit_have_no_misfit(given: Any, wanted: Any) -> None:
    assert misfits(one(given), one(wanted)) == []


@pytest.mark.parametrize(
    ("given", "wanted", "message"),
    [
        (str, int, "field 'x' is str, not int"),
        (int, str, "field 'x' is int, not str"),
        (float, int, "field 'x' is float, not int"),
        (int | None, int, "field 'x' may be None, not int"),
        (int | str, int, "field 'x' is int | str, not int"),
        (Literal["a", "c"], Literal["a", "b"], "field 'x' is Literal['a', 'c'], not Literal['a', 'b']"),
        (str, Literal["a"], "field 'x' is str, not Literal['a']"),
        (Color, Warm, "field 'x' is Color, not Warm"),
        (Color, int, "field 'x' is Color, not int"),
        (list[str], list[int], "field 'x[]' is str, not int"),
        (list[int | None], list[int], "field 'x[]' may be None, not int"),
        (list[str], str, "field 'x' is list[str], not str"),
        (str, list[str], "field 'x' is str, not list[str]"),
        (tuple[int, int], tuple[int, int, int], "field 'x' is tuple[int, int], not tuple[int, int, int]"),
        (dict[str, str], dict[str, int], "field 'x' is dict[str, str], not dict[str, int]"),
        (dict[str, str], list[str], "field 'x' is dict[str, str], not list[str]"),
        (Address, str, "field 'x' is Address, not str"),
        (str, Address, "field 'x' is str, not Address"),
        (Street, Numbered, "field 'x.number' is missing"),
        (list[Street], list[Numbered], "field 'x[].number' is missing"),
        (Tree, TextTree, "field 'x.label' is missing"),
    ],
)
def test_types_that_do_not_fit_are_named(given: Any, wanted: Any, message: str) -> None:
    assert misfits(one(given), one(wanted)) == [message]


def test_missing_and_wrong_fields_are_all_reported_and_extra_ones_are_fine() -> None:
    class Given(BaseModel):
        n: str
        extra: int

    class Wanted(BaseModel):
        text: str
        n: int
        note: str = ""

    assert misfits(Given, Wanted) == ["field 'text' is missing", "field 'n' is str, not int"]


def test_the_same_model_and_a_subclass_fit() -> None:
    class Longer(Street):
        town: str

    assert misfits(Street, Street) == []
    assert misfits(Longer, Street) == []
    assert misfits(Street, Longer) == ["field 'town' is missing"]


def test_extra_fields_do_not_fit_where_they_are_forbidden() -> None:
    class Strict(BaseModel):
        model_config = ConfigDict(extra="forbid")
        street: str

    assert misfits(Address, Strict) == ["field 'zip' is not expected, since Strict forbids extra fields"]
    assert misfits(Street, Strict) == []


def test_fields_are_matched_by_what_is_written_and_what_is_read() -> None:
    class Given(BaseModel):
        full_name: str = Field(alias="fullName")

    class ByAlias(BaseModel):
        name: str = Field(alias="fullName")

    class ByField(BaseModel):
        full_name: str

    class Either(BaseModel):
        name: str = Field(validation_alias=AliasChoices("n", "fullName"))

    class Inside(BaseModel):
        first: str = Field(validation_alias=AliasPath("fullName", 0))

    class Both(BaseModel):
        model_config = ConfigDict(populate_by_name=True)
        fullName: str = Field(alias="other")

    assert misfits(Given, ByAlias) == misfits(Given, Either) == misfits(Given, Inside) == misfits(Given, Both) == []
    assert misfits(Given, ByField) == ["field 'full_name' is missing"]


def test_a_model_that_carries_any_field_may_carry_the_missing_one() -> None:
    class Open(BaseModel):
        model_config = ConfigDict(extra="allow")

    assert misfits(Open, Street) == []


def test_code_between_the_models_counts_as_fitting() -> None:
    class Before(BaseModel):
        x: int

        @field_validator("x", mode="before")
        @classmethod
        def measure(cls, value: Any) -> Any:
            return len(value)

    class Reshaped(BaseModel):
        y: int

        @model_validator(mode="before")
        @classmethod
        def rename(cls, values: Any) -> Any:
            return {"y": values["x"]}

    class Written(BaseModel):
        x: str

        @field_serializer("x")
        def shorten(self, value: str) -> int:
            return len(value)

    class WrittenWhole(BaseModel):
        @model_serializer
        def whole(self) -> dict[str, int]:
            return {"x": 1}

    class After(BaseModel):
        x: int

        @field_validator("x")
        @classmethod
        def positive(cls, value: int) -> int:
            return abs(value)

    assert misfits(one(str), Before) == misfits(one(str), Reshaped) == []
    assert misfits(Written, one(int)) == misfits(WrittenWhole, one(int)) == []
    assert misfits(one(str), After) == ["field 'x' is str, not int"]


def test_what_is_no_model_fits_only_where_it_cannot_be_told() -> None:
    assert misfits(Any, Street) == misfits(None, Street) == misfits(Street | Address, Street) == []
    assert misfits(str, Street) == ["it is str, not Street"]
    assert misfits(Street | None, Street) == ["it may be None, not Street"]


def test_a_field_that_is_not_dumped_is_missing() -> None:
    class Given(BaseModel):
        x: int = Field(exclude=True)

    assert misfits(Given, one(int)) == ["field 'x' is missing"]


def test_generic_models_fit_by_their_fields() -> None:
    class Box(BaseModel, Generic[T]):
        x: T

    assert misfits(Box[int], one(int)) == []
    assert misfits(Box[str], one(int)) == ["field 'x' is str, not int"]


def test_a_plain_model_has_no_problem() -> None:
    for model in (Address, Tree, Names, one(dict[str, list[Address]])):
        assert model_problems(model) == []


def test_fields_that_do_not_survive_the_dump_are_named() -> None:
    class Lost(BaseModel):
        hidden: int = Field(0, exclude=True)
        key: SecretStr = SecretStr("")
        keys: list[SecretStr] = []
        renamed: str = Field("", validation_alias="other")
        mine: str = Field("", alias="_mine")

    both = (
        "field {0!r} is written as {0!r} but read as {1!r}; use one alias=... for both, "
        "or, if {1!r} is a column of the input, no alias and --columns {0}={1}"
    )
    assert model_problems(Lost) == [
        "field 'hidden' has exclude=True and would be lost between nodes; remove it",
        "field 'key' is a secret type, which is written as asterisks; use str",
        "field 'keys' is a secret type, which is written as asterisks; use str",
        both.format("renamed", "other"),
        "field 'mine' is written as '_mine'; names that start with '_' are Chainette's own columns, choose another alias",
    ]


def test_problems_inside_contained_models_are_found_with_their_path() -> None:
    class Inner(BaseModel):
        hidden: int = Field(0, exclude=True)

    class Outer(BaseModel):
        inner: dict[str, list[Inner] | None]

    assert model_problems(Outer) == ["field 'inner.hidden' has exclude=True and would be lost between nodes; remove it"]


def test_two_fields_under_one_key_are_a_problem() -> None:
    class Twice(BaseModel):
        a: int = Field(alias="k")
        b: int = Field(alias="k")

    assert model_problems(Twice) == ["fields 'a' and 'b' are both written as 'k'; give one another alias"]


def test_a_type_without_json_schema_is_a_problem_and_no_crash() -> None:
    class Custom:
        pass

    class Arbitrary(BaseModel):
        model_config = ConfigDict(arbitrary_types_allowed=True)
        custom: Custom

    (problem,) = model_problems(Arbitrary)
    assert problem.startswith("it has no JSON Schema: Cannot generate a JsonSchema")


def test_an_annotation_that_does_not_resolve_is_a_problem() -> None:
    fields: dict[str, Any] = {"x": ("NoSuchName", ...)}
    model: type[BaseModel] = create_model("Open", **fields)
    (problem,) = model_problems(model)
    assert problem.startswith("its annotations cannot be resolved: ")
    assert "NoSuchName" in problem


def test_columns_that_differ_in_case_only_are_found() -> None:
    class Cases(BaseModel):
        t: int
        T: str
        other: int = Field(alias="Row_ID")

    class Around(BaseModel):
        inner: list[Cases]

    assert same_but_for_case(Around) == [("inner.t", "inner.T")]
    assert same_but_for_case(Cases) == [("t", "T"), ("row_id", "Row_ID")]
    assert same_but_for_case(Address) == []
