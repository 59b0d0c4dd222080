"""Where rows go on to after a node or a fork."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["End", "Target", "ToBranchEnd", "ToFork", "ToNode", "ToWays"]


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
