"""From a Chain to a Plan: structure, types along every edge, names, engines, templates.

`compile_chain` finds every problem before it gives up, each with the line the user wrote.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import BaseModel

from chainette.core.apply import ApplyNode, Cardinality
from chainette.core.branch import Branch, Element, JoinBranch
from chainette.core.chain import Chain
from chainette.core.compile_loop import check_loop, compile_loop
from chainette.core.compile_route import certain, check_route, compile_route
from chainette.core.compile_samples import compile_samples, value_at_end
from chainette.core.compile_scope import Flow, first_nodes, fork_id, target_of
from chainette.core.forks import Fork, Join, Rounds, Side
from chainette.core.identity import fingerprint_of, rescue_of
from chainette.core.loop import Loop
from chainette.core.model_fit import fills_defaults_only, json_kind, misfits, model_problems, same_but_for_case
from chainette.core.names import INPUTS, Names
from chainette.core.node import Node
from chainette.core.plan import Plan
from chainette.core.plan_node import NodeKind, PlanNode
from chainette.core.route import Route
from chainette.core.step import Step
from chainette.core.targets import End, Target, ToBranchEnd
from chainette.core.templates.literal_braces import prompt_warnings
from chainette.core.templates.references import template_problems
from chainette.core.usercode.fingerprint import fingerprint_model
from chainette.engine.backends import backend_class
from chainette.engine.config import EngineConfig, EngineRegistry, simulated
from chainette.errors import Place, PlanError, Problem, UnknownEngine
from chainette.records import CHAIN_INPUT, PYTHON, declared_of

__all__ = ["Compiler", "compile_chain"]


def compile_chain(
    chain: Chain,
    *,
    registry: EngineRegistry | None = None,
    simulate: bool = False,
    batch_size: int | None = None,
    dedupe: bool = False,
    known: Iterable[str] = (),
) -> Plan:
    """The chain as a Plan; `simulate` replaces every engine by a simulated one, and `dedupe` is the default of steps.

    `known` names values that rows bring along from elsewhere: templates may use them unchecked, and
    the input is then the value `inputs` beside them.

    Raises:
        PlanError: the chain has problems; carries all of them.
    """
    compiler = Compiler(chain, registry or chain.registry, simulate, tuple(known), dedupe)
    plan = compiler.plan(batch_size or chain.batch_size)
    errors = [problem for problem in compiler.problems if not problem.warning]
    if errors:
        raise PlanError(chain.name, errors)
    return plan


@dataclass
class Compiler:
    """A chain on its way to a plan."""

    chain: Chain
    registry: EngineRegistry
    simulate: bool
    known: tuple[str, ...]
    dedupe: bool = False
    nodes: dict[str, PlanNode] = field(default_factory=dict)
    forks: dict[str, Fork] = field(default_factory=dict)
    types: dict[str, Any] = field(default_factory=dict)
    engines: dict[str, EngineConfig] = field(default_factory=dict)
    names: Names = field(default_factory=Names)
    columns: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    depth: int = 0

    def plan(self, batch_size: int) -> Plan:
        model = self.input_model()
        source = INPUTS if self.known else CHAIN_INPUT
        self.types |= dict.fromkeys(self.known, Any) | {source: model}
        self.columns.append(source)
        if model is not BaseModel:
            self.check_model(model, self.chain.place, "the chain's input model")
        start = Flow(source, model, self.known or (CHAIN_INPUT,))
        self.sequence(self.chain.steps, start, End())
        for node in [node for node in self.nodes.values() if declared_of(node.id) == node.id]:  # others are rounds of these
            self.check_reasoning_name(node)
            self.check_templates(node)
            check_route(self, node)
            check_loop(self, node)
        return Plan(
            chain=self.chain.name,
            emoji=self.chain.emoji,
            batch_size=batch_size,
            accept=self.chain.accept,
            input_model=model,
            input_fingerprint=fingerprint_model(model),
            first=target_of(self.chain.steps[0], start),
            nodes=self.nodes,
            forks=self.forks,
            engines=self.engines,
            types=self.types,
            columns=tuple(self.columns),
            warnings=tuple(problem for problem in self.problems if problem.warning),
        )

    def input_model(self) -> type[BaseModel]:
        """The model of the records: declared by the chain, or by the nodes that see them first."""
        if self.chain.input_model is not None:
            return self.chain.input_model
        firsts = [node for node in first_nodes(self.chain.steps) if node.input_model is not None]
        if not firsts:
            self.error(self.chain.place, f"chain {self.chain.name!r}: the first node must declare its input_model")
            return BaseModel
        model: type[BaseModel] = firsts[0].input_model  # type: ignore[assignment]
        for other in firsts[1:]:
            if other.input_model is not model:
                self.error(
                    other.place,
                    f"the first nodes must agree on one input model: {firsts[0].id!r} takes {model.__name__}, "
                    f"{other.id!r} takes {_name(other.input_model)}; or give the chain an input_model",
                )
        return model

    # -- structure

    def sequence(self, elements: Sequence[Element], flow: Flow, end: Target) -> Flow:
        """Compiles elements in order; the last one's rows go to `end`."""
        targets = [*(target_of(element, flow) for element in elements[1:]), end]
        for element, following in zip(elements, targets, strict=True):
            flow = self.element(element, flow, following)
        return flow

    def element(self, element: Element, flow: Flow, following: Target) -> Flow:
        match element:
            case Route():
                return compile_route(self, element, flow, following)
            case Loop():
                return compile_loop(self, element, flow, following)
            case Step() if element.n > 1:
                return compile_samples(self, element, flow, following)
            case Node():
                return self.node(element, flow, following)
            case _:
                return self.fork(element, flow, following)

    def node(self, node: Node, flow: Flow, following: Target) -> Flow:
        assert isinstance(node, Step | ApplyNode)
        self.claim(node.id, node.place, flow)
        planned = self.add(node, node.id, flow, following)
        many = planned.cardinality is Cardinality.MANY
        names = [node.id, *([f"{node.id}_reasoning"] if isinstance(node, Step) else [])]
        if not flow.path and not planned.hidden:
            self.columns.append(node.id)
        return replace(flow.knowing(*names), source=planned.id, type=node.output_model, many=flow.many or many)

    def add(self, node: Step[Any, Any] | ApplyNode[Any, Any], id: str, flow: Flow, following: Target) -> PlanNode:
        """Adds a declared node to the plan under this id."""
        self.check_edge(node, flow)
        planned = self.plan_node(node, NodeKind.STEP if isinstance(node, Step) else NodeKind.APPLY, id, flow, following)
        self.types[planned.id] = node.output_model or Any
        if isinstance(node, Step):
            self.depth += len(node.escalate)
            self.types[planned.reasoning_key] = str | None
        if node.output_model is not None:
            self.check_model(
                node.output_model, node.place, f"{node.id!r}: output model {node.output_model.__name__}", output=True
            )
        return planned

    def plan_node(
        self,
        node: Step[Any, Any] | ApplyNode[Any, Any],
        kind: NodeKind,
        id: str,
        flow: Flow,
        following: Target,
        key: str | None = None,
    ) -> PlanNode:
        """Adds a node to the plan under this id; `key` if rows keep its value under another name."""
        step = node if isinstance(node, Step) else None
        input_type, name = node.input_model or flow.type, flow.named(id)
        engines = [self.engine(step, engine) for engine in step.engines] if step is not None else [None]
        dedupe = step is not None and step.n == 1 and (self.dedupe if step.dedupe is None else step.dedupe)
        self.depth += 1
        planned = PlanNode(
            id=name,
            kind=kind,
            depth=self.depth,
            engine=PYTHON if step is None else step.engine_name,
            escalate=() if step is None else tuple(step.escalate),
            source=flow.source,
            next=following,
            scope=flow.scope,
            cardinality=node.cardinality if isinstance(node, ApplyNode) else Cardinality.ONE,
            path=flow.path,
            node=node,
            input_type=input_type,
            output_model=node.output_model,
            fingerprint=fingerprint_of(node, input_type, engines[0], dedupe=dedupe),
            rescue=rescue_of(node, engines),
            key=key or name,
            keys=flow.keys,
            round=flow.round,
            samples=1 if step is None else step.n,
            dedupe=dedupe,
        )
        self.nodes.setdefault(name, planned)
        return planned

    def fork(self, branches: Sequence[Branch], flow: Flow, following: Target) -> Flow:
        fork = fork_id(branches, flow)
        joins, sides, aliases = [], [], []
        last = isinstance(following, End)
        for branch in branches:
            self.claim(branch.id, branch.place, flow)
            inside = flow.named(branch.id)
            inner = replace(flow, path=(*flow.path, inside), many=False)
            ended = self.sequence(branch.steps, inner, ToBranchEnd(fork, inside))
            first, (value, kind) = target_of(branch.steps[0], flow), value_at_end(self, branch.steps, ended)
            name = branch.alias if isinstance(branch, JoinBranch) else branch.id
            if name != branch.id:
                self.claim(name, branch.place, flow)
            self.types[flow.named(name)] = list.__class_getitem__(kind) if ended.many else kind
            if isinstance(branch, JoinBranch):
                self.check_ending(branch.steps, name, branch.place)
                joins.append(Join(inside, flow.named(name), first, value, ended.many))
                aliases.append(name)
            else:
                sides.append(Side(inside, first, value, ended.many))
            if not flow.path and (isinstance(branch, JoinBranch) or last):
                self.columns.append(name)
        self.depth += 1
        self.forks[fork] = Fork(fork, self.depth, tuple(joins), tuple(sides), following, flow.path, last)
        return flow.knowing(*aliases)

    # -- checks

    def claim(self, name: str, place: Place, flow: Flow) -> None:
        """Takes a name for a node, a branch or an alias, once for all rounds of a loop."""
        for problem in self.names.take(name) if flow.is_first else ():
            self.error(place, problem)

    def check_reasoning_name(self, node: PlanNode) -> None:
        """Reports a clash with the name under which rows keep a step's reasoning."""
        if node.kind is NodeKind.STEP and node.reasoning_key in self.names:
            key = node.reasoning_key
            self.error(node.place, f"{key!r} holds the reasoning of step {node.id!r}; choose another name for one of them")

    def check_edge(self, node: Step[Any, Any] | ApplyNode[Any, Any], flow: Flow) -> None:
        """Reports misfits between the node and the rows that reach it."""
        if node.input_model is not None and flow.type is not None:
            found = misfits(flow.type, node.input_model)
            for misfit in found:
                self.error(
                    node.place,
                    f"{_kind(node)} {node.id!r} takes {node.input_model.__name__}, "
                    f"but {flow.source!r} gives {flow.type.__name__}: {misfit}",
                )
            if not found and fills_defaults_only(flow.type, node.input_model):
                self.warn(
                    node.place,
                    f"{_kind(node)} {node.id!r} takes {node.input_model.__name__}, but {flow.source!r} gives "
                    f"{flow.type.__name__}, which has none of its fields: each gets its default. The result of a branch, route "
                    "or loop is in the history, under its alias",
                )
        elif flow.type is None and node.input_model is None and isinstance(node, Step):
            self.error(
                node.place,
                f"step {node.id!r}: input_model cannot be inferred, since {flow.source!r} gives an unknown type; give one",
            )
        if isinstance(node, ApplyNode) and node.output_model is None:
            self.warn(
                node.place,
                f"apply {node.id!r} does not say which model it returns; only a later input_model checks its rows",
            )
        if isinstance(node, ApplyNode) and not node.annotated:
            self.warn(
                node.place, f"apply {node.id!r} has no return annotation and counts as `-> list[...]`: rows become <id>~<i>"
            )

    def check_ending(self, steps: Sequence[Element], alias: str, place: Place) -> None:
        """Warns if a joined branch or way ends with branches, a route or a loop, whose results do not become its own."""
        last = steps[-1]
        if isinstance(last, Step | ApplyNode):
            return
        kind, inside = ("branches", last) if isinstance(last, Sequence) else (type(last).__name__.lower(), [last])
        names = [name for each in inside if (name := getattr(each, "alias", ""))]
        ending = f"end with a function that returns history[{names[0]!r}]" if names else "join it, and end with a function"
        self.warn(place, f"{alias!r} holds the row before the {kind} with which its steps end, not the result: {ending}")

    def check_model(self, model: type[BaseModel], place: Place, label: str, *, output: bool = False) -> None:
        found = model_problems(model)
        for problem in found:
            self.error(place, f"{label}: {problem}")
        if output and not found and (kind := json_kind(model)) != "object":
            self.error(place, f"{label} is a JSON {kind}, and a row is an object; put it into a field of a model")
        if output:
            for one, other in same_but_for_case(model):
                self.warn(
                    place, f"{label}: {one!r} and {other!r} differ in case only; duckdb calls the second {other + '_1'!r}"
                )
        if output and "row_id" in {info.alias or name for name, info in model.model_fields.items()}:
            self.error(place, f"{label} has a field 'row_id', which every output row has already; rename it")

    def check_templates(self, node: PlanNode) -> None:
        """Resolves every name in the prompts against the models in scope."""
        step = node.node
        if not isinstance(step, Step):
            return
        if step.prompt_builder is not None:
            for name in step.unsent:
                instead = f"leave it out, or have the builder send step.{name}"
                self.warn(
                    step.place, f"step {step.id!r}: {name} is not sent, since prompt_builder gives the messages; {instead}"
                )
            return
        scope = {name: self.types[node.key_of(name)] for name in node.scope} | {"row_id": str, "input": node.input_type}
        elsewhere = {other.id: self.out_of_reach(node, other) for other in self.nodes.values() if other.id not in node.scope}
        prompts = {"system_prompt": step.system_prompt, "user_prompt": step.user_prompt}
        wrong = False
        for label, source in prompts.items():
            for finding in certain(node, template_problems(source, scope, node.input_type, elsewhere)):
                line = f" line {finding.line}" if finding.line > 1 else ""
                self.problems.append(
                    Problem(f"step {step.id!r}, {label}{line}: {finding.message}", step.place, finding.warning)
                )
                wrong |= not finding.warning
        if not wrong:
            fields = node.input_type.model_fields if node.input_type is not None else {}
            for said in prompt_warnings(prompts, {*scope, *fields}, constant_is_fine=not fields):
                self.warn(step.place, f"step {step.id!r}: {said}")

    def out_of_reach(self, node: PlanNode, other: PlanNode) -> str:
        if other.depth >= node.depth:
            again = f"; previous.{other.id} is its value in the round before" if node.round and other.round else ""
            return f"it runs later{again}" if other is not node else f"it is this step{again}"
        if other.samples > 1:
            return f"it is a folder; later nodes see {other.node.id!r}, the candidate that was picked, or the list of all"
        branch = next(name for name in other.path if name not in node.path)
        outer, is_way, _ = branch.partition(":")
        if isinstance(self.forks.get(f"+{outer}"), Rounds):
            return f"it is inside loop {outer!r}; Loop(...).join('alias') brings its result out"
        if is_way or other.kind is NodeKind.DECISION:
            return f"it is inside route {outer!r}; Route(...).join('alias') brings the result of a row's way out"
        return f"it is inside branch {branch!r}; Branch(...).join('alias') brings a branch's result out"

    def engine(self, step: Step[Any, Any], name: str) -> EngineConfig | None:
        """An engine a step asks; None, with a problem reported, if there is none of this name."""
        try:
            config = self.registry.get(name)
        except UnknownEngine as error:
            self.error(step.place, f"step {step.id!r}: {error}; register_engine(...) declares one")
            return None
        config = self.engines[config.name] = simulated(config) if self.simulate else config
        if objection := backend_class(config.backend).objection(step.output_model):
            self.error(step.place, f"step {step.id!r}: engine {config.name!r} ({config.backend}): {objection}")
        return config

    def error(self, place: Place, message: str) -> None:
        self.problems.append(Problem(message, place))

    def warn(self, place: Place, message: str) -> None:
        self.problems.append(Problem(message, place, warning=True))


def _kind(node: Node) -> str:
    return "step" if isinstance(node, Step) else "apply"


def _name(model: type[BaseModel] | None) -> str:
    return model.__name__ if model is not None else "?"
