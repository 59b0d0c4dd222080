"""One seed's scenario: a chain, an input, the way it is run, and the faults that befall it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from tests.simulation.world import Fault
from tests.support.drawn import Drawing, Element, choices_of, nodes_of

__all__ = ["KINDS", "Scenario", "drawn", "drawn_chain"]

#: Consecutive seeds that have a chain in common, since compiling one takes longer than running it.
_TOGETHER = 50

#: Site -> its possible accidents, in a local run and in a fleet.
KINDS: dict[str, tuple[str, ...]] = {
    "disk": (
        "disk error",
        "disk full",
        "slow disk",
        "killed before a disk call",
        "killed within a disk call",
        "killed after a disk call",
        *("power cut",) * 4,  # without it fsync does nothing
    ),
    "engine": (
        "engine down",
        "engine fails midway",
        "slow engine",
        "engine tells nothing early",
        "engine answers twice",
    ),
    "open": ("engine down",),
    "turn": ("main killed", "Ctrl-C"),
    "queue": (
        "request lost",
        "request late",
        "reply lost",
        "killed before a call",
        "killed after a call",
        "queue emptied",
        "queue rolled back",
        "key lost",
    ),
    "fleet turn": ("main killed", "Ctrl-C", "worker killed", "worker stopped", "worker frozen", "run paused"),
}

#: The last event of a site at which something may happen.
_LAST = {"disk": 400, "engine": 60, "open": 6, "turn": 600, "queue": 700}


@dataclass(frozen=True)
class Scenario:
    """A seed's scenario, as data: a smaller one is made by leaving things out."""

    seed: int
    elements: Sequence[Element]
    #: The numbers of the input's records; None is a record that does not fit.
    numbers: tuple[int | None, ...]
    batch_size: int
    format: Literal["jsonl", "parquet", "csv"]
    rows_per_file: int
    window: int | None
    #: 0 runs in one process.
    workers: int
    faults: tuple[Fault, ...]
    #: The action once the run is finished: "retry", or "from" and a node.
    then: tuple[str, ...] = ()
    #: Rows the run accepts, and more that it accepts once it is finished; () if it takes all.
    accept: tuple[int, ...] = ()
    #: Whether rows with equal questions share one answer; then many have them.
    dedupe: bool = False

    def __str__(self) -> str:
        where = f"{self.workers} workers" if self.workers else "one process"
        faults = ", ".join(map(str, self.faults)) or "no faults"
        accepted = (f"accept {self.accept}, " if self.accept else "") + "dedupe, " * self.dedupe
        return (
            f"seed {self.seed}: {len(nodes_of(self.elements))} nodes, {len(self.numbers)} records in batches of "
            f"{self.batch_size}, window {self.window}, {self.format}, {accepted}{where}; then {self.then}; {faults}"
        )


def drawn(seed: int) -> Scenario:
    """The scenario of a seed."""
    rng = random.Random(f"scenario {seed}")
    chain, dedupe = seed // _TOGETHER, random.Random(f"dedupe {seed}").random() < 0.2
    elements = Drawing(chain, asks=True, routes=True).elements(0, 4)
    common = random.Random(f"chain {chain}")
    workers = rng.choice((0, 0, 0, 1, 2))
    then = [
        rng.choice(("retry", rng.choice([f"from {node.id}" for node in (*nodes_of(elements), *choices_of(elements))])))
        for _ in range(rng.choice((0, 0, 1, 2)))
    ]
    return Scenario(
        seed,
        elements,
        _numbers(rng, rng.randint(1, 8), kinds=3 if dedupe else 1000),
        common.choice((1, 2, 2, 3, 4)),
        rng.choice(("jsonl",) * 8 + ("parquet", "csv")),
        rng.choice((1, 3, 100, 100, 100)),
        rng.choice((None, 1, 2, 3, 6)),
        workers,
        tuple(sorted(_fault(rng, fleet=workers > 0) for _ in range(rng.choice((0, 1, 2, 3, 4, 6))))),
        () if (accept := _accept(seed)) else tuple(then),
        accept,
        dedupe,
    )


def _accept(seed: int) -> tuple[int, ...]:
    rng = random.Random(f"accept {seed}")
    return tuple(sorted(rng.sample(range(1, 20), rng.choice((1, 2))))) if rng.random() < 0.2 else ()


def drawn_chain(chain: int, records: int) -> Scenario:
    """The scenario of the first seed with this chain, but with so many records, and without faults or operations."""
    rng = random.Random(f"records {chain}")
    return replace(drawn(chain * _TOGETHER), numbers=_numbers(rng, records), faults=(), then=(), accept=(), dedupe=False)


def _numbers(rng: random.Random, records: int, *, kinds: int = 1000) -> tuple[int | None, ...]:
    return tuple(rng.randrange(kinds) if rng.random() < 0.93 else None for _ in range(records))


def _fault(rng: random.Random, *, fleet: bool) -> Fault:
    site = rng.choice(("disk", "engine", "open", "turn", *(("queue", "queue", "queue", "turn") if fleet else ())))
    kinds = KINDS["fleet turn" if fleet and site == "turn" else site]
    at = int(_LAST[site] ** rng.random()) if rng.random() < 0.5 else rng.randint(1, _LAST[site])
    return Fault(site, at, rng.choice(kinds), round(rng.random(), 3))
