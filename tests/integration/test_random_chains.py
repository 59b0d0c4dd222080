"""Random chains against a plain reading of a chain's meaning: one row at a time, no units, no scopes, no disk."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from chainette import Branch, Chain, apply
from chainette.engine.base import Completion, Finish, Request
from chainette.run.executor import resume
from tests.support.crash import copies
from tests.support.drawn import Drawing, Element, Item, built, judged
from tests.support.meaning import Meaning
from tests.support.scripted import scripted
from tests.support.tools import many, some

ROOT = Path(__file__).parents[2]

ROWS = 9

Outputs = dict[str, list[tuple[str, Any]]]
Results = tuple[Outputs, list[tuple[str, str]]]


def meaning(elements: list[Element]) -> Results:
    read = Meaning()
    for index in range(ROWS):
        read.read(elements, str(index), index * 13)
    outputs: Outputs = {node: sorted((row_id, v) for row_id, v, _, _ in rows) for node, rows in read.outputs.items() if rows}
    outputs |= {route: sorted((row_id, way) for row_id, way, _ in rows) for route, rows in read.decided.items()}
    return outputs, sorted((node, row_id) for node, row_id, *_ in read.rejected)


def carried_out(result: Any) -> Results:
    nodes = [node for node, counts in result.counts.items() if counts["out"] and node[0] in "nr"]
    outputs = {node: sorted((row["row_id"], told(node, row)) for row in result.rows(node)) for node in nodes}
    return outputs, sorted((row["step_id"], row["row_id"]) for row in result.rows("rejected"))


def told(node: str, row: dict[str, Any]) -> Any:
    """The number of a row, -1 for an invalid candidate, or the way that was decided."""
    if node[0] == "r":
        return row["_way"]
    return -1 if row["v"] is None else row["v"]


def answered(request: Request) -> Completion:
    """The answer to a candidate's question."""
    node, row_id, ask = request.label.split("/")
    question = request.messages[-1] if len(request.messages) < 3 else request.messages[-3]
    prompt = f"{question.content.splitlines()[0]}, sample {row_id.rpartition('~')[2]}"
    verdict = judged(node.partition("_")[0], prompt, int(ask))
    finish = {"truncated": Finish.LENGTH, "refused": Finish.REFUSED}.get(verdict.reason, Finish.STOP)
    return Completion(verdict.text, finish)


def chain_of(seed: int, batch_size: int, *, routes: bool = False) -> tuple[Chain, list[Element]]:
    elements = Drawing(seed, routes=routes).elements(0, 4)
    return Chain(name="drawn", steps=built(elements), input_model=Item, batch_size=batch_size), elements


def inputs() -> list[Item]:
    return [Item(v=index * 13) for index in range(ROWS)]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("block", some(range(8), 8, 4))
def test_a_run_that_chooses_among_candidates_is_what_the_chain_means(tmp_path: Path, block: int) -> None:
    with scripted(llm=answered):
        for seed in range(block * 15, block * 15 + 15):
            elements = Drawing(seed, routes=True, votes=True).elements(0, 4)
            chain = Chain(name="drawn", steps=built(elements, ["llm"]), input_model=Item, batch_size=(1, 2, 4, 64)[seed % 4])
            with copies(tmp_path / f"run{seed}", tmp_path / f"copies{seed}", every=7) as taken:
                result = chain.run(inputs(), tmp_path / f"run{seed}")
            assert carried_out(result) == meaning(elements), seed
            assert result.metadata["balanced"], (seed, result._state.imbalances())
            begun = [copy for copy in taken if (copy / "events.jsonl").stat().st_size]
            for copy in random.Random(seed).sample(begun, min(many(1, 1, 2), len(begun))):
                assert carried_out(resume(copy, chain)) == meaning(elements), (seed, copy.name)


ROUTES = pytest.mark.parametrize("routes", [False, True], ids=["", "with routes"])


@pytest.mark.filterwarnings("ignore")
@ROUTES
@pytest.mark.parametrize("block", some(range(8), 8, 4))
def test_a_run_is_what_the_chain_means(tmp_path: Path, block: int, routes: bool) -> None:
    for seed in range(block * 15, block * 15 + 15):
        chain, elements = chain_of(seed, (1, 2, 4, 64)[seed % 4], routes=routes)
        result = chain.run(inputs(), tmp_path / str(seed))
        assert carried_out(result) == meaning(elements), seed
        assert result.metadata["balanced"], (seed, result._state.imbalances())


@ROUTES
@pytest.mark.parametrize("seed", some(range(32), 16, 5))
def test_a_run_that_crashed_is_what_the_chain_means(tmp_path: Path, seed: int, routes: bool) -> None:
    chain, elements = chain_of(seed, 2, routes=routes)
    with copies(tmp_path / "run", tmp_path / "copies", every=5) as taken:
        chain.run(inputs(), tmp_path / "run")
    for copy in random.Random(seed).sample(taken, min(many(2, 2, 3), len(taken))):
        if not (copy / "events.jsonl").stat().st_size:
            continue
        result = resume(copy, chain)
        assert carried_out(result) == meaning(elements), copy.name
        assert result.metadata["balanced"], copy.name


def test_a_run_whose_process_was_killed_again_and_again_is_what_the_chain_means() -> None:
    words = ["--chains", str(many(3, 8, 30))]
    done = subprocess.run(
        [sys.executable, "-m", "tests.chaos.killed", *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " kills, " in done.stdout


def test_a_joined_branch_does_not_wait_for_joins_inside_an_unjoined_one(tmp_path: Path) -> None:
    def next_of(item: Item) -> Item:
        return Item(v=item.v + 1)

    deep = Branch("deep", [apply(next_of, id="one")]).join("x")
    outer = Branch("outer", [[Branch("side", [[deep], apply(next_of, id="two")])]]).join("y")
    result = Chain(name="nested", steps=[[outer], apply(next_of, id="three")], input_model=Item).run(inputs(), tmp_path / "run")
    assert {name: result.counts[name]["out"] for name in ("one", "two", "three")} == dict.fromkeys(
        ("one", "two", "three"), ROWS
    )
    assert result.metadata["balanced"]
