"""A row's history as validated models, decoded on access."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from chainette.core.plan import Plan, PlanNode
from chainette.records import Row

__all__ = ["History", "received"]


def received(node: PlanNode, row: Row) -> Any:
    """The row that a node receives, as its input model (plain data if no model is known)."""
    value = row.values[node.source]
    if node.input_type is None:
        return row[node.source]
    return node.input_type.model_validate_json(value)


class History(Mapping[str, Any]):
    """The earlier values that a node may use: ids and aliases to models."""

    def __init__(self, plan: Plan, node: PlanNode, row: Row) -> None:
        self._plan, self._node, self._row = plan, node, row

    def __getitem__(self, name: str) -> Any:
        if name not in self._node.scope:
            raise KeyError(name)
        return self._plan.value(name, self._row.values)

    def __contains__(self, name: object) -> bool:
        return name in self._node.scope

    @property
    def row_id(self) -> str:
        return self._row.row_id

    def __iter__(self) -> Iterator[str]:
        return iter(self._node.scope)

    def __len__(self) -> int:
        return len(self._node.scope)
