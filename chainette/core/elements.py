"""What stands between the elements of a chain, and where the rows of each begin."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from chainette.core.apply import ApplyNode
from chainette.core.branch import Branch, Element
from chainette.core.node import Node
from chainette.core.plan import Target, ToFork, ToNode
from chainette.core.route import Route
from chainette.core.step import Step

__all__ = ["Flow", "first_nodes", "fork_id", "target_of"]


@dataclass(frozen=True)
class Flow:
    """The state between two elements."""

    #: The name of the value that the next element receives.
    source: str
    #: Its type; None if an Apply did not declare it.
    type: type[BaseModel] | None
    #: Names that templates may use.
    scope: tuple[str, ...]
    #: Branches around, outermost first.
    path: tuple[str, ...] = ()
    #: Whether rows have been expanded since the branch (or the chain) began.
    many: bool = False


def target_of(element: Element) -> Target:
    """The destination of rows that go on to an element."""
    return ToNode(element.id) if isinstance(element, Step | ApplyNode) else ToFork(fork_id(element))


def fork_id(element: Route | Node | Sequence[Branch]) -> str:
    """A name for a route or for a list of branches that no id can clash with."""
    ids = [element.id] if isinstance(element, Node) else [branch.id for branch in element]
    return "+".join(ids) if len(ids) > 1 else f"+{ids[0]}"


def first_nodes(elements: Sequence[Element]) -> Iterator[Step[Any, Any] | ApplyNode[Any, Any]]:
    """The nodes that receive the row before `elements`: after a list of branches or a route it is the same row."""
    for element in elements:
        if isinstance(element, Step | ApplyNode):
            yield element
            return
        assert isinstance(element, Route) or not isinstance(element, Node)
        for branch in element.ways if isinstance(element, Route) else element:
            yield from first_nodes(branch.steps)
