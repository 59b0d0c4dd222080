"""Rows that are not the ones a reader expects: joined flows that end with a flow of their own, and models of defaults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from pydantic import BaseModel

from chainette import Branch, Chain, Loop, Route, apply
from chainette.core.compile import compile_chain


class Text(BaseModel):
    text: str


class Outcome(BaseModel):
    warning: str | None = None


@apply
def work(item: Text) -> Text:
    return item


@apply
def last(item: Text, history: Mapping[str, Any]) -> Text:
    return item


@apply
def merge(item: Outcome) -> Outcome:
    return item


LOOP = Loop("again", steps=[work], until=lambda item: True, max_rounds=2).join("done")


def warnings(*steps: Any) -> list[str]:
    return [problem.message for problem in compile_chain(Chain(name="c", steps=steps)).warnings]


@pytest.mark.parametrize(
    "shape",
    [
        Route("way", when=lambda item: True, then=[LOOP]).join("out"),
        [Branch("way", [LOOP]).join("out")],
        [Branch("way", [[Branch("inner", [work]).join("done")]]).join("out")],
    ],
    ids=["a way", "a branch", "branches in a branch"],
)
def test_a_joined_flow_that_ends_with_another_is_warned_of(shape: Any) -> None:
    [warning] = [text for text in warnings(shape) if "holds the row before" in text]
    assert warning.startswith("'out' holds the row before the ") and warning.endswith("returns history['done']")


@pytest.mark.parametrize(
    "shape",
    [
        Route("way", when=lambda item: True, then=[LOOP, last]).join("out"),
        Route("way", when=lambda item: True, then=[LOOP]),
        [Branch("way", [LOOP])],
    ],
    ids=["a function at the end", "an unjoined way", "an unjoined branch"],
)
def test_other_endings_are_not(shape: Any) -> None:
    assert not [text for text in warnings(shape) if "holds the row before" in text]


def test_a_node_whose_fields_would_all_be_defaults_is_warned_of() -> None:
    [warning] = warnings(work, merge)
    assert warning.startswith("apply 'merge' takes Outcome, but 'work' gives Text, which has none of its fields")
    assert warnings(work, last) == []
