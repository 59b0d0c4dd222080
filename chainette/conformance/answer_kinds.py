"""Cases about kinds of answers: an output model of each kind, and an answer that must be an instance of it."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError, create_model

from chainette.conformance.case import BrokenPromise, Case, Subject, answered, question, require
from chainette.engine.base import Finish

__all__ = ["ANSWER_KINDS"]


class _Color(StrEnum):
    RED = "red"
    BLUE = "blue"


class _Part(BaseModel):
    color: _Color
    size: int = Field(ge=0, le=99)


class _Cat(BaseModel):
    kind: Literal["cat"]
    lives: int = Field(ge=1, le=9)


class _Dog(BaseModel):
    kind: Literal["dog"]
    name: str = Field(max_length=10)


class _Tree(BaseModel):
    value: int = Field(ge=0, le=9)
    left: _Tree | None


class _Nothing(BaseModel):
    pass


class _Script(BaseModel):
    farbe_größe: Literal["größer", "赤", "أحمر"]


class _Keys(BaseModel):
    spaced: int = Field(alias='the "first" key', ge=0, le=9)
    dollar: int = Field(alias="$second.key", ge=0, le=9)


def _one(kind: Any) -> type[BaseModel]:
    return create_model("Answer", x=(kind, ...))


#: Kinds whose answers may be cut, because nothing in the model limits their length.
_ENDLESS = {"a recursive object", "a mapping"}
#: Kinds that a grammar may be unable to express: any answer will do.
_LOOSE = {
    "an integer with a bound of 19 digits",
    "a text constrained by a lookahead",
    "a list of distinct items",
    "a multiple of seven",
}

_KINDS: dict[str, type[BaseModel]] = {
    "a bounded text": _one(Annotated[str, Field(max_length=20)]),
    "a text of at least five characters": _one(Annotated[str, Field(min_length=5, max_length=20)]),
    "a bounded integer": _one(Annotated[int, Field(ge=10, le=99)]),
    "a bounded number": _one(Annotated[float, Field(ge=0, le=1, json_schema_extra={"maxLength": 6})]),
    "a boolean": _one(bool),
    "one of three words": _one(Literal["good", "bad", "neither"]),
    "one of several constants": _one(Literal["a", 1, None]),
    "a text or null": _one(Annotated[str, Field(max_length=8)] | None),
    "a bounded list": _one(Annotated[list[Annotated[int, Field(ge=0, le=9)]], Field(min_length=1, max_length=3)]),
    "nested objects": create_model("Outer", part=(_Part, ...), other=(_Part | None, ...)),
    "a list of objects": _one(Annotated[list[_Part], Field(max_length=2)]),
    "a mapping": _one(dict[Annotated[str, Field(max_length=8)], Annotated[int, Field(ge=0, le=9)]]),
    "a pair": _one(tuple[Annotated[int, Field(ge=0, le=9)], bool]),
    "a union of objects": _one(_Part | _Cat),
    "a discriminated union": _one(Annotated[_Cat | _Dog, Field(discriminator="kind")]),
    "a recursive object": _Tree,
    "a date and time": _one(datetime),
    "a text with a pattern": _one(Annotated[str, Field(pattern=r"^[A-Z]{2}-[0-9]{3}$")]),
    "names and values in other scripts": _Script,
    "keys with spaces and quotes": _Keys,
    "nine fields": create_model("Wide", **{f"f{number}": (bool, ...) for number in range(9)}),  # type: ignore[call-overload]
    "no fields": _Nothing,
    "an integer with a bound of 19 digits": _one(Annotated[int, Field(ge=1_700_000_000_000_000_000)]),
    "a text constrained by a lookahead": _one(
        Annotated[str, Field(max_length=9, json_schema_extra={"pattern": "^(?=.*a)[a-z]+$"})]
    ),
    "a list of distinct items": _one(Annotated[set[bool], Field(max_length=2)]),
    "a multiple of seven": _one(Annotated[int, Field(multiple_of=7, ge=0, le=70)]),
}


def _case(name: str, model: type[BaseModel]) -> Case:
    async def check(subject: Subject) -> None:
        [completion] = await answered(
            subject, question("Answer with any value that fits.", model, max_tokens=32 if name in _ENDLESS else 160)
        )
        if name in _LOOSE or (name in _ENDLESS and completion.finish is Finish.LENGTH):
            return
        require(completion.finish is Finish.STOP, f"the answer does not end: {completion.text[:120]!r}")
        try:
            model.model_validate_json(completion.text)
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            raise BrokenPromise(f"{problem['msg']} in {completion.text[:120]!r}") from error

    return Case(f"answers with {name}", check)


ANSWER_KINDS = tuple(_case(name, model) for name, model in _KINDS.items())
