"""From a Step with several candidates to its part of a plan: a fork that copies rows, and a node that chooses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from chainette.core.annotations import list_of
from chainette.core.apply import ApplyNode
from chainette.core.branch import Element
from chainette.core.candidates import Picker, candidates_of
from chainette.core.compile_scope import Flow, fork_id
from chainette.core.forks import Join, Samples
from chainette.core.plan_node import NodeKind
from chainette.core.step import Step
from chainette.core.targets import Target, ToBranchEnd, ToNode

if TYPE_CHECKING:
    from chainette.core.compile import Compiler

__all__ = ["compile_samples", "value_at_end"]


def compile_samples(compiler: Compiler, step: Step[Any, Any], flow: Flow, following: Target) -> Flow:
    """Adds the node that asks for candidates, the fork around it, and the node that chooses among them."""
    name, alias = candidates_of(step.id), f"{step.id}:candidates"
    for taken in (step.id, name):
        compiler.claim(taken, step.place, flow)
    fork, branch = fork_id(step, flow), flow.named(name)
    inner = replace(flow, path=(*flow.path, branch), many=False)
    asked = compiler.add(step, name, inner, ToBranchEnd(fork, branch))
    compiler.depth += 1
    pick = ToNode(flow.named(step.id))
    join = Join(branch, flow.named(alias), ToNode(asked.id), asked.id, many=True)
    compiler.forks[fork] = Samples(fork, compiler.depth, (join,), (), pick, flow.path, last=False, count=step.n)
    compiler.types[flow.named(alias)] = list_of(Any)
    given = replace(flow.knowing(alias), source=flow.named(alias), type=None)
    picked = compiler.plan_node(_picking(step), NodeKind.PICK, step.id, given, following)
    compiler.types[picked.key] = list_of(step.output_model) if step.gives_list else step.output_model
    if not flow.path and step.yield_output:
        compiler.columns.append(step.id)
    if step.sampling.temperature == 0:
        compiler.warn(
            step.place, f"step {step.id!r}: n={step.n} at temperature 0 gives the same answer {step.n} times; raise it"
        )
    after = flow.knowing(step.id)
    return after if step.gives_list else replace(after, source=picked.id, type=step.output_model)


def value_at_end(compiler: Compiler, steps: Sequence[Element], ended: Flow) -> tuple[str, Any]:
    """The name and the type of the value at the end of a branch: its last node's rows, or its last list of candidates."""
    last = steps[-1]
    if isinstance(last, Step) and last.gives_list:
        name = ended.named(last.id)
        return name, compiler.types[name]
    return ended.source, ended.type or Any


def _picking(step: Step[Any, Any]) -> ApplyNode[Any, Any]:
    """The function that chooses among the candidates of a step."""
    picker = Picker(step)
    node: ApplyNode[Any, Any] = ApplyNode(picker, id=step.id, name=step.name, emoji=step.emoji)
    node._set(cardinality=picker.cardinality, place=step.place)
    if not step.gives_list:
        node._set(output_model=step.output_model)
    return node
