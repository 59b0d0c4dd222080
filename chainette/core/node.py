"""The base of every node, the place where the user declared it, and `>>` between nodes."""

from __future__ import annotations

import copy
import keyword
from abc import ABC
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import msgspec

from chainette.errors import DeclarationError, Place
from chainette.utils.call_site import caller_place
from chainette.utils.ids import name_problem, snake_case

if TYPE_CHECKING:
    from pydantic import BaseModel

    from chainette.core.branch import Branch, Element
    from chainette.io.rundir.writer import RunWriter
    from chainette.records import Row

__all__ = ["Joinable", "Node", "Steps", "check_name"]


#: Names with another meaning in templates.
_TAKEN = frozenset({"true", "false", "none", "self"})


def check_name(kind: str, name: object) -> str:
    """The name, if templates and column names can use it.

    Raises:
        DeclarationError: it is not an identifier; a usable one is suggested.
    """
    if not isinstance(name, str) or not name.isidentifier() or keyword.iskeyword(name) or name.startswith("_"):
        hint = snake_case(name) if isinstance(name, str) and any(map(str.isalnum, name)) else ""
        suggestion = f"; {hint!r} would do" if hint.isidentifier() and not keyword.iskeyword(hint) else ""
        raise DeclarationError(
            f"{caller_place()}: {kind} {name!r} must be letters, digits and '_' so that templates can say it{suggestion}"
        )
    if name in _TAKEN:
        raise DeclarationError(f"{caller_place()}: {kind} {name!r} means something else in templates; choose another")
    return name


@dataclass(frozen=True, kw_only=True, eq=False)
class Node(ABC):
    """A named part of a chain, equal only to itself."""

    id: str
    #: For people: logs and the live view. Defaults to the id.
    name: str = ""
    emoji: str = ""
    place: Place = field(default_factory=caller_place, init=False, repr=False)

    def __post_init__(self) -> None:
        check_name("id", self.id)
        if not self.name:
            object.__setattr__(self, "name", self.id)
        for label, text in (("name", self.name), ("emoji", self.emoji or "-")):
            if problem := name_problem(text):
                raise DeclarationError(f"{self.place}: {self.id!r}: {label} {text!r} {problem}")

    def _set(self, **values: Any) -> None:
        """Sets fields of a node whose class has its own `__init__`."""
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @property
    def key(self) -> str:
        """The name under which a row keeps this node's value."""
        return self.id

    def __rshift__(self, following: Element | Steps) -> Steps:
        """This node and those that follow it, for `Chain(steps=...)`: `extract >> [a, b.join("x")] >> grade`."""
        return Steps((self,)) >> following

    def __rrshift__(self, before: Sequence[Branch]) -> Steps:
        return Steps((before, self))

    def execute(
        self,
        inputs: Sequence[BaseModel],
        histories: Sequence[Row] | None = None,
        writer: RunWriter | None = None,
        debug: bool = False,
        batch_size: int | None = None,
    ) -> tuple[list[Any], list[Row]]:
        """Runs this node alone over `inputs`; returns its outputs and the rows that hold them.

        `histories` are the rows before the node, as long as `inputs`. Steps and branches keep the
        length; an Apply may expand or contract. With a `writer` the outputs go to its directory.

        Raises:
            RowsRejected: some rows were rejected; it carries all rejections.
            PlanError: the node cannot run on these inputs.
        """
        from chainette.run.executor import execute

        return execute(self, inputs, histories, writer, debug, batch_size)


@dataclass(frozen=True, kw_only=True, eq=False)
class Joinable(Node):
    """A node that works on a copy of the row, and whose result may be merged back."""

    #: "" if it is not joined.
    alias: str = ""

    def join(self, alias: str) -> Self:
        """The same node, with its result for each row merged back as `{{ alias }}`."""
        joined = copy.copy(self)
        joined._set(alias=check_name("alias", alias))
        return joined

    @property
    def key(self) -> str:
        return self.alias or self.id

    def decode(self, value: bytes) -> Any:
        """The value under the alias as plain data: rows may end in different models."""
        return msgspec.json.decode(value)


class Steps(tuple["Element", ...]):
    """Elements in order, made by `>>`; the chain or branch that gets them checks them."""

    def __rshift__(self, following: Element | Steps) -> Steps:
        return Steps((*self, *(following if isinstance(following, Steps) else (following,))))

    def __rrshift__(self, before: Sequence[Branch]) -> Steps:
        return Steps((before, *self))
