"""One node of a plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property
from typing import Any

from pydantic import BaseModel

from chainette.core.apply import ApplyNode, Cardinality
from chainette.core.candidates import Picker
from chainette.core.step import Step
from chainette.core.targets import Target
from chainette.errors import Place
from chainette.records import declared_of, parent_of, row_order, station_of
from chainette.utils.ids import snake_case

__all__ = ["NodeKind", "PlanNode", "Round"]


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
    #: The engine the chain names, if `engine` stands in for it in a retry; "" otherwise.
    instead_of: str = ""

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

    @cached_property
    def told_engine(self) -> str:
        """The engine, if its rows name the one that answered; "" if the step asks only one."""
        return self.engine if isinstance(self.node, Step) and self.node.escalate else ""

    def asked_about(self, row_id: str) -> tuple[str, int]:
        """(the row the prompt is about, the number of the candidate), of a row that is a candidate."""
        return parent_of(row_id), row_order(row_id)[-1]

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
