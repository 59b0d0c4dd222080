"""The plan: a chain compiled to flat nodes with explicit targets. Immutable; made by `core.compile`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from typing import Any

from pydantic import BaseModel, TypeAdapter

from chainette.core.forks import Choice, Fork, Rounds
from chainette.core.plan_node import PlanNode
from chainette.core.targets import Target, ToWays
from chainette.engine.config import EngineConfig
from chainette.errors import Problem
from chainette.records import PYTHON, declared_of

__all__ = ["Plan"]


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
    #: The type of every name that a row can hold.
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
        """Whether rows that fail the condition of a round go on with the next one, or are kept."""
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

    def decoder(self, name: str) -> Callable[[bytes], Any] | None:
        """Decodes the JSON a row holds under a name; None if its model depends on the way that the row took."""
        return None if name in self._choices else self.adapter(name).validate_json

    def adapter(self, name: str) -> TypeAdapter[Any]:
        """Validates the JSON a row holds under a name."""
        adapter: TypeAdapter[Any] | None = self.memo.get(("adapter", name))
        if adapter is None:
            adapter = self.memo["adapter", name] = TypeAdapter(self.types[name])
        return adapter
