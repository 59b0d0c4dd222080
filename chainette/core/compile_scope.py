"""The names in scope between two elements of a chain while it is compiled, and the targets of the rows that go on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import BaseModel

from chainette.core.apply import ApplyNode
from chainette.core.branch import Branch, Element
from chainette.core.loop import Loop
from chainette.core.node import Node
from chainette.core.plan_node import Round
from chainette.core.route import Route
from chainette.core.step import Step
from chainette.core.targets import Target, ToFork, ToNode

__all__ = ["Flow", "first_nodes", "fork_id", "target_of"]


@dataclass(frozen=True)
class Flow:
    """The state between two elements."""

    #: The name of the value the next element receives.
    source: str
    #: Its type; None if an Apply did not declare it.
    type: type[BaseModel] | None
    #: Names that templates may use.
    scope: tuple[str, ...]
    #: Branches around, outermost first.
    path: tuple[str, ...] = ()
    #: Whether rows have been expanded since the branch (or the chain) began.
    many: bool = False
    #: Rounds of the loops around, outermost first.
    rounds: tuple[int, ...] = ()
    #: The innermost of them.
    round: Round | None = None
    #: See `PlanNode.keys`.
    keys: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_first(self) -> bool:
        """Whether this is the first round of all loops around."""
        return all(number == 1 for number in self.rounds)

    def named(self, name: str) -> str:
        """The plan's name for the chain's `name`: `draft#2` for the second round of `draft`."""
        return name if self.is_first else f"{name}#{'~'.join(map(str, self.rounds))}"

    def knowing(self, *names: str) -> Flow:
        """The state in which templates may use these names too."""
        renamed = {} if self.is_first else {name: self.named(name) for name in names}
        return replace(self, scope=(*self.scope, *names), keys={**self.keys, **renamed})


def target_of(element: Element, flow: Flow) -> Target:
    """The destination of rows that go on to an element."""
    if isinstance(element, ApplyNode) or (isinstance(element, Step) and element.n == 1):
        return ToNode(flow.named(element.id))
    return ToFork(fork_id(element, flow))


def fork_id(element: Node | Sequence[Branch], flow: Flow) -> str:
    """A name for a route, a loop, the candidates of a step or a list of branches that no id can clash with."""
    ids = [element.id] if isinstance(element, Node) else [branch.id for branch in element]
    return flow.named("+".join(ids) if len(ids) > 1 else f"+{ids[0]}")


def first_nodes(elements: Sequence[Element]) -> Iterator[Step[Any, Any] | ApplyNode[Any, Any]]:
    """The nodes that receive the row before `elements`. A list of branches, a route, and candidates that are all kept pass it
    on unchanged."""
    for element in elements:
        if isinstance(element, Step | ApplyNode):
            yield element
            if isinstance(element, Step) and element.gives_list:
                continue
            return
        assert isinstance(element, Route | Loop) or not isinstance(element, Node)
        inside = element.ways if isinstance(element, Route) else [element] if isinstance(element, Loop) else element
        for sequence in inside:
            yield from first_nodes(sequence.steps)
