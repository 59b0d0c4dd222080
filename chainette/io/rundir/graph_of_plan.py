"""Converts a plan to the graph in graph.json."""

from __future__ import annotations

from typing import Any

import msgspec

from chainette.core.plan import Plan
from chainette.core.plan_node import PlanNode
from chainette.io.rundir.graph import Graph
from chainette.io.tables.features import dataset_features
from chainette.io.tables.schemas import Added, ShardSchemas
from chainette.records import declared_of
from chainette.utils.json_schema import json_schema_of

__all__ = ["graph_of"]

_NOTHING = Added()


def graph_of(plan: Plan, added: Added = _NOTHING) -> Graph:
    """The graph of a plan; it is equal to the graph that is read back from graph.json."""
    schemas = ShardSchemas(plan, added)
    graph = {
        "chain": plan.chain,
        "emoji": plan.emoji,
        "fingerprint": plan.fingerprint,
        "batch_size": plan.batch_size,
        "parameters": dict(plan.parameters),
        "input_model": json_schema_of(plan.input_model),
        "input_fingerprint": plan.input_fingerprint,
        "columns": list(plan.columns),
        "first": _plain(plan.first),
        "nodes": [_describe(plan, node) for node in plan.nodes.values()],
        "forks": [_plain(fork) for fork in plan.forks.values()],
        "engines": {name: config.describe() for name, config in plan.engines.items()},
        "features": {folder: dataset_features(schemas.columns(folder)) for folder in schemas},
    }
    return msgspec.json.decode(msgspec.json.encode(graph), type=Graph)


def _describe(plan: Plan, node: PlanNode) -> dict[str, Any]:
    from chainette.core.prompt import prompter
    from chainette.core.step import Step

    described: dict[str, Any] = {
        "id": node.id,
        "name": node.node.name,
        "kind": node.kind,
        "folder": node.folder,
        "hidden": node.hidden,
        "engine": node.engine,
        "input": node.source,
        "next": _plain(node.next),
        "path": list(node.path),
        "cardinality": node.cardinality,
        "input_model": node.input_type.__name__ if node.input_type else None,
        "fingerprint": node.fingerprint,
        "rescue": dict(node.rescue),
    }
    described |= {"escalate": list(node.node.escalate)} if isinstance(node.node, Step) and node.node.escalate else {}
    if declared_of(node.id) != node.id:
        return described
    described["output_schema"] = json_schema_of(node.output_model) if node.output_model else None
    if isinstance(node.node, Step):
        described |= {
            "system_prompt": node.node.system_prompt,
            "user_prompt": node.node.user_prompt,
            "output_format_instruction": prompter(plan, node).instruction,
            "sampling": msgspec.to_builtins(node.node.sampling),
            "max_attempts": node.node.max_attempts,
        }
        described |= {"samples": node.samples} if node.samples > 1 else {}
        described |= {"dedupe": True} if node.dedupe else {}
        described |= {"instead_of": node.instead_of} if node.instead_of else {}
    if node.picker is not None:
        described |= {"pick": node.picker.chosen}
    return described


def _plain(value: Any) -> Any:
    """A target or a fork as plain data with a tag."""
    return {"to": type(value).__name__} | {key: _entry(entry) for key, entry in vars(value).items()}


def _entry(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_entry(entry) for entry in value]
    return _plain(value) if hasattr(value, "__dataclass_fields__") else value
