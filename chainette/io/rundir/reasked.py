"""The candidates that `--retry` asks again: invalid candidates of rows with too few valid ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from chainette.core.answer_key import KEY_BYTES
from chainette.core.plan import Plan
from chainette.core.plan_node import PlanNode
from chainette.io.rundir.durable_rows import ShardReader
from chainette.io.rundir.event_types import UnitCommitted
from chainette.io.tables.row_lines import parse_earlier
from chainette.records import Earlier, Reason, parent_of

__all__ = ["Reasked"]


@dataclass
class Reasked:
    """The rows whose invalid candidates become pending, by the node of the candidates.

    A row is left out if its step now needs no more valid candidates than the row has.
    """

    plan: Plan
    rows: dict[str, set[str]] = field(default_factory=dict)

    def note(self, event: UnitCommitted, rejections: Iterable[Mapping[str, Any]]) -> None:
        """Adds rejections that are taken back. Those by the user's function need no other candidates."""
        node = self.plan.nodes.get(event.node)
        if node is None or node.picker is None:
            return
        few = {str(line["row_id"]) for line in rejections if line["reason"] != Reason.APPLY_ERROR}
        if few:
            self.rows.setdefault(self._candidates_of(node), set()).update(few)

    def _candidates_of(self, pick: PlanNode) -> str:
        return next(join.value for fork in self.plan.forks.values() for join in fork.joins if join.alias == pick.source)

    def spare(self, events: Iterable[UnitCommitted], reader: ShardReader) -> None:
        """Removes the rows that have enough valid candidates for the current chain."""
        valid: dict[str, Counter[str]] = {name: Counter() for name in self.rows}
        for event in events:
            for row in self._candidates(event, reader) if event.node in self.rows else ():
                valid[event.node][parent_of(row["row_id"])] += row["_reason"] is None
        for name, rows in self.rows.items():
            step = self.plan.nodes[name].step
            assert step is not None
            rows -= {row_id for row_id in rows if valid[name][row_id] >= step.min_valid}
        self.rows = {name: rows for name, rows in self.rows.items() if rows}

    def _candidates(self, event: UnitCommitted, reader: ShardReader) -> Iterable[dict[str, Any]]:
        return map(msgspec.json.decode, reader.read(self.plan.nodes[event.node].logged_folder, event.off))

    @property
    def folders(self) -> list[str]:
        """The folders that are rewritten."""
        return list(dict.fromkeys(self.plan.nodes[name].logged_folder for name in self.rows))

    def kept(
        self, event: UnitCommitted, reader: ShardReader, number: Callable[[UnitCommitted], int]
    ) -> tuple[UnitCommitted, list[bytes]]:
        """The unit without those candidates, and the lines of the others."""
        again = self.rows.get(event.node, set())
        kept: list[bytes] = []
        keys: list[bytes] = []
        earlier: dict[str, Earlier] = dict(event.earlier)
        for place, line in enumerate(reader.read(self.plan.nodes[event.node].logged_folder, event.off)):
            row = msgspec.json.decode(line)
            if row["_reason"] is None or parent_of(row["row_id"]) not in again:
                kept.append(line)
                keys.append(event.keys[place * KEY_BYTES : (place + 1) * KEY_BYTES])
            elif row["_attempts"]:
                earlier[row["row_id"]] = parse_earlier(row | {"attempts": row["_attempts"]}, number(event))
        gone = event.given - len(kept)
        counts = {"taken": event.taken - gone, "given": len(kept), "invalid": event.invalid - gone}
        return msgspec.structs.replace(event, earlier=earlier, keys=b"".join(keys), **counts), kept
