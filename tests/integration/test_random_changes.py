"""Random changes of random chains: the `--from` a refused resume prints gives the rows of a fresh run."""

from __future__ import annotations

import random
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from chainette import Branch, Chain, JoinBranch
from chainette.core.branch import Element
from chainette.errors import ChainChanged
from chainette.hooks import Hook
from chainette.io.rundir.event_types import Event, UnitCommitted
from chainette.io.rundir.result import RunResult
from chainette.run.executor import resume
from tests.integration.test_random_chains import ROWS
from tests.support.chains import content
from tests.support.drawn import Drawing, Item, built
from tests.support.tools import some

#: A branch as it can be edited: name, alias, elements. An element is a node, or a list of branches.
Spec = list[Any]


def spec_of(elements: Any) -> Spec:
    return [
        [[branch.name, getattr(branch, "alias", None), spec_of(branch.steps)] for branch in element]
        if isinstance(element, tuple)
        else element
        for element in elements
    ]


def elements_of(spec: Spec) -> list[Element]:
    def branch(name: str, alias: str | None, steps: Spec) -> Branch:
        return JoinBranch(name, elements_of(steps), alias) if alias else Branch(name, elements_of(steps))

    return [[branch(*part) for part in element] if isinstance(element, list) else element for element in spec]


def sequences(spec: Spec) -> list[Spec]:
    """Every list of elements: the main flow, and those of all branches."""
    inner = [part[2] for element in spec if isinstance(element, list) for part in element]
    return [spec, *(found for sequence in inner for found in sequences(sequence))]


def branches(spec: Spec) -> list[Any]:
    return [part for sequence in sequences(spec) for element in sequence if isinstance(element, list) for part in element]


def edit(spec: Spec, rng: random.Random) -> None:
    """One change of the shape."""
    everywhere, parts = sequences(spec), branches(spec)
    forks = [element for sequence in everywhere for element in sequence if isinstance(element, list)]
    sequence = rng.choice(everywhere)
    place = rng.randrange(len(sequence))
    match rng.choice(["swap", "move", "drop", "rename", "join", "alias", "reverse", "split"]):
        case "swap":
            other = rng.randrange(len(sequence))
            sequence[place], sequence[other] = sequence[other], sequence[place]
        case "move" if len(sequence) > 1 and not isinstance(sequence[place], list):
            target = rng.choice(everywhere)
            target.insert(rng.randint(0, len(target)), sequence.pop(place))
        case "drop" if len(sequence) > 1:
            sequence.pop(place)
        case "rename" if parts:
            part = rng.choice(parts)
            part[0] += "x"
        case "join" if parts:
            part = rng.choice(parts)
            part[1] = None if part[1] else f"joined_{part[0]}"
        case "alias" if any(part[1] for part in parts):
            part = rng.choice([part for part in parts if part[1]])
            part[1] += "x"
        case "reverse" if forks:
            rng.choice(forks).reverse()
        case "split" if isinstance(sequence[place], list) and len(sequence[place]) > 1:
            sequence[place : place + 1] = [sequence[place][:1], sequence[place][1:]]


class StopsAfter(Hook):
    def __init__(self, units: int) -> None:
        self.left = units

    def on_event(self, event: Event) -> None:
        self.left -= isinstance(event, UnitCommitted)
        if self.left < 0:
            raise KeyError("enough")


def run(chain: Chain, directory: Path, **options: Any) -> RunResult:
    return chain.run([Item(v=index * 13) for index in range(ROWS)], directory, **options)


def counts(result: RunResult) -> dict[str, Any]:
    return {name: found for name, found in result.metadata["steps"].items() if any(map(int, [*found.values()][:6]))}


@pytest.mark.parametrize("seed", some(range(40), 4, 3))
def test_a_random_change_is_recomputed_as_printed(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    steps = built(Drawing(seed).elements(0, 4))
    old = Chain(name="random", batch_size=2, steps=steps)
    spec = spec_of(old.steps)
    for _ in range(rng.randint(1, 2)):
        edit(spec, rng)
    new = Chain(name="random", batch_size=2, steps=elements_of(spec))
    options = {"format": rng.choice(["jsonl", "parquet", "csv"]), "max_rows_per_file": 3, "window": 4}
    units = rng.choice([*range(1, 20, 3), 1000])
    with suppress(KeyError):
        run(old, tmp_path / "run", **options, hooks=(StopsAfter(units),))
    fresh = run(new, tmp_path / "fresh", **options)
    try:
        again = resume(tmp_path / "run", new)
    except ChainChanged as refused:
        printed = re.findall(r"--from (\w+)", str(refused))
        if not printed:
            assert "is of another chain" in str(refused)
            return
        again = resume(tmp_path / "run", new, from_step=printed)
    assert content(again) == content(fresh)
    assert counts(again) == counts(fresh)
    assert again.metadata["balanced"] and again.metadata["fingerprint"] == fresh.metadata["fingerprint"]
