"""Checks which rows of a run's stream may become durable: only rows that are pending at the node they name.

Redis is checked, not trusted (PROTOCOL 22). A lost key may end a fork or a root too early, or cause a row to be computed twice;
the walk over durable rows (`frontier`) reveals that. Messages that no worker of ours writes are refused first
(`message_faults.py`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from chainette.core.apply import Cardinality
from chainette.core.durable import Durable, reasons_of
from chainette.core.flow import frontier
from chainette.core.forks import Samples
from chainette.core.join_digests import digest_of_all, joined_digest
from chainette.core.plan import Plan
from chainette.core.plan_node import NodeKind, PlanNode
from chainette.core.targets import Target, ToFork, ToNode
from chainette.fleet.protocol.messages import Admission, Result
from chainette.fleet.protocol.queue_values import Entry
from chainette.records import CHAIN_INPUT, Row, parent_of, record_of
from chainette_workers.sink.message_faults import admission_fault, ended_rows, result_fault

__all__ = ["AcceptedRoot"]


@dataclass
class AcceptedRoot:
    """A root between its first entry and its end: its durable rows, and those of the entries accepted so far."""

    plan: Plan
    root: int
    rows: list[Row]
    durable: Durable
    #: The numbers of its records; None if its bad ones are not counted.
    ids: range | None = None
    #: Station -> rows known to be pending there, with the digests of the values that joins gave them; recomputed if an entry
    #: has others.
    _pending: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def refuse(self, entry: Entry, barred: Collection[str] | None) -> str:
        """Takes an entry in, and returns ""; if it is invalid, returns the reason instead, and nothing more of the root may be
        taken.

        `barred`: engines whose units may wait for a later phase; None if that is not known.
        """
        if fault := self._fault(entry):
            return f"root {self.root}: {fault}"
        if isinstance(entry.message, Admission):
            self.durable.add_rejected(CHAIN_INPUT, reasons_of(entry.message.rejected))
        elif node := self.plan.stations.get(entry.message.node):
            ended = ended_rows(node, entry.message)
            if not self._has_pending(node, ended):
                return f"root {self.root}: rows at {node.id!r} came that were not pending there"
            pending = self._pending.get(node.station, {})
            if entry.message.given != digest_of_all({row_id: pending[row_id] for row_id in ended}):
                return f"root {self.root}: rows at {node.id!r} had other joined values than their branches gave"
            self._accept(node, entry.message, ended)
        if not (entry.done or entry.suspended):
            return ""
        if self.ids is not None and len(self.rows) + len(self.durable.rejected(CHAIN_INPUT)) != len(self.ids):
            return f"root {self.root}: bad records of it are missing"
        left = {self.plan.engine_of(unit.node) for unit in frontier(self.plan, self.root, self.rows, self.durable).units}
        if entry.done and left:
            return f"root {self.root} was called complete while rows of it are pending"
        if entry.suspended and barred is not None and not left <= {*barred}:
            return f"root {self.root} was set aside for a later phase while rows of it can be processed now"
        return ""

    def _fault(self, entry: Entry) -> str:
        rows, message = self._by_id, entry.message
        if isinstance(message, Result):
            other = message.root != self.root
            return f"a result of root {message.root}" if other else result_fault(self.plan, rows, message)
        known = self.durable.rejected(CHAIN_INPUT)
        return "" if self.ids is None else admission_fault(self.ids, rows, known, message)

    @cached_property
    def _by_id(self) -> dict[str, Row]:
        return {row.row_id: row for row in self.rows}

    def _has_pending(self, node: PlanNode, row_ids: set[str]) -> bool:
        if row_ids <= self._pending.get(node.station, {}).keys():
            return True
        records = {record_of(row_id) for row_id in row_ids}
        rows = [row for row in self.rows if row.row_id in records]
        for unit in frontier(self.plan, self.root, rows, self.durable).units:
            pending = self._pending.setdefault(unit.node, {})
            pending |= {row.row_id: joined_digest(self.plan, row) for row in unit.rows}
        return row_ids <= self._pending.get(node.station, {}).keys()

    def _accept(self, node: PlanNode, result: Result, ended: set[str]) -> None:
        pending = self._pending.get(node.station, {})  # an empty result says nothing about them
        given = {row_id: pending.pop(row_id) for row_id in ended}
        self.durable.add(node, result.outputs, reasons_of(result.rejected), result.dropped, result.escalated)
        if result.escalated:
            self._arrive(ToNode(node.at(1).station), {row_id: given[row_id] for row_id in result.escalated})
        if node.kind is NodeKind.PICK:  # its rows have other joined values from here on: the next walk finds them
            return
        source = parent_of if node.cardinality is Cardinality.MANY else str
        self._arrive(node.next, {output.row_id: given[source(output.row_id)] for output in result.outputs})

    def _arrive(self, target: Target, rows: Mapping[str, bytes]) -> None:
        """Rows are pending at the next node; after a join or a decision, the next walk finds them."""
        match target:
            case ToNode():
                self._pending.setdefault(target.node, {}).update(rows)
            case ToFork():
                fork = self.plan.forks[target.fork]
                if isinstance(fork, Samples):  # the next walk finds the candidates
                    return
                for start in (*fork.joined_starts, *fork.side_starts):
                    self._arrive(start, rows)
                if not fork.joins:
                    self._arrive(fork.after, rows)
            case _:
                pass
