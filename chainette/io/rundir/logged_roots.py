"""The roots of a run, according to its log: the complete ones, and whether their rows add up."""

from __future__ import annotations

from dataclasses import dataclass, field

from chainette.io.rundir.accounting import RowCounts, imbalance, ranges
from chainette.io.rundir.event_types import UnitCommitted
from chainette.io.rundir.graph import Graph
from chainette.records import CHAIN_INPUT
from chainette.utils.plurals import counted

__all__ = ["SHOWN", "LoggedRoots"]

#: The most roots that are named if their rows do not add up.
SHOWN = 5


@dataclass
class LoggedRoots:
    """The roots of a run, up to the last event."""

    #: The number of records of a root.
    size: int = 1
    #: (root, record) pairs from which roots are counted; a raised limit begins a new root.
    starts: tuple[tuple[int, int], ...] = ((0, 0),)
    #: One byte per root, 1 once it is complete.
    done: bytearray = field(default_factory=bytearray)
    done_count: int = 0
    #: Roots that were complete when the current epoch began.
    done_before: int = 0
    #: Incomplete root -> the log offsets of its lines.
    lines: dict[int, list[int]] = field(default_factory=dict)
    #: Incomplete root -> node -> its rows there.
    passed: dict[int, dict[str, RowCounts]] = field(default_factory=dict)
    #: Complete root -> a description of the node at which its rows do not add up.
    broken: dict[int, str] = field(default_factory=dict)

    def is_done(self, root: int) -> bool:
        """Whether a root is complete."""
        return root < len(self.done) and bool(self.done[root])

    def root_of(self, record: int) -> int:
        """The root of a record of the input."""
        return self._count(record + 1) - 1

    def _count(self, records: int) -> int:
        """The number of roots for this number of records."""
        root, first = next(start for start in reversed(self.starts) if start[1] < records or start[1] == 0)
        return root + -(-(records - first) // self.size)

    def begin_at(self, records: int) -> None:
        """Begins a new root after this number of records."""
        self.starts += ((self._count(records), records),)

    def take(self, event: UnitCommitted, offset: int, graph: Graph) -> None:
        """Adds the line of a unit. With the last line of a root, its rows are checked."""
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
        """Marks a root as complete, or as open again."""
        self.done.extend(bytes(max(0, root + 1 - len(self.done))))
        self.done[root] = done
        self.done_count += 1 if done else -1

    def forget(self, root: int) -> None:
        """Drops the details of a complete root."""
        self.lines.pop(root, None)
        self.passed.pop(root, None)

    def faults(self, cut: int | None) -> list[str]:
        """Names some roots whose rows do not add up. `cut` is the root of the last accepted row, whose lines are kept."""
        late = {root: "rows came after it was complete" for root in self.lines if self.is_done(root) and root != cut}
        return [f"root {root:,}: {words}" for root, words in sorted((self.broken | late).items())[:SHOWN]]

    def missing(self, records: int) -> str:
        """Names the incomplete roots of an input with this number of records; "" if all are complete."""
        count = max([self._count(records), len(self.done), *(root + 1 for root in self.lines)])
        missing = [root for root in range(count) if not self.is_done(root)]
        roots = f"{len(missing):,} of {counted(count, 'root')} ({counted(self.size, 'record')} each)"
        return f"{roots} not complete: {ranges(missing)}" if missing else ""
