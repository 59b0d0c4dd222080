"""The values under the alias of a branch."""

from __future__ import annotations

from typing import Any

from chainette import Branch, apply
from tests.support.chains import Text, Word


def words(item: Text) -> list[Word]:
    return [Word(word=item.text)]


def anything(item, history):  # type: ignore[no-untyped-def]
    return []


def first(item: Text) -> Word:
    return Word(word=item.text)


def value(branch: Any, data: bytes) -> Any:
    return branch.decode(data)


def test_a_join_is_the_model_of_its_last_node_or_a_list_where_the_branch_expands() -> None:
    assert value(Branch("b", [apply(first)]).join("x"), b'{"word":"a"}') == Word(word="a")
    assert value(Branch("b", [apply(words)]).join("x"), b'[{"word":"a"}]') == [Word(word="a")]


def test_a_join_after_a_node_that_says_no_model_is_plain_data() -> None:
    branch = Branch("b", [apply(words), apply(anything)]).join("x")
    assert value(branch, b'[{"other":1}]') == [{"other": 1}]


def test_reading_a_join_again_makes_nothing_anew() -> None:
    branch = Branch("b", [apply(words)]).join("x")
    assert branch.adapter is branch.adapter
