"""From a Route to its part of a plan: a fork whose first node decides which way each row takes."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING, Any

import msgspec

from chainette.core.annotations import NONE, allowed_values, list_of, members, type_name, union_of
from chainette.core.apply import ApplyNode
from chainette.core.compile_samples import value_at_end
from chainette.core.compile_scope import Flow, fork_id, target_of
from chainette.core.condition import Condition
from chainette.core.decision import Way, way_branch
from chainette.core.forks import Choice, Join, Side
from chainette.core.plan_node import NodeKind, PlanNode
from chainette.core.route import Chooser, Route, case_key
from chainette.core.targets import End, Target, ToBranchEnd, ToNode, ToWays
from chainette.core.templates.expression_types import TemplateFinding
from chainette.core.templates.references import expression_type, template_problems
from chainette.errors import Place, Problem

if TYPE_CHECKING:
    from chainette.core.compile import Compiler

__all__ = ["certain", "check_route", "compile_route", "require_bool", "type_of"]


@dataclass(frozen=True)
class _Way:
    """A compiled way; `name` is "" for rows that pass by."""

    name: str
    first: Target
    #: The name and the type of the value at its end; "" and None if it is empty.
    value: str
    type: Any
    #: Whether it expands rows.
    many: bool


def compile_route(compiler: Compiler, route: Route, flow: Flow, following: Target) -> Flow:
    """Adds the route's nodes and its fork to the plan."""
    fork, key = fork_id(route, flow), flow.named(route.id)
    compiler.claim(route.id, route.place, flow)
    decision = _decision_node(compiler, route, flow)
    compiler.types[key] = Way
    ways = [_compile_way(compiler, route, name, steps, flow) for name, steps in _sequences(route)]
    to_ways = ToWays(fork, tuple((way.name, way.first) for way in ways))
    compiler.nodes[key] = replace(decision, next=to_ways)
    many, last = any(way.many for way in ways), isinstance(following, End)
    for way in ways:
        kind = way.type if way.value else NONE
        compiler.types[way_branch(key, way.name)] = list_of(kind if way.value else Any) if many else kind
    if route.alias:
        compiler.claim(route.alias, route.place, flow)
    alias = flow.named(route.alias) if route.alias else way_branch(key, "")
    compiler.types[alias] = _common_type(ways, many=many)
    if not flow.path and (route.alias or last):
        compiler.columns += [key, alias]
    ends = [(way_branch(key, way.name), way) for way in ways]
    compiler.depth += 1
    compiler.forks[fork] = Choice(
        id=fork,
        depth=compiler.depth,
        joins=tuple(Join(name, alias, way.first, way.value, many) for name, way in ends if route.alias),
        sides=tuple(Side(name, way.first, way.value, many) for name, way in ends if not route.alias),
        after=following,
        path=flow.path,
        last=last,
        decision=key,
        entry=ToNode(key),
    )
    return flow.knowing(route.alias) if route.alias else flow


def _common_type(ways: Sequence[_Way], *, many: bool) -> Any:
    """The type of a row's value at the end of any way."""
    kinds = [way.type if way.value else NONE for way in ways]
    return list_of(union_of(kind for kind in kinds if kind is not NONE)) if many else union_of(kinds)


def _sequences(route: Route) -> list[tuple[str, Sequence[Any]]]:
    passing: list[tuple[str, Sequence[Any]]] = [("", ())] if route.passes else []
    return [*((way.name, way.steps) for way in route.ways), *passing]


def _compile_way(compiler: Compiler, route: Route, name: str, steps: Sequence[Any], flow: Flow) -> _Way:
    branch = way_branch(flow.named(route.id), name)
    end = ToBranchEnd(fork_id(route, flow), branch)
    if not steps:
        return _Way(name, end, "", NONE, many=False)
    if route.alias:
        compiler.check_ending(steps, route.alias, route.place)
    ended = compiler.sequence(steps, replace(flow, path=(*flow.path, branch), many=False), end)
    value, kind = value_at_end(compiler, steps, ended)
    return _Way(name, target_of(steps[0], flow), value, kind, ended.many)


def _decision_node(compiler: Compiler, route: Route, flow: Flow) -> PlanNode:
    """Adds the node that decides; its rows end here until its ways are known."""
    node = ApplyNode(Chooser(route), id=route.id, emoji=route.emoji)
    node._set(place=route.place)
    inside = replace(flow, path=(*flow.path, flow.named(route.id)))
    return compiler.plan_node(node, NodeKind.DECISION, route.id, inside, End())


