"""The Arrow schema of every folder of a run, created when a shard is sealed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from chainette.core.plan import Plan
from chainette.core.plan_node import NodeKind, PlanNode
from chainette.io.tables.column_types import JsonKind, Shape
from chainette.io.tables.columns import Columns, arrow_schema, flattened_columns, step_columns
from chainette.io.tables.formulas import CSV_SAFE

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["TELLS_ENGINE", "Added", "ShardSchemas", "shard_schema"]

#: The key column is text: values of other types are converted to JSON.
_KEY, _TEXT = "_key", Shape(JsonKind.STRING)

_USAGE = (("_prompt_tokens", int), ("_completion_tokens", int), ("_queued", float), ("_seconds", float))

#: The engine that gave the last answer for a row.
_ENGINE = ("_engine", str)

#: The row of an earlier run from which a row was taken.
_REUSED = ("_reused_from", str)

#: The setting, in the log, of a directory in which all steps have `_engine`; no flag sets it.
TELLS_ENGINE = "tells_engine"

_REJECTED = (
    ("row_id", str),
    ("step_id", str),
    ("reason", str),
    ("message", str),
    ("attempts", int),
    ("raw", str),
    ("line", int),
)


@dataclass(frozen=True)
class Added:
    """The columns that a run adds to its shards."""

    #: `_key`, the input column that the user chose.
    key: bool = False
    #: The cost of the answers for a row, in steps and rejected rows: tokens, seconds until the engine began, total seconds.
    usage: bool = False
    #: Whether formulas in the text of CSV files are escaped.
    csv_safe: bool = False
    #: `_reused_from`, the row of an earlier run from which a row was taken.
    reuse: bool = False
    #: `_engine` in all steps, because a retry asked an engine that is not the one in the chain.
    engine: bool = False

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Added:
        """The columns that follow from the settings in the log."""
        return cls(*(bool(settings.get(name)) for name in ("key", "usage", "csv_safe", "reuse", TELLS_ENGINE)))


def shard_schema(columns: Columns, added: Added) -> pa.Schema:
    """The schema of a shard with these columns."""
    schema = arrow_schema(tuple((name, _TEXT if name == _KEY else shape) for name, shape in columns))
    return schema.with_metadata({CSV_SAFE: "yes"}) if added.csv_safe else schema


class ShardSchemas(Mapping[str, Any]):
    """Folder -> `pyarrow.Schema`. Hidden folders have no schema, because they are never sealed."""

    def __init__(self, plan: Plan, added: Added) -> None:
        self._plan = plan
        self._nodes = {node.folder: node for node in plan.nodes.values() if not node.hidden}
        self._tail = [(_KEY, Any)] if added.key else []
        self._usage = _USAGE if added.usage else ()
        self._added = added
        self._made: dict[str, Any] = {}

    def __iter__(self) -> Iterator[str]:
        return iter([*self._nodes, "rejected", "flattened"])

    def __len__(self) -> int:
        return len(self._nodes) + 2

    def __contains__(self, folder: object) -> bool:
        return folder in self._nodes or folder in ("rejected", "flattened")

    def __getitem__(self, folder: str) -> Any:
        if folder not in self._made:
            self._made[folder] = shard_schema(self.columns(folder), self._added)
        return self._made[folder]

    def columns(self, folder: str) -> Columns:
        """The columns of a folder."""
        if folder == "rejected":
            looped = any(node.round is not None for node in self._plan.nodes.values())
            column = [("_round", str if self._plan.nests_loops else int)] if looped else []
            engine = [_ENGINE] if self._plan.escalates or self._added.engine else []
            return step_columns(None, [*_REJECTED, *column, *self._tail, *engine, *self._usage])
        if folder == "flattened":
            groups = {name: self._plan.types[name] for name in self._plan.columns}
            return flattened_columns(groups, [("row_id", str), *self._tail])
        node = self._nodes[folder]
        engine = [_ENGINE] if node.told_engine or self._added.engine else []
        asked = [("_attempts", int), ("_reasoning", str), *engine, *self._usage] if node.kind is NodeKind.STEP else []
        asked += [_REUSED] if self._added.reuse and node.kind not in (NodeKind.DECISION, NodeKind.PICK) else []
        told = [("_reason", str), ("_message", str)] if node.samples > 1 else []
        rounds = [] if node.round is None else [("_round", _round_type(node))]
        return step_columns(node.output_model or Any, [("row_id", str), *told, *self._tail, *rounds, *asked])


def _round_type(node: PlanNode) -> Any:
    """The type of `_round`: a number, or text such as `2~3` in a loop within a loop."""
    return str if node.round is not None and "~" in node.round.path else int
