"""graph.json: the plan in the form in which the log keeps it. Every reader of the log uses these structs.

A graph that was read is written with the same bytes: the same fields in the same order.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterator
from functools import cached_property, lru_cache
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from chainette.records import declared_of

__all__ = [
    "Edge",
    "EdgeToBranchEnd",
    "EdgeToEnd",
    "EdgeToFork",
    "EdgeToNode",
    "EdgeToWays",
    "Graph",
    "GraphChoice",
    "GraphFork",
    "GraphJoin",
    "GraphNode",
    "GraphRounds",
    "GraphSamples",
    "GraphSide",
    "require_file",
]


#: The cardinality of a node that makes a list of rows from one row.
_MANY = "many"

#: A folder of rows is directly in the run directory, or in `.held/`.
_FOLDER = re.compile(r"[^/\0.][^/\0]*")
_FILE = re.compile(rf"(?:\.held/)?{_FOLDER.pattern}/\d+")


@lru_cache(maxsize=1000)  # every line of a log names a file or two
def require_file(name: str) -> None:
    """Raises ValueError unless the name (`extract/0`, `.held/extract/0`) is inside the run directory."""
    if not _FILE.fullmatch(name):
        raise ValueError(f"{name!r} is not a file of a run directory")


class _Tagged(msgspec.Struct, frozen=True, tag_field="to", tag=True):
    """A struct that is tagged by the key `to`."""


class EdgeToNode(_Tagged, frozen=True, tag="ToNode"):
    node: str


class EdgeToFork(_Tagged, frozen=True, tag="ToFork"):
    fork: str


class EdgeToBranchEnd(_Tagged, frozen=True, tag="ToBranchEnd"):
    fork: str
    branch: str


class EdgeToWays(_Tagged, frozen=True, tag="ToWays"):
    """Each row continues according to the decision for it; see `Choice` in `core/forks.py`."""

    fork: str
    ways: list[tuple[str, Edge]]


class EdgeToEnd(_Tagged, frozen=True, tag="End"):
    """The end of the main flow."""


Edge = EdgeToNode | EdgeToFork | EdgeToBranchEnd | EdgeToWays | EdgeToEnd


class GraphJoin(_Tagged, frozen=True, tag="Join"):
    branch: str
    alias: str
    first: Edge
    value: str = ""
    many: bool = False


class GraphSide(_Tagged, frozen=True, tag="Side"):
    branch: str
    first: Edge
    value: str = ""
    many: bool = False


class GraphFork(_Tagged, frozen=True, tag="Fork"):
    id: str
    depth: int
    joins: list[GraphJoin]
    sides: list[GraphSide]
    after: Edge
    path: list[str]
    last: bool

    @property
    def branches(self) -> list[GraphJoin | GraphSide]:
        """The branches in the order of the chain, which is also their order in the id of the fork."""
        order = declared_of(self.id).removeprefix("+").split("+")
        every: list[GraphJoin | GraphSide] = [*self.joins, *self.sides]
        return sorted(every, key=lambda branch: order.index(declared_of(branch.branch)))

    @property
    def inside(self) -> list[Edge]:
        """The first element of each branch, each once."""
        return self.starts

    @property
    def aliases(self) -> list[str]:
        return [*dict.fromkeys(join.alias for join in self.joins)]

    @property
    def starts(self) -> list[Edge]:
        """The destinations of all rows that enter the fork."""
        return [branch.first for branch in self.branches]

    @property
    def copies(self) -> int:
        """The number of rows that begin each branch, for each row that enters the fork."""
        return 1


class GraphSamples(GraphFork, frozen=True, tag="Samples"):
    """The candidates of a step: the only branch takes several copies of each row."""

    count: int

    @property
    def branches(self) -> list[GraphJoin | GraphSide]:
        return [*self.joins]

    @property
    def copies(self) -> int:
        return self.count


class GraphChoice(GraphFork, frozen=True, tag="Choice"):
    """A fork in which each row takes one of the branches; the first node decides which."""

    decision: str
    entry: Edge

    @property
    def branches(self) -> list[GraphJoin | GraphSide]:
        """The ways."""
        return [*self.joins, *self.sides]

    @property
    def starts(self) -> list[Edge]:
        return [self.entry]

    @property
    def inside(self) -> list[Edge]:
        return [self.entry, *(branch.first for branch in self.branches)]

    def way(self, branch: GraphJoin | GraphSide) -> str:
        """The name of a way; "" for rows that pass by."""
        return branch.branch.removeprefix(f"{self.decision}:")


class GraphRounds(GraphChoice, frozen=True, tag="Rounds"):
    """A loop: its branches are its rounds, and each round's last node decides which rows begin the next one."""

    @property
    def inside(self) -> list[Edge]:
        return [branch.first for branch in self.branches]


