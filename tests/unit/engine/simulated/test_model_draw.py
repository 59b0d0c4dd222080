"""A simulated engine draws answers the user's model accepts, whatever pydantic's types are in it."""

from __future__ import annotations

import collections
import enum
import fractions
import ipaddress
import pathlib
import re
import uuid
import zoneinfo
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from random import Random
from typing import Annotated, Any, Literal, NamedTuple, NotRequired

import pydantic
import pydantic.networks
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import AfterValidator, BaseModel, Discriminator, Field, Json, StringConstraints, Tag, create_model
from typing_extensions import TypedDict

from chainette.engine.simulated.model_draw import compile_model
from chainette.errors import Undrawable


class Size(enum.IntEnum):
    SMALL = 1
    LARGE = 2


class Mixed(enum.Enum):
    TEXT = "text"
    NUMBER = 3


class Keys(TypedDict):
    a: int
    b: NotRequired[str]


class Pair(NamedTuple):
    a: int
    b: str


class Node(BaseModel):
    value: int
    children: list[Node]
    parent: Node | None = None


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int


class Dog(BaseModel):
    kind: Literal["dog"]
    name: str


def _kind(value: Any) -> Any:
    return value.get("kind") if isinstance(value, dict) else value.kind


def _even(value: int) -> int:
    if value % 2:
        raise ValueError("odd")
    return value


def text(pattern: str, **bounds: Any) -> Any:
    return Annotated[str, Field(pattern=pattern, **bounds)]


def keyed(key: Any, least: int = 1) -> Any:
    return Annotated[dict[key, int], Field(min_length=least)]


