"""From a Loop to its part of a plan: its rounds, each with a node at its end that decides which rows go on."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, create_model

from chainette.core.annotations import NONE, members, type_name, union_of
from chainette.core.apply import ApplyNode
from chainette.core.compile_route import require_bool, type_of
from chainette.core.compile_scope import Flow, fork_id, target_of
from chainette.core.condition import Condition
from chainette.core.decision import LastRound, way_branch
from chainette.core.forks import Join, Rounds, Side
from chainette.core.loop import Judge, Loop
from chainette.core.plan_node import NodeKind, PlanNode, Round
from chainette.core.targets import End, Target, ToBranchEnd, ToNode, ToWays
from chainette.records import declared_of
from chainette.utils.argument_advice import nearest

if TYPE_CHECKING:
    from chainette.core.compile import Compiler

__all__ = ["MAX_NODES", "check_loop", "compile_loop"]

#: Nodes of a plan once its loops are unrolled.
MAX_NODES = 1000


def compile_loop(compiler: Compiler, loop: Loop, flow: Flow, following: Target) -> Flow:
    """Adds the nodes of all rounds and the loop's fork to the plan."""
    compiler.claim(loop.id, loop.place, flow)
    _require_names_free(compiler, loop, flow)
    key, fork, alias = flow.named(loop.id), fork_id(loop, flow), flow.named(loop.alias or f"{loop.id}:")
    first, last = target_of(loop.steps[0], _entered(flow, loop, 1, {})), isinstance(following, End)
    ends: list[Side] = []
    previous: dict[str, str] = {}
    result, result_type = "", None
    for number in range(1, loop.max_rounds + 1):
        inner, known = _entered(flow, loop, number, previous), len(compiler.problems)
        ended = compiler.sequence(loop.steps, inner, ToNode(inner.named(loop.id)))
        own = [name for name in ended.scope if name not in inner.scope]
        if number == 1:
            compiler.types[f"{key}.round"], compiler.types[f"{key}.previous"] = int, _previous_model(compiler, ended, own)
            result = _result(compiler, loop, ended, own)
            _require_one_row(compiler, loop, ended)
        else:
            del compiler.problems[known:]  # they repeat those of round 1
        previous = {name: ended.keys.get(name, name) for name in own}
        result_type = compiler.types.get(previous.get(result, ""), Any)
        branch = way_branch(key, str(number))
        compiler.types[branch] = result_type
        ends.append(Side(branch, target_of(loop.steps[0], inner), previous.get(result, ""), many=False))
        _add_judge(compiler, loop, flow, ended, number, branch)
        if len(compiler.nodes) > MAX_NODES:
            compiler.error(loop.place, f"loop {loop.id!r}: the chain has more than {MAX_NODES:,} nodes; lower max_rounds")
            break
    compiler.types[key], compiler.types[alias] = LastRound, result_type
    if loop.alias:
        compiler.claim(loop.alias, loop.place, flow)
    if not flow.path and (loop.alias or last):
        compiler.columns += [key, alias]
    compiler.depth += 1
    compiler.forks[fork] = Rounds(
        id=fork,
        depth=compiler.depth,
        joins=tuple(Join(end.branch, alias, end.first, end.value, many=False) for end in ends if loop.alias),
        sides=tuple(end for end in ends if not loop.alias),
        after=following,
        path=flow.path,
        last=last,
        decision=key,
        entry=first,
    )
    return flow.knowing(loop.alias) if loop.alias else flow


def _entered(flow: Flow, loop: Loop, number: int, previous: dict[str, str]) -> Flow:
    """The state at the beginning of a round: the row before the loop, and the round before."""
    rounds, key = (*flow.rounds, number), flow.named(loop.id)
    scope = tuple(name for name in flow.scope if name not in ("round", "previous"))
    return replace(
        flow,
        scope=(*scope, "round", "previous"),
        path=(*flow.path, way_branch(key, str(number))),
        many=False,
        rounds=rounds,
        round=Round(number, "~".join(map(str, rounds)), previous),
        keys={**flow.keys, "round": f"{key}.round", "previous": f"{key}.previous"},
    )


def _add_judge(compiler: Compiler, loop: Loop, flow: Flow, ended: Flow, number: int, branch: str) -> None:
    """The node that decides at the end of a round."""
    fork = fork_id(loop, flow)
    ways: list[tuple[str, Target]] = [("ended", ToBranchEnd(fork, branch))]
    if number < loop.max_rounds:
        ways.append(("again", target_of(loop.steps[0], _entered(flow, loop, number + 1, {}))))
    elif loop.on_exhausted != "reject":
        ways.append(("kept", ToBranchEnd(fork, branch)))
    node = ApplyNode(Judge(loop, number), id=loop.id, emoji=loop.emoji)
    node._set(place=loop.place)
    compiler.plan_node(node, NodeKind.DECISION, loop.id, ended, ToWays(fork, tuple(ways)), key=flow.named(loop.id))


def _previous_model(compiler: Compiler, ended: Flow, own: Iterable[str]) -> type[BaseModel]:
    """The type of `previous`: everything a round gives, or None."""
    fields: dict[str, Any] = {name: (union_of([compiler.types[ended.keys.get(name, name)], NONE]), None) for name in own}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an id may be the name of one of pydantic's methods
        return create_model("Previous", __config__=ConfigDict(protected_namespaces=(), arbitrary_types_allowed=True), **fields)


def _result(compiler: Compiler, loop: Loop, ended: Flow, own: list[str]) -> str:
    """The name whose value the alias holds."""
    names = [name for name in own if not (name.endswith("_reasoning") and name.removesuffix("_reasoning") in own)]
    if loop.result is not None:
        if loop.result not in names:
            compiler.error(
                loop.place, f"loop {loop.id!r}: result={loop.result!r} is not a node of it{nearest(loop.result, names)}"
            )
        return loop.result
    read = {name for one in (loop.until, loop.best) if one is not None for name in _read(one, ended, own)}
    return next((name for name in reversed(names) if name not in read), names[-1] if names else "")


def _read(condition: Condition, ended: Flow, own: list[str]) -> set[str]:
    """The values of a round a condition reads; a function reads its item, the last one."""
    if condition.expression is None:
        return {declared_of(ended.source)}
    names = condition.expression.names
    return {*names & {*own}} | ({declared_of(ended.source)} if names - {*ended.scope, "row_id"} else set())


# -- checks


def _require_names_free(compiler: Compiler, loop: Loop, flow: Flow) -> None:
    for name in ("round", "previous"):
        if flow.round is None and (name in flow.scope or name in compiler.names):
            compiler.error(
                loop.place, f"loop {loop.id!r}: {name!r} means something else inside a loop; rename that node or alias"
            )


def _require_one_row(compiler: Compiler, loop: Loop, ended: Flow) -> None:
    if ended.many:
        compiler.error(
            loop.place,
            f"loop {loop.id!r}: a node of it expands rows; put it into a branch, Branch(...).join('alias'), or before the loop",
        )


def check_loop(compiler: Compiler, node: PlanNode) -> None:
    """Reports conditions that cannot work."""
    if not isinstance(node.node, ApplyNode) or not isinstance(node.node.fn, Judge):
        return
    loop = node.node.fn.loop
    require_bool(compiler, loop.place, loop.until, type_of(compiler, node, loop.until))
    if loop.best is not None:
        kind = type_of(compiler, node, loop.best)
        if kind is not Any and not {*members(kind)} - {NONE} <= {int, float}:
            compiler.error(loop.place, f"{loop.best.label} must be a number, but it is {type_name(kind)}")
