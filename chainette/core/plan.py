"""The plan: a chain compiled to flat nodes with explicit targets. Immutable; made by `core.compile`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property, lru_cache
from itertools import groupby
from typing import Any

from pydantic import BaseModel, TypeAdapter

from chainette.core.apply import ApplyNode, Cardinality
from chainette.core.branch import JoinBranch
from chainette.core.candidates import Picker
from chainette.core.decision import round_end_of, way_branch, way_of
from chainette.core.step import Step
from chainette.engine.config import EngineConfig
from chainette.errors import Place, Problem
from chainette.records import PYTHON, Row, child_id, declared_of, parent_of, row_order, station_of
from chainette.utils.ids import snake_case

__all__ = [
    "PYTHON",
    "Choice",
    "End",
    "Fork",
    "Join",
    "NodeKind",
    "Plan",
    "PlanNode",
    "Round",
    "Rounds",
    "Samples",
    "Side",
    "Target",
    "ToBranchEnd",
    "ToFork",
    "ToNode",
    "ToWays",
    "join_adapter",
]


class NodeKind(StrEnum):
    """The kind of a node's computation."""

    #: an engine
    STEP = "step"
    #: a Python function
    APPLY = "apply"
    #: the choice of a row's way
    DECISION = "decision"
    #: the choice among a row's candidates
    PICK = "pick"


@dataclass(frozen=True)
class ToNode:
    """Rows go on to a node."""

    node: str


@dataclass(frozen=True)
class ToFork:
    """Rows go on to a list of branches."""

    fork: str


@dataclass(frozen=True)
class ToBranchEnd:
    """Rows end a branch of a fork."""

    fork: str
    branch: str


@dataclass(frozen=True)
class ToWays:
    """Rows go on as the node before decided for each of them."""

    fork: str
    #: (way, destination of its rows); "" is the way of rows for which no case holds.
    ways: tuple[tuple[str, Target], ...]


@dataclass(frozen=True)
class End:
    """Rows end the main flow."""


Target = ToNode | ToFork | ToBranchEnd | ToWays | End


@dataclass(frozen=True)
class Round:
    """One round of the innermost loop around a node."""

    #: From 1.
    number: int
    #: Rounds of all loops around it, outermost first: `2`, or `2~3` in a loop within a loop.
    path: str
    #: Node or alias of the loop -> the name under which rows keep its value of the round before; {} in round 1.
    previous: Mapping[str, str]


@dataclass(frozen=True)
class PlanNode:
    """One node that does work."""

    id: str
    kind: NodeKind
    #: Stages from the start of the chain; deeper units are taken first.
    depth: int
    #: The engine's name; "python" for Apply.
    engine: str
    #: The name of the row value that is this node's input.
    source: str
    #: The destination of its rows.
    next: Target
    #: Names its templates or its history may use, ids before bare fields.
    scope: tuple[str, ...]
    cardinality: Cardinality
    #: Branches around it, outermost first.
    path: tuple[str, ...]
    node: Step[Any, Any] | ApplyNode[Any, Any]
    input_type: Any
    output_model: type[BaseModel] | None
    #: Changes when anything that decides its rows changes: prompts, models, sampling, engine, code.
    fingerprint: str
    #: Settings outside the fingerprint that can only rescue rejected rows (`core.settings`).
    rescue: Mapping[str, Any]
    #: The name under which a row keeps its value: its id, but one name for the decisions of all rounds of a loop.
    key: str
    #: Name in its templates -> name under which rows keep the value, if that is another: `draft` -> `draft#2`.
    keys: Mapping[str, str]
    #: Its round, inside a loop.
    round: Round | None = None
    #: The engines that are asked, in this order, for rows that `engine` cannot answer.
    escalate: tuple[str, ...] = ()
    #: The number of `engine` among those of the step, from 0.
    rank: int = 0
    #: How often each row is asked, of a step whose rows are candidates; 1 for all other nodes.
    samples: int = 1
    #: Whether rows with equal requests are asked once, and share the answer.
    dedupe: bool = False

    @property
    def folder(self) -> str:
        return snake_case(declared_of(self.id))

    @property
    def logged_folder(self) -> str:
        """Its folder as the log names it."""
        return f".held/{self.folder}" if self.hidden else self.folder

    def key_of(self, name: str) -> str:
        """The name under which rows keep the value of a name in scope."""
        return self.keys.get(name, name)

    @property
    def engines(self) -> tuple[str, ...]:
        """Every engine that may be asked for its rows."""
        return (self.engine, *self.escalate)

    @property
    def station(self) -> str:
        """The name of the queue of its units."""
        return station_of(self.id, self.rank)

    @property
    def told_engine(self) -> str:
        """The engine, if its rows name the one that answered; "" if the step asks only one."""
        return self.engine if isinstance(self.node, Step) and self.node.escalate else ""

    def asked_about(self, row_id: str) -> tuple[str, int]:
        """(the row the prompt is about, the number of the candidate)."""
        return (row_id, 0) if self.samples == 1 else (parent_of(row_id), row_order(row_id)[-1])

    def at(self, engine: int) -> PlanNode:
        """The node with the engine that comes so many places later."""
        if not engine:
            return self
        return replace(self, engine=self.engines[engine], escalate=self.escalate[engine:], rank=self.rank + engine)

    @property
    def place(self) -> Place:
        return self.node.place

    @property
    def hidden(self) -> bool:
        """Whether its rows stay out of the outputs (`yield_output=False`)."""
        return self.step is not None and not (self.step.yield_output and not self.passes)

    @cached_property
    def step(self) -> Step[Any, Any] | None:
        """The step that declares it; None for other functions."""
        if isinstance(self.node, Step):
            return self.node
        return self.picker.step if self.picker is not None else None

    @cached_property
    def picker(self) -> Picker | None:
        """The choice among candidates it makes; None for other nodes."""
        fn = self.node.fn if isinstance(self.node, ApplyNode) else None
        return fn if isinstance(fn, Picker) else None

    @cached_property
    def passes(self) -> bool:
        """Whether its rows go on as they are, so that only their ids are kept: enough of their candidates are valid."""
        return self.kind is NodeKind.PICK and self.output_model is None

    @cached_property
    def reasoning_key(self) -> str:
        step, *rounds = self.id.split("#")
        return "#".join([f"{step}_reasoning", *rounds])


