"""Random chains against a ten-line reading of what a chain means: one row at a time, no units, no scopes, no disk."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from chainette import Branch, Chain, JoinBranch, apply
from chainette.core.apply import ApplyNode
from chainette.core.branch import Element
from chainette.run.executor import resume
from tests.support.crash import copies
from tests.support.tools import some

ROWS = 9


class Item(BaseModel):
    v: int


class Refused(ValueError):
    pass


def step(kind: str, salt: int) -> Callable[[Item], Any]:
    """A function whose result follows from the item alone."""

    def drawn(item: Item) -> int:
        if (item.v * 31 + salt) % 7 == 0:
            raise Refused("no")
        return (item.v * 17 + salt) % 1000

    def one(item: Item) -> Item:
        return Item(v=drawn(item))

    def optional(item: Item) -> Item | None:
        v = drawn(item)
        return Item(v=v) if v % 3 else None

    def many(item: Item) -> list[Item]:
        v = drawn(item)
        return [Item(v=v + index) for index in range(v % 4)]

    def looking_back(item: Item, history: Any) -> Item:
        return Item(v=(drawn(item) + sum(len(str(value)) for value in history.values())) % 1000)

    made: dict[str, Callable[..., Any]] = {"one": one, "optional": optional, "many": many, "back": looking_back}
    return made[kind]


class Maker:
    """Draws a chain."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.names = 0

    def name(self, prefix: str) -> str:
        self.names += 1
        return f"{prefix}{self.names}"

    def elements(self, depth: int, longest: int) -> list[Element]:
        return [self.element(depth) for _ in range(self.rng.randint(1, longest))]

    def element(self, depth: int) -> Element:
        if depth < 2 and self.rng.random() < 0.4:
            return [self.branch(depth) for _ in range(self.rng.randint(1, 3))]
        kind = self.rng.choice(["one", "one", "optional", "many", "back"])
        return apply(step(kind, self.rng.randrange(1000)), id=self.name("n"))

    def branch(self, depth: int) -> Branch:
        branch = Branch(self.name("b"), self.elements(depth + 1, 2))
        return branch.join(self.name("j")) if self.rng.random() < 0.6 else branch


@dataclass
class Meaning:
    """What a chain means, row by row."""

    outputs: dict[str, list[tuple[str, int]]] = field(default_factory=dict)
    rejected: list[tuple[str, str]] = field(default_factory=list)

    def flow(
        self, elements: Sequence[Element], row_id: str, value: Item, history: dict[str, Any]
    ) -> list[tuple[str, Item, dict[str, Any]]] | None:
        """Rows at the end of the elements; None where one below was rejected or stopped."""
        if not elements:
            return [(row_id, value, history)]
        head, rest = elements[0], elements[1:]
        if isinstance(head, ApplyNode):
            return self.node(head, rest, row_id, value, history)
        assert not isinstance(head, ApplyNode) and isinstance(head, Sequence)
        aliases: dict[str, Any] = {}
        stopped = False
        for branch in head:
            ends = self.flow(branch.steps, row_id, value, dict(history))
            if isinstance(branch, JoinBranch):
                many = any(isinstance(node, ApplyNode) and node.cardinality == "many" for node in branch.steps)
                stopped |= ends is None or (not many and not ends)
                aliases[branch.alias] = [end for _, end, _ in ends or []] if many else (ends[0][1] if ends else None)
        return None if stopped else self.flow(rest, row_id, value, history | aliases)

    def node(
        self, node: ApplyNode[Any, Any], rest: Sequence[Element], row_id: str, value: Item, history: dict[str, Any]
    ) -> list[tuple[str, Item, dict[str, Any]]] | None:
        try:
            given = node.fn(value, history) if node.wants_history else node.fn(value)
        except Refused:
            self.rejected.append((node.id, row_id))
            return None
        many = node.cardinality == "many"
        rows = [(f"{row_id}~{index}", item) for index, item in enumerate(given)] if many else [(row_id, given)] if given else []
        ends: list[Any] = []
        whole = True
        for child, item in rows:
            self.outputs.setdefault(node.id, []).append((child, item.v))
            found = self.flow(rest, child, item, history | {node.id: item})
            whole &= found is not None
            ends += found or []
        return ends if whole else None


def meaning(chain: Chain) -> tuple[dict[str, list[tuple[str, int]]], list[tuple[str, str]]]:
    read = Meaning()
    for index in range(ROWS):
        item = Item(v=index * 13)
        read.flow(chain.steps, str(index), item, {"chain_input": item})
    return {node: sorted(rows) for node, rows in read.outputs.items()}, sorted(read.rejected)


def carried_out(result: Any) -> tuple[dict[str, list[tuple[str, int]]], list[tuple[str, str]]]:
    nodes = [node for node, counts in result.counts.items() if counts["out"] and node.startswith("n")]
    outputs = {node: sorted((row["row_id"], row["v"]) for row in result.rows(node)) for node in nodes}
    return outputs, sorted((row["step_id"], row["row_id"]) for row in result.rows("rejected"))


def chain_of(seed: int, batch_size: int) -> Chain:
    return Chain(name="drawn", steps=Maker(seed).elements(0, 4), input_model=Item, batch_size=batch_size)


def inputs() -> list[Item]:
    return [Item(v=index * 13) for index in range(ROWS)]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("block", some(range(8)))
def test_a_run_is_what_the_chain_means(tmp_path: Path, block: int) -> None:
    for seed in range(block * 15, block * 15 + 15):
        size = (1, 2, 4, 64)[seed % 4]
        chain = chain_of(seed, size)
        result = chain.run(inputs(), tmp_path / str(seed))
        assert carried_out(result) == meaning(chain), seed
        assert result.metadata["balanced"], (seed, result._state.imbalances())


@pytest.mark.parametrize("block", some(range(8)))
def test_a_run_that_crashed_is_what_the_chain_means(tmp_path: Path, block: int) -> None:
    for seed in range(block * 4, block * 4 + 4):
        chain = chain_of(seed, 2)
        with copies(tmp_path / f"run{seed}", tmp_path / f"copies{seed}", every=5) as taken:
            chain.run(inputs(), tmp_path / f"run{seed}")
        for copy in random.Random(seed).sample(taken, min(6, len(taken))):
            if not (copy / "events.jsonl").stat().st_size:
                continue
            result = resume(copy, chain)
            assert carried_out(result) == meaning(chain), (seed, copy.name)
            assert result.metadata["balanced"], (seed, copy.name)