class GraphNode(msgspec.Struct, frozen=True, kw_only=True):
    """A node that processes rows. Only steps have the fields after `rescue`. Later rounds of a loop leave out the model and
    the prompts, which are those of the first round."""

    id: str
    name: str = ""
    #: "step" or "apply".
    kind: str
    folder: str = ""
    hidden: bool = False
    engine: str
    input: str = ""
    next: Edge
    path: list[str]
    cardinality: str = ""
    input_model: str | None = None
    output_schema: dict[str, Any] | UnsetType | None = UNSET
    fingerprint: str = ""
    rescue: dict[str, Any] | UnsetType = UNSET
    system_prompt: str | UnsetType | None = UNSET
    user_prompt: str | UnsetType | None = UNSET
    output_format_instruction: str | UnsetType | None = UNSET
    sampling: dict[str, Any] | UnsetType = UNSET
    max_attempts: int | UnsetType = UNSET
    #: Further engines of the step; unset if there are none.
    escalate: list[str] | UnsetType = UNSET
    #: The number of candidates per row; unset if there is one.
    samples: int | UnsetType = UNSET
    #: The choice among candidates; unset on other nodes.
    pick: str | UnsetType = UNSET
    #: Whether equal requests are sent once; unset if not.
    dedupe: bool | UnsetType = UNSET
    #: The engine that the chain names, if a retry asks another one in its place.
    instead_of: str | UnsetType = UNSET

    def part(self, name: str) -> Any:
        """The field with this name; None if the node does not have it."""
        value = getattr(self, name)
        return None if value is UNSET else value

    def __post_init__(self) -> None:
        if self.folder and not _FOLDER.fullmatch(self.folder):
            raise ValueError(f"{self.folder!r} is not a folder of a run directory")

    @property
    def engines(self) -> list[str]:
        """All engines that may be asked for its rows."""
        return [self.engine, *(self.escalate or ())]

    @property
    def rescues(self) -> dict[str, Any]:
        """Its settings that can only rescue rejected rows."""
        return self.rescue or {}


