"""Checks that two processes compiled the same chain, with marks of its nodes that are small enough for Redis.

Equal files do not imply equal chains: a prompt may come from the environment, a model from a file elsewhere. Each
process compiles the chain itself, and compares its marks with those of the process that began the run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Container, Iterable, Iterator
from typing import Any

import msgspec

from chainette.core.plan import Plan
from chainette.io.rundir.chain_changes import PARTS
from chainette.io.rundir.graph_of_plan import graph_of

__all__ = ["Marks", "differences", "marks_of", "other_nodes"]

#: Node -> part of it -> digest. `SHAPE` stands for the order of the nodes, branches and joins.
Marks = dict[str, dict[str, str]]

SHAPE = ""

#: Parts that have no name for people.
_OTHERS = ("fingerprint", "rescue")

#: Parts that matter only to processes that serve the node, because engines may have other settings elsewhere.
_SERVED = ("fingerprint", "rescue", "engine")


def marks_of(plan: Plan) -> Marks:
    """The marks of a plan's nodes."""
    graph = graph_of(plan)
    marks = {node.id: {part: _mark(node.part(part)) for part in (*PARTS, *_OTHERS)} for node in graph.steps}
    return marks | {SHAPE: {"shape": _mark([graph.shape(), graph.input_fingerprint or None])}}


def _mark(value: Any) -> str:
    return hashlib.sha256(msgspec.json.encode(value, order="deterministic")).hexdigest()[:8]


def differences(here: Marks, there: Marks, served: Container[str] | None = None) -> list[str]:
    """The differences, each as a sentence. `served` are the nodes that this process serves; None means all."""
    return [*_between(here, there, served)]


def other_nodes(differences: Iterable[str]) -> str:
    """A clause about the differences that follows the name of a chain."""
    return (
        f"compiles to other steps here than where it was enqueued: {', '.join(differences)}; its files are the same, "
        "so compare the environment variables that it reads, files outside the chain root, and versions of packages"
    )


def _between(here: Marks, there: Marks, served: Container[str] | None) -> Iterator[str]:
    for name in (name for name in there if name not in here):
        yield f"{name!r} is missing here"
    for name in (name for name in here if name not in there):
        yield f"{name!r} exists only here"
    for name in (name for name in here if name in there and name != SHAPE):
        left_out = () if served is None or name in served else _SERVED
        parts = [part for part in here[name] if part not in left_out and here[name][part] != there[name].get(part)]
        if parts:
            words = [PARTS[part] for part in parts if part in PARTS]
            yield f"{name!r} has another {' and another '.join(words)}" if words else f"{name!r} has other code or settings"
    if here.keys() == there.keys() and here[SHAPE] != there[SHAPE]:
        yield "its nodes are in another order, or joined differently"
