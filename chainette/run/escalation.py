"""Escalation: whether a row whose answers are no good goes on to the next engine of its step, or is rejected."""

from __future__ import annotations

import msgspec

from chainette.core.plan_node import PlanNode
from chainette.records import Earlier, Reason, Row, Spent

__all__ = ["escalated"]

#: Reasons that would hold with any engine.
_FINAL = frozenset({Reason.TEMPLATE_ERROR, Reason.TOO_LARGE})


def escalated(node: PlanNode, row: Row, reason: Reason, asks: int, spent: Spent) -> Row | None:
    """The row as the next engine gets it; None if there is no other engine, or none could do better."""
    if not node.escalate or reason in _FINAL:
        return None
    return msgspec.structs.replace(row, earlier=Earlier(asks, spent, node.rank + 1))
