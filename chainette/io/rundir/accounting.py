"""Checks from the log alone that all rows of a root are accounted for: in = out + rejected + dropped + stopped - expanded.

Each root is checked separately while the log is folded, so that errors in two roots cannot cancel each other out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import msgspec

from chainette.io.rundir.event_types import Beyond, RootDone, UnitCommitted
from chainette.io.rundir.graph import Edge, EdgeToBranchEnd, EdgeToEnd, EdgeToFork, EdgeToNode, EdgeToWays, Graph
from chainette.records import Usage
from chainette.utils.plurals import counted

__all__ = ["EngineCounts", "NodeCounts", "RowCounts", "imbalance", "plain_usage", "ranges"]


@dataclass
class EngineCounts:
    """The rows that one engine of an escalating step was asked, by their result."""

    given: int = 0
    rejected: int = 0
    #: Rows that were passed on to the next engine.
    escalated: int = 0
    #: Given and rejected rows that took the answer of another row.
    shared: int = 0
    usage: Usage = field(default_factory=Usage)

    def take(self, event: UnitCommitted) -> None:
        """Counts the rows of one line of the log."""
        self.given += event.given
        self.rejected += event.rejected
        self.escalated += event.escalated
        self.shared += event.shared
        self.usage += event.usage

    def plain(self) -> dict[str, Any]:
        """The counts under the names that people read."""
        counts = {"out": self.given, "rejected": self.rejected, "escalated": self.escalated}
        return counts | {"usage": plain_usage(self.usage)}


@dataclass
class NodeCounts:
    """The rows of one node: in = out + rejected + dropped + stopped - expanded."""

    taken: int = 0
    given: int = 0
    rejected: int = 0
    dropped: int = 0
    stopped: int = 0
    expanded: int = 0
    #: Given candidates without a valid answer.
    invalid: int = 0
    retried: int = 0
    #: Incoming rows that were taken from an earlier run.
    reused: int = 0
    #: Rows that took the answer of another row with the same request.
    shared: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    #: Way of a route -> rows that took it; "" for rows that passed by.
    ways: dict[str, int] = field(default_factory=dict)
    usage: Usage = field(default_factory=Usage)
    #: Usage of discarded answers (`AnswersDiscarded`) and of probes (`EngineProbed`), which is not part of `usage`.
    discarded: Usage = field(default_factory=Usage)
    probes: Usage = field(default_factory=Usage)
    #: By engine, in the order of their first answers; only for a step that escalates.
    engines: dict[str, EngineCounts] = field(default_factory=dict)
    #: Rows after the last accepted one, which are in no other count; `usage` and `engines` include their cost.
    behind: NodeCounts | None = None

    @property
    def balanced(self) -> bool:
        """Whether every row that went in is accounted for."""
        gone = self.given + self.rejected + self.dropped + self.stopped - self.expanded
        return self.taken == gone and self.reused + self.shared <= self.taken + self.surplus.taken

    @property
    def surplus(self) -> NodeCounts:
        """The counts in `behind`, or zeros."""
        return self.behind or NodeCounts()

    def take(self, event: UnitCommitted) -> None:
        """Counts the rows of one line of the log."""
        self.taken += event.taken
        self.given += event.given
        self.rejected += event.rejected
        self.dropped += len(event.dropped)
        self.expanded += event.added
        self.reused += event.reused
        self.shared += event.shared
        self.invalid += event.invalid
        if event.usage.requests:
            self.usage += event.usage
        for kinds, more in ((self.ways, event.ways), (self.reasons, event.reasons)):
            for kind, rows in more.items():
                kinds[kind] = kinds.get(kind, 0) + rows
        if event.engine:
            self.engines.setdefault(event.engine, EngineCounts()).take(event)

    def add(self, rows: NodeCounts | Beyond, sign: int = 1) -> None:
        """Adds rows to the counts, or removes them with `sign` -1."""
        self.taken += sign * rows.taken
        self.given += sign * rows.given
        self.rejected += sign * rows.rejected
        self.dropped += sign * rows.dropped
        self.stopped += sign * rows.stopped
        self.expanded += sign * (rows.given + rows.rejected + rows.dropped + rows.stopped - rows.taken)
        for kinds, more in ((self.reasons, rows.reasons), (self.ways, rows.ways)):
            for kind, count in more.items():
                kinds[kind] = kinds.get(kind, 0) + sign * count
                if not kinds[kind]:
                    del kinds[kind]

    def set_aside(self, rows: NodeCounts | Beyond) -> None:
        """Moves counted rows that come after the last accepted one to `behind`."""
        self.add(rows, -1)
        self.behind = self.surplus
        self.behind.add(rows)

    def take_back(self) -> None:
        """Returns the rows of `behind` to the counts: none is after the last accepted row any more."""
        self.add(self.surplus)
        self.behind = None

    def rows(self) -> dict[str, int]:
        """The rows by result, with names for people."""
        found = {"in": self.taken, "out": self.given, "rejected": self.rejected, "dropped": self.dropped}
        return found | {"stopped": self.stopped, "expanded": self.expanded}

    def plain(self) -> dict[str, Any]:
        """The counts under the names that people read."""
        counts: dict[str, Any] = {**self.rows(), "balanced": self.balanced}
        if self.ways:
            counts["ways"] = {way: rows for way, rows in sorted(self.ways.items()) if way}
            counts["passed"] = self.ways.get("", 0)
        if self.reused:
            counts["reused"] = self.reused
        if self.shared:
            counts["shared"] = self.shared
        if self.invalid:
            counts["invalid_candidates"] = self.invalid
        if self.reasons:
            counts["reasons"] = dict(sorted(self.reasons.items()))
        if self.usage.requests:
            asked = self.taken + self.surplus.taken - self.reused - self.shared
            counts |= {"asked_again": max(0, self.usage.requests - asked)}
            counts["usage"] = plain_usage(self.usage)
        if self.engines:
            counts["engines"] = {name: engine.plain() for name, engine in self.engines.items()}
        if self.behind is not None:
            counts["surplus"] = self.behind.rows()
        if self.discarded.requests:
            counts["discarded"] = plain_usage(self.discarded)
        if self.probes.requests:
            counts["probes"] = plain_usage(self.probes)
        return counts


def plain_usage(usage: Usage) -> dict[str, Any]:
    """Usage as plain data for people, without the engine's time, which is part of the cost."""
    return {name: round(value, 3) for name, value in msgspec.structs.asdict(usage).items() if name != "busy"}


