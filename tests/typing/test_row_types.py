"""Types of rows for mypy (`row[extract]` is the value of that step), and of `>>`. Checked by mypy, and run as it stands."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any, assert_type

from pydantic import BaseModel

from chainette import ApplyNode, BatchApply, Branch, Chain, Row, Step, apply
from chainette.core.node import Steps


class Text(BaseModel):
    text: str


class Product(BaseModel):
    name: str


class Word(BaseModel):
    word: str


def split(product: Product) -> list[Word]:
    return [Word(word=part) for part in product.name.split()]


def keep(product: Product) -> Product | None:
    return product if product.name else None


def parts(product: Product) -> Iterator[Word]:
    yield from split(product)


async def stream(product: Product, history: Row) -> AsyncIterator[Word]:
    for word in split(product):
        yield word


async def fetch(product: Product) -> Product | None:
    return product


extract = Step(id="extract", input_model=Text, output_model=Product, engine_name="llm")
words = apply(split)
kept = apply(keep)

ROW = Row("0", {"extract": b'{"name":"red mug"}', "split": b'{"word":"red"}', "keep": b'{"name":"red mug"}'})


def test_a_step_knows_its_models() -> None:
    assert_type(extract, Step[Text, Product])
    assert extract.output_model is Product


def test_a_row_gives_the_model_of_a_node() -> None:
    product = assert_type(ROW[extract], Product)
    assert product == Product(name="red mug")
    assert_type(ROW[words], Word)
    assert ROW[words] == Word(word="red")
    assert_type(ROW[kept], Product)
    assert ROW[kept] == Product(name="red mug")


def test_a_row_gives_plain_data_by_name() -> None:
    assert_type(ROW["extract"], Any)
    assert ROW["extract"] == {"name": "red mug"}


def test_a_function_keeps_its_types_as_a_node() -> None:
    assert_type(words, ApplyNode[Product, Word])
    assert_type(kept, ApplyNode[Product, Product])
    assert_type(apply(parts), ApplyNode[Product, Word])
    assert_type(apply(stream), ApplyNode[Product, Word])
    assert_type(apply(fetch), ApplyNode[Product, Product])
    assert_type(ApplyNode(split, input_model=Product, output_model=Word), ApplyNode[Product, Word])


def many(products: list[Product]) -> list[Word]:
    return [Word(word=product.name) for product in products]


async def fetch_many(products: list[Product]) -> list[Product | None]:
    return [await fetch(product) for product in products]


def test_a_function_over_batches_keeps_its_types_as_a_node() -> None:
    assert_type(BatchApply(many), BatchApply[Product, Word])
    assert_type(BatchApply(fetch_many), BatchApply[Product, Product])
    BatchApply(split, id="one")  # type: ignore[arg-type]


def test_nodes_and_lists_of_branches_are_put_in_order_and_nothing_else() -> None:
    branch = Branch("b", [kept])
    joined = assert_type(extract >> [branch, Branch("c", [words]).join("x")] >> kept, Steps)
    assert_type([branch] >> kept, Steps)
    assert_type(extract >> (kept >> words), Steps)
    assert_type([branch] >> (kept >> words), Steps)
    Chain(name="c", steps=joined)
    extract >> "kept"  # type: ignore[operator]
    extract >> split  # type: ignore[operator]
    extract >> [kept]  # type: ignore[list-item]
    ["b"] >> extract  # type: ignore[operator]
