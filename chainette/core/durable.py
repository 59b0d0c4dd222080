"""The outcomes of one root that are on the disk."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, KeysView, Mapping

import msgspec

from chainette.core.apply import Cardinality
from chainette.core.plan_node import PlanNode
from chainette.records import Earlier, Output, Rejection, Row, parent_of, row_order

__all__ = ["Durable", "reasons_of"]

_NONE: Mapping[str, str] = {}


class Durable:
    """The outcomes of one root that are on the disk, by node and row."""

    def __init__(self) -> None:
        self._outputs: dict[str, dict[str, list[Output]]] = {}
        #: Node -> row id -> reason.
        self._rejected: dict[str, dict[str, str]] = {}
        self._dropped: dict[str, set[str]] = {}
        self._earlier: dict[str, dict[str, Earlier]] = {}

    def add(
        self,
        node: PlanNode,
        outputs: Iterable[Output],
        rejected: Mapping[str, str],
        dropped: Iterable[str],
        earlier: Mapping[str, Earlier] | None = None,
    ) -> None:
        """Adds the outcome of one unit, or of one line of the log: `rejected` with their reasons; `earlier` are asks for rows
        that are still pending."""
        children = self._outputs.setdefault(node.id, {})
        many = node.cardinality is Cardinality.MANY
        for output in outputs:
            parent = parent_of(output.row_id) if many else output.row_id
            children.setdefault(parent, []).append(output)
        self._rejected.setdefault(node.id, {}).update(rejected)
        self._dropped.setdefault(node.id, set()).update(dropped)
        if earlier:
            self._earlier.setdefault(node.id, {}).update(earlier)

    def add_rejected(self, step_id: str, rejected: Mapping[str, str]) -> None:
        """Adds rejections alone, with their reasons: bad lines of the input."""
        self._rejected.setdefault(step_id, {}).update(rejected)

    def take_back(self, node: str, lost: Callable[[Output], bool]) -> None:
        """Forgets the outputs of a node that are lost: their rows are pending."""
        kept = {row_id: [each for each in some if not lost(each)] for row_id, some in self._outputs.get(node, {}).items()}
        self._outputs[node] = {row_id: some for row_id, some in kept.items() if some}

    def rejected(self, node: str) -> KeysView[str]:
        return self._rejected.get(node, _NONE).keys()

    def reasons(self, node: str) -> Iterable[str]:
        """The reason of every rejection of a node."""
        return self._rejected.get(node, _NONE).values()

    def values(self, node: str) -> Iterator[bytes]:
        """The JSON of every output of a node."""
        return (output.value for outputs in self._outputs.get(node, {}).values() for output in outputs)

    def counts(self, node: str) -> tuple[int, int, int]:
        """Rows of a node that have ended, its output rows, and the rows it dropped."""
        outputs, dropped = self._outputs.get(node, {}), len(self._dropped.get(node, ()))
        ended = len(outputs) + len(self._rejected.get(node, ())) + dropped
        return ended, sum(map(len, outputs.values())), dropped

    def copy(self) -> Durable:
        """The same outcomes; outcomes that are added to one of the two are not in the other."""
        found = Durable()
        found._outputs = {
            node: {row_id: [*some] for row_id, some in outputs.items()} for node, outputs in self._outputs.items()
        }
        found._rejected = {node: {**rejected} for node, rejected in self._rejected.items()}
        found._dropped = {node: {*dropped} for node, dropped in self._dropped.items()}
        found._earlier = {node: {**earlier} for node, earlier in self._earlier.items()}
        return found

    def within(self, includes: Callable[[str, str], bool]) -> Durable:
        """The outcomes of the rows for which `includes(node, row id)` is true."""
        found = Durable()
        for node, outputs in self._outputs.items():
            kept = {row_id: [each for each in some if includes(node, each.row_id)] for row_id, some in outputs.items()}
            found._outputs[node] = {row_id: some for row_id, some in kept.items() if some}
        for node, rejected in self._rejected.items():
            found._rejected[node] = {row_id: reason for row_id, reason in rejected.items() if includes(node, row_id)}
        for node, dropped in self._dropped.items():
            found._dropped[node] = {row_id for row_id in dropped if includes(node, row_id)}
        return found

    def divide(self, node: str, rows: Iterable[Row]) -> tuple[list[Row], list[tuple[Row, Output]], list[str]]:
        """Rows at a node: those that are pending, with their asks from before they were reopened or came to another engine;
        those that have passed it, each with its outputs in id order; and the ids of those that were rejected."""
        outputs, rejected = self._outputs.get(node, {}), self._rejected.get(node, _NONE)
        dropped, earlier = self._dropped.get(node, ()), self._earlier.get(node, {})
        pending: list[Row] = []
        passed: list[tuple[Row, Output]] = []
        stopped: list[str] = []
        for row in rows:
            row_id = row.row_id
            if row_id in rejected:
                stopped.append(row_id)
            elif (found := outputs.get(row_id)) is not None:
                if len(found) == 1:
                    passed.append((row, found[0]))
                else:
                    passed += [(row, output) for output in sorted(found, key=lambda output: row_order(output.row_id))]
            elif row_id not in dropped:
                before = earlier.get(row_id)
                pending.append(row if before is None else msgspec.structs.replace(row, earlier=before))
        return pending, passed, stopped


def reasons_of(rejected: Iterable[Rejection]) -> dict[str, str]:
    """Row id -> reason."""
    return {rejection.row_id: rejection.reason for rejection in rejected}
