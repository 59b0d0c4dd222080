"""A step that asks for prices, and its answers in the tests of rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, field_validator

from chainette import Chain, RunResult, Step, apply
from chainette.records import Message
from tests.support.scripted import Answering, Script, scripted

__all__ = ["Price", "Text", "answered", "ask", "by_id", "only_rejection", "plain", "same", "texts"]


class Text(BaseModel):
    text: str


class Price(BaseModel):
    price: int

    @field_validator("price")
    @classmethod
    def positive(cls, value: int) -> int:
        if value < 0:
            raise ValueError("a price is not negative")
        return value


def ask(**keys: Any) -> Step[Text, Price]:
    return Step(id="ask", input_model=Text, output_model=Price, engine_name="llm", **keys)


def answered(path: Path, answer: Answering, rows: int = 1, **keys: Any) -> tuple[RunResult, Script]:
    """A run of one step over `rows` rows, answered by `answer`."""
    with scripted(llm=answer) as scripts:
        result = Chain(name="rows", steps=[ask(**keys)]).run([Text(text=f"t{number}") for number in range(rows)], path / "run")
    assert result.metadata["balanced"]
    return result, scripts["llm"]


def only_rejection(result: RunResult) -> dict[str, Any]:
    (rejection,) = result.rows("rejected")
    return rejection


def texts(messages: tuple[Message, ...]) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in messages]


def same(item: Text) -> Text:
    return item


def plain(path: Path, inputs: Any, **options: Any) -> RunResult:
    """A run of nothing but a function that returns its argument."""
    return Chain(name="plain", steps=[apply(same)], batch_size=2).run(inputs, path / "run", **options)


def by_id(result: RunResult, step: str) -> dict[str, dict[str, Any]]:
    return {row["row_id"]: row for row in result.rows(step)}