@dataclass(slots=True)
class RowCounts:
    """Rows of one root at one node."""

    taken: int = 0
    given: int = 0
    #: Rejected and dropped rows, minus the rows that expansion added.
    gone: int = 0
    #: Way -> rows that took it, for a node that decides.
    ways: dict[str, int] = field(default_factory=dict)

    def add(self, event: UnitCommitted) -> None:
        """Counts one line of the log."""
        self.taken += event.taken
        self.given += event.given
        self.gone += event.rejected + len(event.dropped) - event.added
        for way, rows in event.ways.items():
            self.ways[way] = self.ways.get(way, 0) + rows


_NOTHING = RowCounts()


def imbalance(graph: Graph, passed: Mapping[str, RowCounts], done: RootDone) -> str:
    """Describes the first mismatch in a complete root; "" if every row is accounted for.

    Each node must account for the rows that it took, and take the rows that its predecessor gave.
    """
    arriving: list[tuple[Edge, int]] = [(graph.first, done.records - done.bad)]
    while arriving:
        target, rows = arriving.pop()
        match target:
            case EdgeToNode(node=name):
                counts = passed.get(name, _NOTHING)
                taken, given = counts.taken, counts.given
                if taken != given + counts.gone:
                    return f"{name!r} took {counted(taken, 'row')}, but accounts for {given + counts.gone:,}"
                following = graph.by_id[name].next
                if isinstance(following, EdgeToWays):
                    if sum(counts.ways.values()) != given:
                        return f"{name!r} gave {counted(given, 'row')}, but {sum(counts.ways.values()):,} took a way"
                    arriving += [(edge, counts.ways.get(way, 0)) for way, edge in following.ways]
                else:
                    arriving.append((following, given))
            case EdgeToFork(fork=name):
                fork = graph.forks_by_id[name]
                taken, stopped = done.forks.get(name, (0, 0)) if fork.joins else (rows, 0)
                arriving += [(start, rows * fork.copies) for start in fork.starts]
                arriving.append((fork.after, taken - stopped))
            case EdgeToEnd():
                name, taken = "the end of the chain", done.finished
            case EdgeToBranchEnd() | EdgeToWays():
                continue
        if taken != rows:
            return f"{name!r} took {counted(taken, 'row')}, but {rows:,} came"
    return ""


def ranges(numbers: Iterable[int], most: int = 4) -> str:
    """Ascending numbers for people: `3-7, 9 and 12 more`."""
    found = list(numbers)
    parts: list[str] = []
    shown = 0
    for _, group in groupby(enumerate(found), key=lambda pair: pair[1] - pair[0]):
        run = [number for _, number in group]
        if len(parts) == most:
            return f"{', '.join(parts)} and {len(found) - shown:,} more"
        parts.append(f"{run[0]:,}" if len(run) == 1 else f"{run[0]:,}-{run[-1]:,}")
        shown += len(run)
    return ", ".join(parts)
