"""Branch and JoinBranch: nodes that run on a copy of the history."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, overload

from pydantic import TypeAdapter

from chainette.core.apply import ApplyNode, Cardinality
from chainette.core.node import Node, check_name
from chainette.core.step import Step
from chainette.errors import DeclarationError, Place
from chainette.utils.argument_advice import explained
from chainette.utils.call_site import caller_place

__all__ = ["Branch", "Element", "JoinBranch", "checked_elements"]

#: An element of `steps`: a node, or a list of branches that run side by side.
Element = Node | Sequence["Branch"]


_HINTS = {"id": "name={value}", "nodes": "steps={value}", "chain": "steps={value}"}


@explained(_HINTS | dict.fromkeys(("alias", "as_", "join"), "Branch(...).join({value})"))
@dataclass(frozen=True, eq=False, init=False)
class Branch(Node):
    """A named sequence of nodes on a copy of each row; its outputs are written, not merged.

    A row that is rejected or dropped in it stays on the main flow.
    """

    steps: tuple[Element, ...]

    def __init__(self, name: str, steps: Sequence[Element], *, emoji: str = "") -> None:
        place = caller_place()
        check_name("branch name", name)
        self._set(id=name, name=name, emoji=emoji, place=place, steps=checked_elements(name, steps, place))

    def join(self, alias: str) -> JoinBranch:
        """The same nodes, with the final output merged back as `{{ alias }}`."""
        return JoinBranch(self.name, self.steps, alias, emoji=self.emoji)


@explained(_HINTS | {"as_": "alias={value}", "join": "alias={value}"})
@dataclass(frozen=True, eq=False, init=False)
class JoinBranch(Branch):
    """A branch whose final output is `{{ alias }}` in every later node of the main flow.

    A branch that expands gives a list, one that drops everything an empty list. A row rejected in it
    leaves the main flow. `JoinBranch(alias, name, steps)`, the order of the original, works too.
    """

    alias: str

    @overload
    def __init__(self, name: str, steps: Sequence[Element], alias: str, *, emoji: str = "") -> None: ...
    @overload
    def __init__(self, name: str, steps: str, alias: Sequence[Element], *, emoji: str = "") -> None: ...
    def __init__(self, name: str, steps: Any, alias: Any, *, emoji: str = "") -> None:
        if isinstance(steps, str):
            alias, name, steps = name, steps, alias
        super().__init__(name, steps, emoji=emoji)
        self._set(alias=check_name("alias", alias))

    @property
    def key(self) -> str:
        return self.alias

    def decode(self, value: bytes) -> Any:
        """The final output of the branch: a model, or a list of models if the branch expands."""
        return self.adapter.validate_json(value)

    @cached_property
    def adapter(self) -> TypeAdapter[Any]:
        """Validates the JSON a row holds under the alias; plain data if the last node declares no model."""
        works = [step for step in self.steps if isinstance(step, (Step, ApplyNode))]
        model: Any = (works[-1].output_model if works else None) or Any
        many = any(isinstance(work, ApplyNode) and work.cardinality is Cardinality.MANY for work in works)
        return TypeAdapter(list[model] if many else model)


def checked_elements(name: str, steps: Sequence[Element], place: Place) -> tuple[Element, ...]:
    """The steps as written, checked: nodes, and lists of branches.

    Raises:
        DeclarationError: anything else.
    """
    if isinstance(steps, Node) or not isinstance(steps, Sequence) or not steps:
        found = f"one {type(steps).__name__}; write [...] around it" if isinstance(steps, Node) else repr(steps)
        raise DeclarationError(f"{place}: {name!r}: steps must be a non-empty list of nodes, found {found}")
    checked: list[Element] = []
    for step in steps:
        if isinstance(step, Node):
            checked.append((step,) if isinstance(step, Branch) else step)
        elif isinstance(step, Sequence) and step and all(isinstance(branch, Branch) for branch in step):
            checked.append(tuple(step))
        else:
            raise DeclarationError(f"{place}: {name!r}: {_wrong_element(step)}")
    return tuple(checked)


def _wrong_element(step: Any) -> str:
    if isinstance(step, Sequence) and not isinstance(step, str):
        if not step:
            return "a list of branches inside steps is empty; leave it out, or put a Branch in it"
        hint = "; write Branch('name', [...]) around each sequence" if any(isinstance(each, Node) for each in step) else ""
        return f"a list inside steps may hold branches only{hint}"
    if isinstance(step, type):
        return f"the class {step.__name__} is not a node; give an instance"
    if isinstance(getattr(step, "steps", None), Sequence):  # a Chain
        return f"a {type(step).__name__} is not a node; write *chain.steps to put its nodes here"
    return f"{step!r} is not a node" + ("; wrap a function in apply(...)" if callable(step) else "")
