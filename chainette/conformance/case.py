"""A case of the conformance suite: one promise of `Engine`, and its check."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal

import msgspec
from pydantic import BaseModel, Field

from chainette.engine.base import Completion, Engine, Finish, Request, SamplingParams
from chainette.engine.config import EngineConfig
from chainette.records import Message
from chainette.utils.json_schema import generate_json_output_prompt
from chainette.utils.plurals import counted

__all__ = [
    "BrokenPromise",
    "Case",
    "CaseOutcome",
    "NotApplicable",
    "Subject",
    "Thing",
    "Verdict",
    "answered",
    "question",
    "require",
]


class CaseOutcome(StrEnum):
    PASSED = "passed"
    FAILED = "failed"
    #: The case does not apply to this backend.
    NOT_APPLICABLE = "not applicable"


@dataclass(frozen=True)
class Verdict:
    case: str
    outcome: CaseOutcome
    #: The reason, unless it passed.
    words: str = ""


class BrokenPromise(Exception):
    """The engine broke the case's promise."""


class NotApplicable(Exception):
    """The case does not apply to this engine."""


@dataclass(frozen=True)
class Subject:
    """The engine under examination, open."""

    config: EngineConfig
    engine: Engine
    #: A new engine of the same configuration, not open.
    create: Callable[[], Engine]
    #: A user message that the service behind the engine declines to answer; "" if none is known.
    refused: str = ""


@dataclass(frozen=True)
class Case:
    #: A sentence about the engine.
    name: str
    check: Callable[[Subject], Awaitable[None]]


class Thing(BaseModel):
    color: Literal["red", "blue"]
    name: str = Field(max_length=20)


def question(text: str, model: type[BaseModel] = Thing, seed: int = 1, system: str = "", **sampling: Any) -> Request:
    """A request for an instance of `model`, with the instruction that a step would add."""
    instruction = "\n\n".join(filter(None, [system, generate_json_output_prompt(model)]))
    messages = (Message("system", instruction), Message("user", text))
    params = SamplingParams(**{"max_tokens": 160} | sampling)
    schema = model.model_json_schema()
    return Request(messages, params, seed, schema, _step_of(schema), "conformance", model)


def _step_of(schema: dict[str, Any]) -> str:
    """A name for each schema, like that of a step: engines use it to remember the schemas that a server refuses."""
    return f"answer_{hashlib.blake2b(msgspec.json.encode(schema), digest_size=4).hexdigest()}"


def require(holds: object, words: str) -> None:
    """Raises BrokenPromise with these words unless the condition holds."""
    if not holds:
        raise BrokenPromise(words)


async def answered(subject: Subject, *requests: Request) -> list[Completion]:
    """The answers of one call of `generate`.

    Raises:
        BrokenPromise: their number differs from that of the requests, or one of them is an error.
    """
    found = await subject.engine.generate(requests)
    require(len(found) == len(requests), f"{counted(len(found), 'answer')} to {counted(len(requests), 'request')}")
    for completion in found:
        said = f"{completion.finish}: {completion.error or completion.text[:80]!r}"
        require(completion.finish in (Finish.STOP, Finish.LENGTH), f"a plain question ended with {said}")
    return found
