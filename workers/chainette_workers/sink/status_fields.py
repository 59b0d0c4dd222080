"""How far a run is, as its sink writes it down in Redis for `chainette status`."""

from __future__ import annotations

from typing import Any

import msgspec

from chainette.core.plan import Plan
from chainette.io.rundir.open import graph_of
from chainette.io.rundir.replay import RunState

__all__ = ["counts_of", "outline_of"]

_NODE = ("id", "path", "kind", "engine", "next")
_FORK = ("id", "joins", "sides", "after")


def outline_of(plan: Plan) -> str:
    """What feeds what, and which engine answers: graph.json without models and prompts."""
    graph = graph_of(plan)
    return _text(
        {
            "nodes": [{name: node[name] for name in _NODE} for node in graph["nodes"]],
            "forks": [{name: fork[name] for name in _FORK} for fork in graph["forks"]],
            "engines": dict.fromkeys(graph["engines"]),
        }
    )


def counts_of(state: RunState) -> str:
    """Records, and per node: rows in, rows out, rejected, answer tokens; what is durable of each."""
    nodes = {
        name: [counts.taken, counts.given, counts.rejected, counts.usage.completion_tokens]
        for name, counts in state.nodes.items()
    }
    return _text({"records": state.records, "expected": state.expected, "nodes": nodes})


def _text(value: Any) -> str:
    return msgspec.json.encode(value).decode()
