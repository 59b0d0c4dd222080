"""The log line of a unit whose rows are in the shards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from chainette.core.answer_key import KEY_BYTES
from chainette.core.apply import Cardinality
from chainette.core.candidates import is_invalid
from chainette.core.decision import way_of
from chainette.core.plan import Plan
from chainette.core.plan_node import NodeKind, PlanNode
from chainette.io.rundir.event_types import RootDone, UnitCommitted
from chainette.io.rundir.live_roots import Commit
from chainette.io.rundir.shards import Span
from chainette.records import Outcome, parent_of, step_of

__all__ = ["unit_line"]

#: Represents the key of a row without one.
_NO_KEY = bytes(KEY_BYTES)


def unit_line(
    plan: Plan, commit: Commit, off: dict[str, Span], sums: Mapping[str, int], root_done: RootDone | None
) -> UnitCommitted:
    """The log line of a commit whose rows are at `off`; `root_done` has the counts of its root if this completes it."""
    unit, outcome = commit.unit, commit.outcome
    node = plan.stations.get(unit.node)  # joins and bad lines are counted with their root
    came = commit.taken if commit.taken is not None else len(unit.rows)
    taken = came - len(outcome.escalated) if node is not None else 0
    return UnitCommitted(
        node=step_of(unit.node),
        engine="" if node is None else node.told_engine,
        root=unit.root,
        unit=unit.part,
        off=off,
        sums=dict(sums),
        taken=taken,
        reused=_reused(node, outcome),
        shared=outcome.shared,
        keys=_keys(outcome),
        given=len(outcome.outputs),
        rejected=len(outcome.rejected),
        added=len(outcome.outputs) + len(outcome.rejected) + len(outcome.dropped) - taken if node is not None else 0,
        escalated=len(outcome.escalated),
        earlier=outcome.escalated,
        dropped=outcome.dropped,
        passed=[output.row_id for output in outcome.outputs] if node is not None and node.passes else [],
        invalid=0 if node is None or node.samples == 1 else sum(is_invalid(output.value) for output in outcome.outputs),
        reasons=dict(Counter(rejection.reason for rejection in outcome.rejected)),
        ways=_ways(node, outcome),
        usage=outcome.usage,
        root_done=root_done,
        pos=commit.pos,
    )


def _reused(node: PlanNode | None, outcome: Outcome) -> int:
    """The number of rows that were taken from an earlier run."""
    ids = (output.row_id for output in outcome.outputs if output.reused_from)
    return len({*map(parent_of, ids)} if node is not None and node.cardinality is Cardinality.MANY else [*ids])


def _keys(outcome: Outcome) -> bytes:
    """The keys of all outputs; b"" if none has one."""
    keys = [output.key for output in outcome.outputs]
    return b"".join([key or _NO_KEY for key in keys]) if any(keys) else b""


def _ways(node: PlanNode | None, outcome: Outcome) -> dict[str, int]:
    """Way -> rows that take it; {} if the node makes no decision."""
    if node is None or node.kind is not NodeKind.DECISION:
        return {}
    return dict(sorted(Counter(way_of(output.value) for output in outcome.outputs).items()))
