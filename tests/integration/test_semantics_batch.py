"""BatchApply: one call for the rows of a unit, in which a bad row costs no other (docs/semantics.md)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, field_validator

from chainette import BatchApply, Chain, RunResult
from chainette.core.apply import Cardinality
from chainette.core.chain_drawing import render_ascii
from chainette.core.compile import compile_chain
from chainette.errors import DeclarationError


class N(BaseModel):
    n: int


class Even(BaseModel):
    n: int

    @field_validator("n")
    @classmethod
    def _even(cls, n: int) -> int:
        if n % 2:
            raise ValueError("it is odd")
        return n


def run(path: Path, node: BatchApply[Any, Any], numbers: range, batch_size: int = 8) -> RunResult:
    chain = Chain(name="batches", steps=[node], batch_size=batch_size, input_model=N)
    result = chain.run([N(n=number) for number in numbers], path / "run")
    assert result.metadata["balanced"], result.counts
    return result


def values(result: RunResult) -> dict[str, int]:
    """row id -> number, of the rows that were kept."""
    return {row["row_id"]: row["n"] for row in result.rows("work")}


def rejected(result: RunResult) -> dict[str, str]:
    assert {row["reason"] for row in result.rows("rejected")} <= {"apply_error"}
    return {row["row_id"]: row["message"] for row in result.rows("rejected")}


class Told:
    """A function that notes its calls: doubles its rows, and cannot take some of them."""

    def __init__(self, *bad: int, answer: Callable[[list[N]], list[N]] | None = None) -> None:
        self.bad = frozenset(bad)
        self.answer = answer
        self.calls: list[list[int]] = []

    def __call__(self, items: list[N]) -> list[N]:
        self.calls.append([item.n for item in items])
        if bad := self.bad.intersection(self.calls[-1]):
            if self.answer is None:
                raise ValueError(f"{min(bad)} is bad")
            return self.answer(items)
        return [N(n=2 * item.n) for item in items]


def test_a_batch_is_called_once_for_a_unit_and_rows_keep_their_ids(tmp_path: Path) -> None:
    work = Told()
    result = run(tmp_path, BatchApply(work, id="work"), range(20))
    assert values(result) == {str(n): 2 * n for n in range(20)}
    assert sorted(map(len, work.calls)) == [4, 8, 8]


def test_none_drops_a_row_of_a_batch_if_that_is_declared(tmp_path: Path) -> None:
    def declared(items: list[N]) -> list[N | None]:
        return [item if item.n % 2 else None for item in items]

    def undeclared(items: list[N]) -> list[N]:
        return [item if item.n % 2 else None for item in items]  # type: ignore[misc]

    dropped = run(tmp_path / "a", BatchApply(declared, id="work"), range(6))
    assert values(dropped) == {"1": 1, "3": 3, "5": 5} and not rejected(dropped)
    refused = run(tmp_path / "b", BatchApply(undeclared, id="work"), range(6))
    assert values(refused) == {"1": 1, "3": 3, "5": 5}
    assert rejected(refused) == dict.fromkeys(("0", "2", "4"), "'work' returned None, not N")


@pytest.mark.parametrize("bad", [(0,), (5,), (7,), (0, 7), (2, 3), tuple(range(8))])
def test_a_bad_row_of_a_batch_is_rejected_alone(tmp_path: Path, bad: tuple[int, ...]) -> None:
    work = Told(*bad)
    result = run(tmp_path, BatchApply(work, id="work"), range(8))
    assert values(result) == {str(n): 2 * n for n in range(8) if n not in bad}
    found = rejected(result)
    assert found.keys() == {str(n) for n in bad}
    assert all(
        found[str(n)].startswith(f"ValueError: {n} is bad (") and "test_semantics_batch.py:" in found[str(n)] for n in bad
    )
    if len(bad) == 1:
        assert len(work.calls) == 7  # 8, 4 and 4, 2 and 2, 1 and 1


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda items: items[1:], "it got 1 and returned 0"),
        (lambda items: [*items, items[0]], "it got 1 and returned 2"),
        (lambda items: None, "it got 1 and returned None"),
        (lambda items: dict(enumerate(items)), "it got 1 and returned {0: N(n=5)}"),
        (lambda items: "x" * len(items), "it got 1 and returned 'x'"),
    ],
)
def test_a_batch_of_another_length_is_halved_down_to_single_rows(tmp_path: Path, answer: Any, said: str) -> None:
    result = run(tmp_path, BatchApply(Told(5, answer=answer), id="work"), range(8))
    assert values(result) == {str(n): 2 * n for n in range(8) if n != 5}
    assert rejected(result) == {"5": f"'work' must return as many rows as it gets: {said}"}


def test_a_value_that_is_no_row_rejects_its_row_without_another_call(tmp_path: Path) -> None:
    wrong: Any = "no row"
    work = Told(3, answer=lambda items: [wrong if item.n == 3 else item for item in items])
    result = run(tmp_path, BatchApply(work, id="work"), range(4))
    assert rejected(result) == {"3": "'work' returned 'no row', not N"}
    assert len(values(result)) == 3 and len(work.calls) == 1


def test_a_row_that_cannot_be_read_is_left_out_of_the_batch(tmp_path: Path) -> None:
    seen: list[int] = []

    def work(items: list[Even]) -> list[N]:
        seen.extend(item.n for item in items)
        return [N(n=item.n) for item in items]

    result = run(tmp_path, BatchApply(work), range(5))
    assert seen == [0, 2, 4]
    assert values(result) == {"0": 0, "2": 2, "4": 4}
    assert rejected(result).keys() == {"1", "3"} and "it is odd" in rejected(result)["1"]


def test_a_batch_that_changes_its_rows_gets_them_anew(tmp_path: Path) -> None:
    def work(items: list[N]) -> list[N]:
        for item in items:
            item.n += 100
            if item.n == 103:
                raise ValueError("three")
        return items

    assert values(run(tmp_path, BatchApply(work), range(4))) == {"0": 100, "1": 101, "2": 102}


def test_a_batch_may_be_a_coroutine_a_generator_a_method_or_a_partial(tmp_path: Path) -> None:
    class Adder:
        def add(self, items: list[N]) -> list[N]:
            return [N(n=item.n + 1) for item in items]

    async def awaited(items: list[N]) -> list[N]:
        return Adder().add(items)

    def yielded(items: list[N]) -> Iterator[N]:
        yield from Adder().add(items)

    async def streamed(items: list[N]) -> AsyncIterator[N]:
        for item in Adder().add(items):
            yield item

    def by(step: int, items: list[N]) -> list[N]:
        return [N(n=item.n + step) for item in items]

    forms: dict[str, Any] = {"coroutine": awaited, "generator": yielded, "stream": streamed, "method": Adder().add}
    forms |= {"partial": partial(by, 1), "lambda": lambda items: awaited(items)}
    for name, fn in forms.items():
        node = BatchApply(fn, id="work", output_model=N)
        assert values(run(tmp_path / name, node, range(3))) == {"0": 1, "1": 2, "2": 3}, name


def test_a_coroutine_that_raises_costs_its_row_only(tmp_path: Path) -> None:
    async def work(items: list[N]) -> list[N]:
        if any(item.n == 2 for item in items):
            raise TimeoutError("too slow")
        return items

    result = run(tmp_path, BatchApply(work), range(4))
    assert values(result) == {"0": 0, "1": 1, "3": 3}
    assert rejected(result)["2"].startswith("TimeoutError: too slow")


def test_a_batch_reads_the_annotations_of_its_function() -> None:
    @BatchApply
    def embed(items: list[N]) -> list[Even | None]:
        return []

    assert (embed.id, embed.input_model, embed.output_model) == ("embed", N, Even)
    assert embed.cardinality is Cardinality.OPTIONAL
    bare: BatchApply[N, N] = BatchApply(lambda items: items, id="same", input_model=N, output_model=N)
    assert (bare.input_model, bare.output_model, bare.cardinality) == (N, N, Cardinality.ONE)


def test_a_function_that_cannot_be_a_batch_is_refused_at_its_line() -> None:
    def one(item: N) -> N:
        return item

    def two(items: list[N], history: Any) -> list[N]:
        return items

    wrong: list[tuple[Any, str]] = [
        (one, r"one is declared `-> N`; a BatchApply returns one row for each that it got, `-> list\[OUT\]`"),
        (two, "two must take one list of rows, it takes 2 parameters"),
        (lambda items: items, "a lambda has no name; give the node an id: .*id='...'"),
        ("work", "its only positional argument is the function, found 'work'"),
    ]
    for fn, said in wrong:
        with pytest.raises(DeclarationError, match=rf"test_semantics_batch\.py:\d+: .*{said}"):
            BatchApply(fn)


def test_inspect_says_that_a_node_takes_batches() -> None:
    chain = Chain(name="c", steps=[BatchApply(Told(), id="work", input_model=N, output_model=N)])
    assert "work  N -> N  [python, in batches]" in render_ascii(compile_chain(chain))


def test_a_batch_executed_alone_gives_its_outputs() -> None:
    outputs, _ = BatchApply(Told(), id="work", input_model=N).execute([N(n=1), N(n=2)])
    assert outputs == [N(n=2), N(n=4)]