# -- checks


def check_route(compiler: Compiler, node: PlanNode) -> None:
    """Reports conditions that cannot work, cases that cannot occur, and values without a case."""
    if not isinstance(node.node, ApplyNode) or not isinstance(node.node.fn, Chooser):
        return
    route = node.node.fn.route
    for way in route.ways:
        if way.when is not None:
            require_bool(compiler, route.place, way.when, type_of(compiler, node, way.when))
    if route.on is not None:
        _check_cases(compiler, route, type_of(compiler, node, route.on))


def type_of(compiler: Compiler, node: PlanNode, condition: Condition) -> Any:
    """The type of a condition's values; reports names that are not in scope, and a parameter whose model is not the row's."""
    if not isinstance(condition.given, str):
        wanted = condition.hints.get(condition.parameters[0])
        if isinstance(wanted, type) and node.input_type is not None and not issubclass(node.input_type, wanted):
            compiler.error(
                node.place,
                f"{condition.label} takes {wanted.__name__}, but {node.source!r} gives {node.input_type.__name__}",
            )
        return condition.hints.get("return", Any)
    scope = {name: compiler.types[node.key_of(name)] for name in node.scope} | {"row_id": str, "input": node.input_type}
    elsewhere = {
        other.id: compiler.out_of_reach(node, other) for other in compiler.nodes.values() if other.id not in node.scope
    }
    findings = [*certain(node, template_problems(condition.given, scope, node.input_type, elsewhere))]
    for finding in findings:
        compiler.problems.append(Problem(f"{condition.label}: {finding.message}", node.place, finding.warning))
    wrong = any(not finding.warning for finding in findings)
    return Any if wrong else expression_type(condition.given, scope, node.input_type)


def certain(node: PlanNode, findings: Iterable[TemplateFinding]) -> Iterable[TemplateFinding]:
    """The findings. If a value of `previous` may be None, that is an error: it is None for every row in round 1."""
    for finding in findings:
        sure = node.round is not None and finding.message.startswith("'previous.") and "may be None" in finding.message
        yield replace(finding, warning=False) if sure else finding


def require_bool(compiler: Compiler, place: Place, condition: Condition, kind: Any) -> None:
    if kind is not Any and {*members(kind)} != {bool}:
        compiler.error(place, f"{condition.label} must be true or false, but it is {type_name(kind)}")


def _check_cases(compiler: Compiler, route: Route, kind: Any) -> None:
    """Compares the cases with the values that can occur."""
    values = _possible(kind)
    cases = [way.key for way in route.ways if way.key]
    if values is None:
        _check_open_cases(compiler, route, kind)
        return
    possible = [case_key(value) for value in values]
    for case in cases:
        if case not in possible:
            close = difflib.get_close_matches(case, possible, n=1)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(possible)}"
            compiler.error(route.place, f"route {route.id!r}: the case {case} cannot occur; {hint}")
    missing = [value for value in possible if value not in cases]
    if missing and route.default is None:
        compiler.error(
            route.place,
            f"route {route.id!r} has no case for {', '.join(missing)}; "
            "add cases for them, or default=[], with which their rows go on as they are",
        )


def _check_open_cases(compiler: Compiler, route: Route, kind: Any) -> None:
    kinds = {*members(kind)}
    plain = kinds - {NONE}
    if Any not in kinds and plain <= {str, int, float, bool}:
        for way in route.ways:
            value = msgspec.json.decode(way.key) if way.key else None
            if way.key and type(value) not in kinds and not (type(value) is int and float in kinds):
                compiler.error(
                    route.place, f"route {route.id!r}: the case {way.key} cannot occur, since on= is {type_name(kind)}"
                )
    if route.default is None:
        compiler.error(
            route.place,
            f"route {route.id!r}: on= is {'of an unknown type' if kind is Any else type_name(kind)}, so values other than the "
            "cases may occur; give default=[...] for them, or make the field a Literal or an Enum",
        )


def _possible(kind: Any) -> list[Any] | None:
    """The values of a type; None if they cannot be listed."""
    found: list[Any] = []
    for part in members(kind):
        values = [None] if part is NONE else [True, False] if part is bool else allowed_values(part)
        if values is None:
            return None
        found += [value.value if isinstance(value, Enum) else value for value in values]
    return found