class Graph(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """A compiled chain. A run in Redis has only its nodes, forks and engines."""

    chain: str = ""
    emoji: str = ""
    fingerprint: str = ""
    batch_size: int = 0
    parameters: dict[str, Any] | UnsetType = UNSET
    input_model: dict[str, Any] = {}
    input_fingerprint: str | UnsetType = UNSET
    columns: list[str] = []
    first: Edge = EdgeToEnd()
    nodes: list[GraphNode] = []
    forks: list[GraphFork | GraphSamples | GraphChoice | GraphRounds] = []
    engines: dict[str, dict[str, Any]] = {}
    features: dict[str, Any] = {}

    def __post_init__(self) -> None:
        """Raises ValueError unless every node and fork is reached exactly once, so that every walk ends."""
        reached: set[str] = set()

        def follow(target: Edge) -> None:
            for element in self.line(target):
                if element.id in reached:
                    raise ValueError(f"{element.id!r} is reached twice")
                reached.add(element.id)
                for start in element.inside if isinstance(element, GraphFork) else ():
                    follow(start)

        try:
            follow(self.first)
        except KeyError as error:
            raise ValueError(f"an edge leads to {error}, which does not exist") from error
        if len(reached) != len(self.nodes) + len(self.forks):
            raise ValueError("a node or a fork cannot be reached")

    @cached_property
    def steps(self) -> list[GraphNode]:
        """The nodes that the chain declares, with only the first round of each loop."""
        return [node for node in self.nodes if declared_of(node.id) == node.id]

    @cached_property
    def declared_forks(self) -> list[GraphFork]:
        """The forks that the chain declares, with only the first round of each loop."""
        declared = [fork for fork in self.forks if declared_of(fork.id) == fork.id]
        return [
            msgspec.structs.replace(fork, joins=fork.joins[:1], sides=fork.sides[:1]) if isinstance(fork, GraphRounds) else fork
            for fork in declared
        ]

    @cached_property
    def by_id(self) -> dict[str, GraphNode]:
        return {node.id: node for node in self.nodes}

    def engine_of(self, node: str) -> str:
        """The (first) engine of a step; "" if the chain has no such step."""
        found = self.by_id.get(node)
        return "" if found is None else found.engine

    @cached_property
    def row_folders(self) -> dict[str, str]:
        """Name -> folder of all rows that may be read: steps that are not hidden, `rejected` and `flattened`."""
        steps = {node.id: node.folder for node in self.steps if not node.hidden}
        return steps | {"rejected": "rejected", "flattened": "flattened"}

    @cached_property
    def forks_by_id(self) -> dict[str, GraphFork]:
        return {fork.id: fork for fork in self.forks}

    def line(self, target: Edge) -> Iterator[GraphNode | GraphFork]:
        """The nodes and forks from a target to the end of the main flow or branch, without the contents of forks."""
        while isinstance(target, EdgeToNode | EdgeToFork):
            if isinstance(target, EdgeToNode):
                node = self.by_id[target.node]
                yield node
                target = node.next
            else:
                fork = self.forks_by_id[target.fork]
                yield fork
                target = fork.after

    @cached_property
    def _sources(self) -> tuple[dict[str, str], dict[str, str]]:
        """(node or fork -> the source of its rows, node or fork -> the fork that receives the same rows)."""
        feeds = {_name(target): node.id for node in self.nodes for _, target in _ways_of(node.next)}
        same: dict[str, str] = {}
        for fork in self.forks:
            same |= {_name(start): fork.id for start in fork.starts}
            (feeds if fork.joins else same)[_name(fork.after)] = fork.id
        return feeds, same

    def source(self, name: str) -> str | None:
        """The node or join whose rows a node or a fork receives; None for the input."""
        feeds, same = self._sources
        while name in same:
            name = same[name]
        return feeds.get(name)

    @cached_property
    def expansions(self) -> dict[str, int]:
        """Node or fork -> the number of expansions of the main flow before it. The id of a main-flow row there has as many
        numbers after the number of its record."""
        found: dict[str, int] = {}

        def follow(target: Edge, depth: int, *, main: bool) -> None:
            for element in self.line(target):
                depth += main and isinstance(element, GraphNode) and element.cardinality == _MANY
                found[element.id] = depth
                for start in element.inside if isinstance(element, GraphFork) else ():
                    follow(start, depth, main=False)

        follow(self.first, 0, main=True)
        return found

    @cached_property
    def _ways(self) -> dict[str, str]:
        """First node or fork of a way -> the way."""
        return {_name(target): way for node in self.nodes for way, target in _ways_of(node.next) if way is not None}

    def way_to(self, name: str) -> str | None:
        """The way whose rows a node or a fork receives from its source; None if it receives all of them."""
        _, same = self._sources
        while name in same:
            name = same[name]
        return self._ways.get(name)

    def copies(self, name: str) -> int:
        """The number of rows that a node or a fork receives for each row of its source."""
        _, same = self._sources
        found = 1
        while name in same:
            name = same[name]
            found *= self.forks_by_id[name].copies if name in self.forks_by_id else 1
        return found

    def shape(self) -> dict[str, Any]:
        """Everything that affects rows or files, except the fingerprints of nodes and the number of rounds."""
        loops = {fork.id for fork in self.forks if isinstance(fork, GraphRounds)}
        nodes = [(node.id, node.path, _without_rounds(node.next, loops), node.hidden) for node in self.steps]
        forks = [msgspec.structs.replace(fork, depth=0) for fork in self.declared_forks]
        plain: dict[str, Any] = msgspec.to_builtins(
            {"first": self.first, "nodes": nodes, "forks": forks, "columns": self.columns}
        )
        return plain


def _without_rounds(target: Edge, loops: Container[str]) -> Edge | str:
    """The destination; for the decision of a loop, whose destination depends on the number of rounds, only the loop."""
    return target.fork if isinstance(target, EdgeToWays) and target.fork in loops else target


def _ways_of(target: Edge) -> list[tuple[str | None, Edge]]:
    """(way, destination) of a node's rows; the way is None if all go to one destination."""
    return list(target.ways) if isinstance(target, EdgeToWays) else [(None, target)]


def _name(target: Edge) -> str:
    """The node or fork that a target names; "" at an end."""
    match target:
        case EdgeToNode():
            return target.node
        case EdgeToFork():
            return target.fork
        case _:
            return ""
