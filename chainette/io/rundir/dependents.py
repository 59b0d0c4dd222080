"""The dependencies between nodes: the smallest set to recompute, and all nodes that depend on it."""

from __future__ import annotations

from collections.abc import Iterable

from chainette.core.decision import way_branch
from chainette.core.forks import Rounds
from chainette.core.plan import Plan
from chainette.core.targets import ToWays
from chainette.io.rundir.chain_changes import FLATTENED
from chainette.io.rundir.run_state import RunState
from chainette.records import CHAIN_INPUT, declared_of

__all__ = ["affected_by", "lost_nodes", "starts_of"]


def affected_by(plan: Plan, steps: Iterable[str]) -> frozenset[str]:
    """The nodes of these steps, in every round of a loop, and all nodes that depend on them."""
    given = {*steps}
    affected = given | {node for node in plan.nodes if declared_of(node) in given}
    behind, deciding = _behind_aliases(plan), _deciding_nodes(plan)
    for node in plan.nodes.values():
        used = {node.key_of(name) for name in node.scope} | {deciding.get(branch, "") for branch in node.path}
        if not used.isdisjoint(affected) or any(not affected.isdisjoint(behind.get(name, ())) for name in used):
            affected.add(node.id)
    return frozenset(affected)


def starts_of(plan: Plan, nodes: Iterable[str]) -> list[str]:
    """The smallest set of nodes, in the plan's order, that all of them depend on; `flattened` if there is no other."""
    wanted = {*nodes}
    starts: list[str] = []
    for node in (CHAIN_INPUT, *plan.nodes):
        if node in wanted and node not in affected_by(plan, starts):
            starts.append(node)
    return starts or [FLATTENED]


def lost_nodes(plan: Plan, state: RunState) -> list[str]:
    """Nodes whose rows (`yield_output=False`) were deleted when the run finished."""
    return [node.id for node in plan.nodes.values() if node.hidden and not node.passes and state.swept]


def _deciding_nodes(plan: Plan) -> dict[str, str]:
    """Way of a route, or round of a loop -> the node that decides which rows enter it; a first round has none."""
    found: dict[str, str] = {}
    for node in plan.nodes.values():
        if isinstance(node.next, ToWays):
            ways = [way for way, _ in node.next.ways]
            if node.round is not None and isinstance(plan.forks[node.next.fork], Rounds):
                ways = [str(node.round.number + 1)]
            found |= {way_branch(node.key, way): node.id for way in ways}
    return found


def _behind_aliases(plan: Plan) -> dict[str, set[str]]:
    """Alias -> the nodes that compute its value."""
    inside: dict[str, set[str]] = {}
    for node in plan.nodes.values():
        for branch in node.path:
            inside.setdefault(_fork_part(branch), set()).add(node.id)
    found: dict[str, set[str]] = {}
    for fork in plan.forks.values():
        for join in fork.joins:
            found.setdefault(join.alias, set()).update(inside.get(_fork_part(join.branch), ()))
    return found


def _fork_part(branch: str) -> str:
    """The route or loop of a branch; the branch itself if it is neither a way nor a round."""
    return branch.partition(":")[0]