@dataclass(frozen=True)
class Join:
    """A branch whose final value is merged back."""

    branch: str
    alias: str
    first: Target
    #: The name of the row value at the end of the branch.
    value: str
    #: Whether the alias is a list.
    many: bool


@dataclass(frozen=True)
class Side:
    """A branch that is not merged."""

    branch: str
    first: Target
    value: str
    many: bool


@dataclass(frozen=True)
class Fork:
    """A list of branches: rows run through all of them, then go on once the joins are in."""

    id: str
    depth: int
    joins: tuple[Join, ...]
    sides: tuple[Side, ...]
    #: The destination of the rows after the branches.
    after: Target
    #: Branches around it, outermost first.
    path: tuple[str, ...]
    #: Whether the chain ends here, so that side branches become columns of `flattened/`.
    last: bool

    @property
    def joined_starts(self) -> tuple[Target, ...]:
        """The first destinations of rows the fork waits for."""
        return tuple(join.first for join in self.joins)

    @property
    def side_starts(self) -> tuple[Target, ...]:
        """The first destinations of rows it does not wait for."""
        return tuple(side.first for side in self.sides)

    def entering(self, rows: list[Row]) -> list[Row]:
        """The rows that begin its branches."""
        return rows


@dataclass(frozen=True)
class Samples(Fork):
    """The candidates of a step: its one branch takes several copies of each row."""

    count: int

    def entering(self, rows: list[Row]) -> list[Row]:
        numbers = range(self.count)
        return [Row(child_id(row.row_id, number), row.values, row.line, row.key) for row in rows for number in numbers]


@dataclass(frozen=True)
class Choice(Fork):
    """A fork whose rows take one of its ways each: a Route. All its joins give the same alias."""

    #: The name under which rows keep their decision.
    decision: str
    entry: Target

    @property
    def joined_starts(self) -> tuple[Target, ...]:
        return (self.entry,) if self.joins else ()

    @property
    def side_starts(self) -> tuple[Target, ...]:
        return () if self.joins else (self.entry,)

    @cached_property
    def many(self) -> bool:
        """Whether the alias is a list."""
        return any(join.many for join in self.joins)

    @property
    def alias(self) -> str:
        return self.joins[0].alias

    @property
    def ending(self) -> str:
        """The name of the values at the ends of the ways if the chain ends here without a join; no id can clash with it."""
        return way_branch(self.decision, "")

    @cached_property
    def _ends(self) -> Mapping[str, Join | Side]:
        ends: tuple[Join | Side, ...] = (*self.joins, *self.sides)
        return {end.branch: end for end in ends}

    def end_of(self, decision: bytes) -> Join | Side:
        """The end of the way that was decided for a row."""
        return self._ends[way_branch(self.decision, way_of(decision))]

    def settles(self, decision: bytes) -> bool:  # noqa: ARG002
        """Whether nothing else is decided for the row."""
        return True

    def recorded(self, decision: bytes) -> bytes:
        """The part of the decision a row keeps after the fork."""
        return decision


@dataclass(frozen=True)
class Rounds(Choice):
    """A Loop: its branches are its rounds, and a row ends in one of them."""

    def end_of(self, decision: bytes) -> Join | Side:
        return self._ends[way_branch(self.decision, str(round_end_of(decision)[0]))]

    def settles(self, decision: bytes) -> bool:
        return way_of(decision) != "again"

    def recorded(self, decision: bytes) -> bytes:
        return b'{"_round":%d}' % round_end_of(decision)[0]


