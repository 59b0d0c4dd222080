"""A row's history as validated models, decoded on access."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

from chainette.core.plan import Plan
from chainette.core.plan_node import PlanNode, Round
from chainette.records import Row

__all__ = ["History", "received"]


def received(node: PlanNode, row: Row) -> Any:
    """The row a node receives, as its input model (plain data if no model is known)."""
    value = row.values[node.source]
    if node.input_type is None:
        return row[node.source]
    return node.input_type.model_validate_json(value)


class History(Mapping[str, Any]):
    """The earlier values a node may use: ids and aliases to models."""

    def __init__(self, plan: Plan, node: PlanNode, row: Row) -> None:
        self._plan, self._node, self._row = plan, node, row

    def __getitem__(self, name: str) -> Any:
        if name not in self._node.scope:
            raise KeyError(name)
        node = self._node
        if node.round is not None and name in ("round", "previous"):
            return node.round.number if name == "round" else self._previous(node.round)
        return self._plan.value(node.key_of(name), self._row.values)

    def _previous(self, around: Round) -> SimpleNamespace:
        """The values of the round before; None in round 1."""
        names = self._plan.types[self._node.key_of("previous")].model_fields
        values = self._row.values
        return SimpleNamespace(
            **{name: self._plan.value(around.previous[name], values) if around.previous else None for name in names}
        )

    @property
    def decision(self) -> bytes | None:
        """The decision of the node's loop at the end of the round before."""
        return self._row.values.get(self._node.key)

    @property
    def received(self) -> bytes:
        """The JSON of the value the node receives."""
        return self._row.values[self._node.source]

    def __contains__(self, name: object) -> bool:
        return name in self._node.scope

    @property
    def row_id(self) -> str:
        return self._row.row_id

    def __iter__(self) -> Iterator[str]:
        return iter(self._node.scope)

    def __len__(self) -> int:
        return len(self._node.scope)
