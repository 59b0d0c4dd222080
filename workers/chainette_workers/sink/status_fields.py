"""The progress of a run, as its sink writes it into Redis for `chainette status`."""

from __future__ import annotations

from typing import Any

from chainette.core.plan import Plan
from chainette.fleet.protocol.run_fields import Counts
from chainette.io.rundir.graph_of_plan import graph_of
from chainette.io.rundir.run_state import RunState

__all__ = ["counts_of", "outline_of"]


def outline_of(plan: Plan) -> dict[str, Any]:
    """Nodes, edges and engines: graph.json without models and prompts."""
    graph, names = graph_of(plan), ("id", "kind", "engine", "next", "path")
    nodes = [{name: getattr(node, name) for name in names} for node in graph.nodes]
    return {"first": graph.first, "nodes": nodes, "forks": graph.forks, "engines": {name: {} for name in graph.engines}}


def counts_of(state: RunState) -> Counts:
    nodes = {
        name: (counts.taken, counts.given, counts.rejected, counts.usage.completion_tokens)
        for name, counts in state.nodes.items()
    }
    return Counts(state.records, state.expected, nodes, state.bill.cost())