@dataclass(frozen=True)
class Plan:
    """A chain that fits together."""

    chain: str
    emoji: str
    batch_size: int
    input_model: type[BaseModel]
    #: Changes with the input model, which turns records into rows.
    input_fingerprint: str
    first: Target
    #: In topological order: a node comes after everything whose rows it receives.
    nodes: Mapping[str, PlanNode]
    forks: Mapping[str, Fork]
    #: Engines that steps name.
    engines: Mapping[str, EngineConfig]
    #: The type behind every name a row can hold.
    types: Mapping[str, Any]
    #: Columns groups of `flattened/`, in order: `chain_input`, node ids, aliases, ending branches.
    columns: tuple[str, ...]
    warnings: tuple[Problem, ...] = ()
    #: Rows at the end after which a run stops; None: it takes all.
    accept: int | None = None
    #: Values of the parameters of the factory that made the chain, as JSON.
    parameters: Mapping[str, Any] = field(default_factory=dict)
    #: Objects compiled from the plan alone: adapters, prompts. Filled on demand from any thread; if two threads make
    #: the same object, either will do.
    memo: dict[tuple[str, str], Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    @cached_property
    def fingerprint(self) -> str:
        """Changes with everything that decides rows or files: nodes, their order and nesting, names, joins, columns."""
        import hashlib

        parts = [self.input_fingerprint, f"{self.first} {self.columns}"]
        parts += [f"{node.id}={node.fingerprint} {node.hidden} {node.path}>{node.next}" for node in self.nodes.values()]
        parts += [f"{fork}" for fork in self.forks.values()]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]

    @cached_property
    def steps(self) -> tuple[PlanNode, ...]:
        """The nodes as the chain declares them: of the rounds of a loop, the first."""
        return tuple(node for node in self.nodes.values() if declared_of(node.id) == node.id)

    @cached_property
    def phases(self) -> tuple[str, ...]:
        """Engines that share a device, in the order in which rows need them; one that is needed again is repeated."""
        configs = self.engines.values()
        contended = {a.name for a in configs for b in configs if a.name != b.name and a.shares_device_with(b)}
        needed = [node.engine for node in self.stations.values() if node.engine in contended]
        return tuple(name for name, _ in groupby(needed))

    @cached_property
    def stations(self) -> Mapping[str, PlanNode]:
        """The nodes by the names of their queues: an escalating step has one for each of its engines."""
        every = (node.at(engine) for node in self.nodes.values() for engine in range(len(node.engines)))
        return {node.station: node for node in every}

    @cached_property
    def nests_loops(self) -> bool:
        """Whether a loop is inside another one, so that rounds have paths and not just numbers."""
        return any(node.round is not None and "~" in node.round.path for node in self.nodes.values())

    def goes_on(self, loop: str, round: str) -> bool:
        """Whether rows a round of a loop does not satisfy go on with the next one, or are kept."""
        judge = self.nodes.get(loop if {*round.split("~")} == {"1"} else f"{loop}#{round}")
        return judge is not None and isinstance(judge.next, ToWays) and len(judge.next.ways) > 1

    @property
    def escalates(self) -> bool:
        """Whether a step may ask several engines."""
        return any(node.told_engine for node in self.nodes.values())

    @cached_property
    def depths(self) -> Mapping[str, int]:
        """The depth of every destination of units: nodes, and forks with joins."""
        forks = {fork.id: fork.depth for fork in self.forks.values() if fork.joins}
        return {name: node.depth + node.rank for name, node in self.stations.items()} | forks

    def engine_of(self, station: str) -> str:
        """The engine that serves a queue; "python" for those of an Apply and of the join of a fork."""
        return self.stations[station].engine if station in self.stations else PYTHON

    @cached_property
    def _choices(self) -> Mapping[str, Choice]:
        """Alias -> the fork whose ways give it."""
        routes = [fork for fork in self.forks.values() if isinstance(fork, Choice) and not isinstance(fork, Rounds)]
        return {join.alias: route for route in routes for join in route.joins}

    def value(self, name: str, values: Mapping[str, bytes]) -> Any:
        """The value a row holds under a name, decoded by the model of the way that the row took."""
        choice = self._choices.get(name)
        model = name if choice is None else choice.end_of(values[choice.decision]).branch
        return self.adapter(model).validate_json(values[name])

    def adapter(self, name: str) -> TypeAdapter[Any]:
        """Validates the JSON a row holds under a name."""
        adapter: TypeAdapter[Any] | None = self.memo.get(("adapter", name))
        if adapter is None:
            adapter = self.memo["adapter", name] = TypeAdapter(self.types[name])
        return adapter


@lru_cache(maxsize=256)
def join_adapter(join: JoinBranch) -> TypeAdapter[Any]:
    """Validates the JSON a row holds under a join's alias; plain data if its last node declares no model."""
    works = [step for step in join.steps if isinstance(step, (Step, ApplyNode))]
    model: Any = (works[-1].output_model if works else None) or Any
    many = any(isinstance(work, ApplyNode) and work.cardinality is Cardinality.MANY for work in works)
    return TypeAdapter(list[model] if many else model)
