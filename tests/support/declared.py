"""Steps and plans of the tests of declarations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from pydantic import BaseModel

from chainette import Chain, Step, register_engine
from chainette.core.compile import compile_chain
from chainette.core.plan import Plan
from chainette.engine.config import EngineRegistry, using_registry
from chainette.errors import PlanError

__all__ = ["Text", "Word", "keep", "plan", "problems", "split", "step", "touch"]


class Text(BaseModel):
    text: str


class Word(BaseModel):
    word: str


def split(item: Text) -> list[Word]:
    return [Word(word=word) for word in item.text.split()]


def keep(item: Text) -> Text | None:
    return item if item.text else None


def touch(item: Text) -> Text:
    return item


def step(id: str = "ask", **keys: Any) -> Step[Any, Any]:
    values: dict[str, Any] = {"id": id, "input_model": Text, "output_model": Word, "engine_name": "llm"}
    return Step(**values | keys)


def plan(steps: Sequence[Any], **keys: Any) -> Plan:
    with using_registry(EngineRegistry()):
        register_engine("llm", "none", "simulated")
        return compile_chain(Chain(name="declared", steps=steps, **keys))


def problems(steps: Sequence[Any], **keys: Any) -> str:
    """The check's messages, without the places."""
    with pytest.raises(PlanError) as caught:
        plan(steps, **keys)
    assert all(problem.place is not None for problem in caught.value.problems)
    return "\n".join(problem.message for problem in caught.value.problems)
