"""docs/agents.md: each form of its table of shapes compiles as it stands there."""

from __future__ import annotations

import re
from typing import Any

import pytest
from pydantic import BaseModel

from chainette import Branch, Chain, Loop, Route, SamplingParams, Step, apply, register_engine
from chainette.core.compile import compile_chain
from chainette.engine.config import EngineRegistry, using_registry
from tests.support.cli import REPOSITORY

PAGE = (REPOSITORY / "docs/agents.md").read_text(encoding="utf-8")
#: The first code of each line.
FORMS = re.findall(r"^\| [^|]+ \| `([^`]+)`", PAGE.partition("## Shapes")[2].partition("\n- ")[0], re.MULTILINE)


class Ticket(BaseModel):
    """A row that fits every form: each node takes and gives it."""

    kind: str
    amount: int
    number: int
    ok: bool


def a_function(name: str) -> Any:
    def same(ticket: Ticket) -> Ticket:
        return ticket

    return apply(same, id=name)


def split(ticket: Ticket) -> list[Ticket]:
    return [ticket]


def a_step(_: object = ..., id: str = "asked", **keys: Any) -> Step:
    """`Step(..., key=value)`, with what the dots stand for."""
    settings: dict[str, Any] = {"input_model": Ticket, "engine_name": "small", "user_prompt": "{{ kind }}"} | keys
    return Step(id=id, output_model=Ticket, **settings)


def names() -> dict[str, Any]:
    functions = ("a", "b", "c", "d", "r", "o", "review", "summarise", "collect")
    return {
        **{name: a_function(name) for name in functions},
        **{name: a_step(id=name) for name in ("draft", "judge")},
        "split": apply(split),
        "Branch": Branch,
        "Chain": lambda _, **keys: Chain(name="form", steps=[a_step()], **keys),
        "Loop": Loop,
        "Route": Route,
        "SamplingParams": SamplingParams,
        "Step": a_step,
    }


def test_the_table_is_found() -> None:
    assert len(FORMS) == 11


@pytest.mark.parametrize("form", FORMS)
def test_a_form_of_the_page_compiles(form: str) -> None:
    with using_registry(EngineRegistry()):
        for engine in ("small", "large"):
            register_engine(engine, "any", "simulated")
        found = eval(form, names())
        steps = [a_step(id="classify"), *(found if isinstance(found, list) else [found])]
        compile_chain(found if isinstance(found, Chain) else Chain(name="form", steps=steps))