TYPES: Mapping[str, Any] = {
    # dates and times
    **{name: getattr(pydantic, name) for name in ("FutureDate", "PastDate", "FutureDatetime", "PastDatetime")},
    **{name: getattr(pydantic, name) for name in ("NaiveDatetime", "AwareDatetime")},
    "date": date,
    "datetime": datetime,
    "time": time,
    "timedelta": timedelta,
    "date between": Annotated[date, Field(ge=date(2030, 1, 1), lt=date(2030, 1, 3))],
    "datetime before": Annotated[datetime, Field(lt=datetime(1999, 1, 1))],
    "aware datetime after": Annotated[datetime, Field(gt=datetime(2050, 1, 1, tzinfo=UTC))],
    "future before": Annotated[pydantic.FutureDate, Field(lt=date(2110, 1, 1))],
    "time between": Annotated[time, Field(gt=time(12), lt=time(13))],
    "timedelta between": Annotated[timedelta, Field(ge=timedelta(days=2), le=timedelta(days=3))],
    "negative timedelta": Annotated[timedelta, Field(lt=timedelta(0))],
    # bytes
    **{name: getattr(pydantic, name) for name in ("Base64Bytes", "Base64Str", "Base64UrlBytes", "Base64UrlStr")},
    "bytes": bytes,
    "bounded bytes": Annotated[bytes, Field(min_length=3, max_length=5)],
    # mappings
    "int keys": keyed(int, 2),
    "positive int keys": keyed(pydantic.PositiveInt, 2),
    "float keys": keyed(float, 2),
    "bool keys": keyed(bool),
    "date keys": keyed(date),
    "UUID keys": keyed(uuid.UUID),
    "Decimal keys": keyed(Decimal),
    "IntEnum keys": keyed(Size),
    "Enum keys": keyed(Mixed),
    "Literal keys": keyed(Literal["a", "b"], 2),
    "pattern keys": keyed(text("^[a-z]+$"), 2),
    "defaultdict": collections.defaultdict[str, int],
    "Counter": collections.Counter[str],
    "OrderedDict": collections.OrderedDict[str, int],
    "Mapping": Mapping[str, int],
    # patterns
    "letters": text(r"^\p{L}+$"),
    "a name": text(r"^\p{Lu}\p{Ll}{2,5}$"),
    "letters and numbers": text(r"^[\p{L}\p{N}_-]{3,8}$"),
    "a class of one letter": text(r"^\pN+$"),
    "no letters": text(r"^\P{L}+$"),
    "a negated class of letters": text(r"^[^\p{L}]+$"),
    "Greek": text(r"^\p{Greek}+$"),
    "Han": text(r"^\p{Han}{2}$"),
    "Cyrillic": text(r"^\p{Script=Cyrillic}+$"),
    "emoji": text(r"^\p{Emoji}$"),
    "POSIX classes": text(r"^[[:alpha:]]{3}[[:digit:]]$"),
    "Rust's end of text": text(r"\Aab+\z"),
    "code points": text(r"^\x{41}+\u{1F600}$"),
    "named groups": text(r"^(?<y>\d{4})-(?P<m>\d\d)$"),
    "no anchors": text(r"[A-Z]{2}", min_length=10, max_length=12),
    "a long repetition": text(r"^[a-z]{0,200}$", min_length=100),
    "changed case": Annotated[str, StringConstraints(to_upper=True, pattern="^[A-Z]+$")],
    "stripped": Annotated[str, StringConstraints(to_lower=True, strip_whitespace=True, min_length=4, max_length=6)],
    # numbers
    "Decimal": Decimal,
    "digits and places": Annotated[Decimal, Field(max_digits=5, decimal_places=2)],
    "places": Annotated[Decimal, Field(decimal_places=3)],
    "digits": Annotated[Decimal, Field(max_digits=4)],
    "digits between": Annotated[Decimal, Field(max_digits=4, decimal_places=2, ge=Decimal("0.5"), lt=Decimal(2))],
    "negative digits": Annotated[Decimal, Field(lt=Decimal(0), decimal_places=2, max_digits=6)],
    "Decimal steps": Annotated[Decimal, Field(multiple_of=0.25, ge=0, le=5)],
    "int steps": Annotated[int, Field(multiple_of=7, gt=100)],
    "negative int steps": Annotated[int, Field(multiple_of=5, lt=-3)],
    "float steps": Annotated[float, Field(multiple_of=0.1, ge=0, le=1)],
    "nanoseconds": Annotated[int, Field(ge=1_700_000_000_000_000_000)],
    "odd integers beyond a float": Annotated[int, Field(ge=2**53 + 1, le=2**53 + 1)],
    "a tiny interval": Annotated[float, Field(gt=0, lt=1e-9)],
    "NegativeFloat": pydantic.NegativeFloat,
    "complex": complex,
    "Fraction": fractions.Fraction,
    "ByteSize": pydantic.ByteSize,
    # formats
    **{name: getattr(pydantic, name) for name in ("UUID1", "UUID3", "UUID4", "UUID5", "UUID6", "UUID7", "UUID8")},
    **{name: getattr(ipaddress, f"IPv{name}") for name in ("4Address", "6Address", "4Network", "6Network", "4Interface")},
    **{
        name: getattr(pydantic, name) for name in ("IPvAnyAddress", "IPvAnyNetwork", "IPvAnyInterface", "EmailStr", "NameEmail")
    },
    **{
        name: getattr(pydantic, name)
        for name in dir(pydantic.networks)
        if name.endswith(("Dsn", "Url")) and name in pydantic.__all__
    },
    "a bounded URL": Annotated[pydantic.HttpUrl, Field(max_length=60)],
    "Path": pathlib.Path,
    "FilePath": pydantic.FilePath,
    "DirectoryPath": pydantic.DirectoryPath,
    "NewPath": pydantic.NewPath,
    "Pattern": re.Pattern,
    "ZoneInfo": zoneinfo.ZoneInfo,
    "Json": Json,
    "Json of a type": Json[list[int]],
    # choices
    "IntEnum": Size,
    "Enum": Mixed,
    "mixed Literal": Literal["a", 1, True, None],
    "Enum or Literal": Mixed | Literal["z"],
    "union of unlike types": int | pydantic.FutureDate | text(r"^\p{L}$"),
    "discriminated union": Annotated[Cat | Dog, Field(discriminator="kind")],
    "union with a callable discriminator": Annotated[
        Annotated[Cat, Tag("cat")] | Annotated[Dog, Tag("dog")], Discriminator(_kind)
    ],
    # containers
    "recursive": Node,
    "set": Annotated[set[int], Field(min_length=3)],
    "frozenset": frozenset[Mixed],
    "deque": collections.deque[int],
    "Sequence": Sequence[int],
    "tuple": tuple[int, str],
    "NamedTuple": Pair,
    "TypedDict": Keys,
    "Any": Any,
    # code of the user's own
    "a validator": Annotated[int, AfterValidator(_even)],
}


