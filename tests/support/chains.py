"""Chains for tests. Simulated engines answer alike whatever the scheduling, so runs can be compared row by row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
from pydantic import BaseModel

from chainette import Branch, Chain, Row, SamplingParams, Step, apply, register_engine
from chainette.engine.config import EngineRegistry, using_registry
from chainette.io.rundir.result import RunResult


class Text(BaseModel):
    text: str


class Facts(BaseModel):
    name: str
    score: int


class Word(BaseModel):
    word: str


class Count(BaseModel):
    words: int
    seen: list[str] = []


def split(facts: Facts) -> list[Word]:
    """None to three rows of one."""
    return [Word(word=letter) for letter in facts.name[: facts.score % 4]]


def odd_only(facts: Facts) -> Facts | None:
    return facts if facts.score % 2 else None


def touchy(word: Word) -> Word:
    if word.word.startswith("m"):
        raise ValueError(f"I do not take {word.word!r}")
    return word


def count(facts: Facts, history: Mapping[str, Any]) -> Count:
    words = history["parts"]
    return Count(words=len(words), seen=[word.word for word in words])


async def twice(item: Count) -> list[Count]:
    return [item, item]


def everything(batch_size: int = 4, *, hidden: bool = True, **engine: Any) -> Chain:
    """Every kind of node: rejects, expands, drops, nested forks, joins of one and of many, side branches, a hidden step,
    a step with a second engine, and one that chooses among candidates. Without `hidden` its step keeps its rows."""
    with using_registry(EngineRegistry()):
        register_engine("first", "none", "simulated", invalid_rate=0.2, **engine)
        register_engine("second", "none", "simulated", invalid_rate=0.05, **engine)
        extract = Step(
            id="extract", input_model=Text, output_model=Facts, engine_name="first", user_prompt="{{ text }}", max_attempts=1
        )
        second = Step(id="hidden", output_model=Facts, engine_name="second", yield_output=not hidden)
        inner = Branch("inner", [apply(split), apply(touchy)]).join("letters")
        nested = Branch(
            "nested", [apply(split, id="split_again"), [Branch("deep", [apply(touchy, id="touchy_too")]).join("echo")]]
        )
        guess = Step(
            id="guess",
            output_model=Word,
            engine_name="first",
            user_prompt="{{ hidden.name }}",
            max_attempts=1,
            sampling=SamplingParams(temperature=1.0),
            n=3,
            pick="majority",
            min_valid=2,
        )
        return Chain(
            name="everything",
            batch_size=batch_size,
            steps=[
                extract,
                second,
                [
                    Branch("pieces", [apply(split, id="pieces_of")]).join("parts"),
                    inner,
                    nested.join("again"),
                    Branch("side", [apply(odd_only)]),
                    Branch("votes", [guess]).join("guessed"),
                ],
                apply(count),
                apply(twice),
                [
                    Branch(
                        "last",
                        [
                            Step(
                                id="closing",
                                output_model=Word,
                                engine_name="first",
                                escalate=["second"],
                                user_prompt="{{ count.words }} {{ hidden.name }}",
                            )
                        ],
                    )
                ],
            ],
        )


def texts(number: int) -> list[Text]:
    return [Text(text=f"text number {index}") for index in range(number)]


def write_inputs(path: Path, number: int, bad: tuple[int, ...] = ()) -> Path:
    """A JSONL file whose records `bad` do not fit."""
    lines = [
        b'{"txt": 1}' if index in bad else msgspec.json.encode({"text": f"text number {index}"}) for index in range(number)
    ]
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def content(result: RunResult) -> dict[str, list[str]]:
    """Every folder's rows, sorted, as JSON: two runs must agree on them."""
    folders = [node.folder for node in result._state.graph.nodes if not node.hidden]
    return {
        name: sorted(msgspec.json.encode(row, order="deterministic").decode() for row in result.rows(name))
        for name in (*folders, "rejected", "flattened")
    }


def finished(batches: Iterator[list[Row]]) -> list[Row]:
    return [row for batch in batches for row in batch]
