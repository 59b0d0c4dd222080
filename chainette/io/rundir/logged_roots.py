"""The roots of a run as its log has them: which are complete, and whether their rows add up."""

from __future__ import annotations

from dataclasses import dataclass, field

from chainette.io.rundir.accounting import RowCounts, imbalance, ranges
from chainette.io.rundir.event_types import UnitCommitted
from chainette.io.rundir.graph import Graph
from chainette.records import CHAIN_INPUT
from chainette.utils.plurals import counted

__all__ = ["SHOWN", "LoggedRoots"]

#: The most roots that are named if they do not add up.
SHOWN = 5


@dataclass
class LoggedRoots:
    """The roots of a run up to the last event."""

    #: Records of a root.
    size: int = 1
    #: (root, record) pairs from which roots are counted; a raised limit begins a new root.
    starts: tuple[tuple[int, int], ...] = ((0, 0),)
    #: One byte per root, 1 once it is complete.
    done: bytearray = field(default_factory=bytearray)
    done_count: int = 0
    #: Roots that were complete when the current epoch began.
    done_before: int = 0
    #: Incomplete root -> log offsets of its lines.
    lines: dict[int, list[int]] = field(default_factory=dict)
    #: Incomplete root -> node -> its rows there.
    passed: dict[int, dict[str, RowCounts]] = field(default_factory=dict)
    #: Complete root -> description of the place where its rows do not add up.
    broken: dict[int, str] = field(default_factory=dict)

    def is_done(self, root: int) -> bool:
        """Whether a root is complete."""
        return root < len(self.done) and bool(self.done[root])

    def root_of(self, record: int) -> int:
        """The root that holds a record of the input."""
        return self._count(record + 1) - 1

    def _count(self, records: int) -> int:
        """The number of roots for this number of records."""
        root, first = next(start for start in reversed(self.starts) if start[1] < records or start[1] == 0)
        return root + -(-(records - first) // self.size)

    def begin_at(self, records: int) -> None:
        """The record after so many is the first of a root."""
        self.starts += ((self._count(records), records),)

    def take(self, event: UnitCommitted, offset: int, graph: Graph) -> None:
        """Takes in the line of a unit; the last one of a root shows whether its rows add up."""
        root = event.root
        if event.node != CHAIN_INPUT:  # bad lines are counted when their root is complete
            self.passed.setdefault(root, {}).setdefault(event.node, RowCounts()).add(event)
        if event.root_done is None:
            self.lines.setdefault(root, []).append(offset)
        elif self.is_done(root):
            self.broken[root] = "it was completed twice"
        elif words := imbalance(graph, self.passed.get(root, {}), event.root_done):
            self.broken[root] = words

    def mark(self, root: int, *, done: bool) -> None:
        """A root is complete, or open again."""
        self.done.extend(bytes(max(0, root + 1 - len(self.done))))
        self.done[root] = done
        self.done_count += 1 if done else -1

    def forget(self, root: int) -> None:
        """Nothing of a complete root is needed again."""
        self.lines.pop(root, None)
        self.passed.pop(root, None)

    def faults(self, cut: int | None) -> list[str]:
        """Names some roots whose rows do not add up; of `cut`, the root of the last accepted row, lines are kept."""
        late = {root: "rows came after it was complete" for root in self.lines if self.is_done(root) and root != cut}
        return [f"root {root:,}: {words}" for root, words in sorted((self.broken | late).items())[:SHOWN]]

    def missing(self, records: int) -> str:
        """Names the roots of so many records that are not complete; "" if all are."""
        count = max([self._count(records), len(self.done), *(root + 1 for root in self.lines)])
        missing = [root for root in range(count) if not self.is_done(root)]
        roots = f"{len(missing):,} of {counted(count, 'root')} ({counted(self.size, 'record')} each)"
        return f"{roots} not complete: {ranges(missing)}" if missing else ""