def model_of(kind: Any) -> type[BaseModel]:
    return create_model("Model", x=(kind, ...))


@pytest.mark.parametrize("kind", TYPES.values(), ids=TYPES)
def test_a_drawn_value_is_accepted(kind: Any) -> None:
    model = model_of(kind)
    draw = compile_model(model)
    for seed in range(30):
        model.model_validate(draw(Random(seed)), by_alias=True)
        model.model_validate_json(pydantic.TypeAdapter(Any).dump_json(draw(Random(seed))))
    assert draw(Random(1)) == compile_model(model)(Random(1))


def never(_value: object) -> object:
    raise ValueError("never")


def once(_value: object) -> object:
    raise SystemExit(3)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (Annotated[int, AfterValidator(never)], "never"),
        (Annotated[int, AfterValidator(once)], "SystemExit"),
        (Annotated[set[bool], Field(min_length=3)], "at least 3 items"),
        (Annotated[int, Field(ge=5, le=3)], "less than or equal to 3"),
        (Annotated[str, Field(min_length=5, max_length=3)], "at least 5 characters"),
        (text("^[a-z&&[^aeiou]]$"), "should match pattern"),
        (text(r"^\p{Tangut}$"), "should match pattern"),
        (pydantic.SocketPath, "socket"),
        (pydantic.ImportString, "python path"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",  # types of functions have their addresses as text
)
def test_a_type_that_cannot_be_drawn_is_an_error_with_the_last_value_tried(kind: Any, words: str) -> None:
    with pytest.raises(Undrawable, match=f"(?s)no answer can be drawn that Model accepts.*{words}"):
        compile_model(model_of(kind))


def test_dates_do_not_depend_on_the_day() -> None:
    assert compile_model(model_of(pydantic.FutureDate))(Random(0)) == {"x": "2103-11-16"}
    assert compile_model(model_of(pydantic.PastDatetime))(Random(0)) == {"x": "2024-01-06T00:14:38Z"}


def test_bytes_are_encoded_as_the_model_reads_them() -> None:
    class Encoded(BaseModel, val_json_bytes="hex", ser_json_bytes="hex"):
        x: bytes

    draw = compile_model(Encoded)
    assert all(
        Encoded.model_validate(draw(Random(seed))) and re.fullmatch("[0-9a-f]+", draw(Random(seed))["x"]) for seed in range(9)
    )


def test_a_validator_that_refuses_most_answers_costs_draws_and_no_row() -> None:
    class Rare(BaseModel):
        x: Annotated[int, Field(ge=0, le=99), AfterValidator(lambda value: value if value < 5 else never(value))]

    draw = compile_model(Rare)
    assert {draw(Random(seed))["x"] for seed in range(60)} == {0, 1, 2, 3, 4}


_SCALARS = st.sampled_from(
    [kind for name, kind in TYPES.items() if name not in ("recursive", "a validator", "Any", "bytes", "Path")]
)
_KINDS: st.SearchStrategy[Any] = st.recursive(
    _SCALARS,
    lambda inner: st.one_of(
        inner.map(lambda kind: Annotated[list.__class_getitem__(kind), Field(max_length=3)]),
        inner.map(lambda kind: kind | None),
        inner.map(lambda kind: dict.__class_getitem__((str, kind))),
        st.tuples(inner, inner).map(tuple.__class_getitem__),
    ),
    max_leaves=4,
)


@given(kinds=st.lists(_KINDS, min_size=1, max_size=4), seed=st.integers(0, 2**31 - 1))
@settings(max_examples=60, deadline=None)
def test_models_of_any_of_these_types_can_be_drawn(kinds: list[Any], seed: int) -> None:
    model = create_model("Model", **{f"f{number}": (kind, ...) for number, kind in enumerate(kinds)})  # type: ignore[call-overload]
    draw: Callable[[Random], Any] = compile_model(model)
    model.model_validate_json(pydantic.TypeAdapter(Any).dump_json(draw(Random(seed))))
