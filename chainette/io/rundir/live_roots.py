"""The roots between admission and completion, with their rows and outcomes in memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import msgspec

from chainette.core.decision import way_of
from chainette.core.durable import Durable, reasons_of
from chainette.core.flow import settle
from chainette.core.plan import Plan
from chainette.core.plan_node import NodeKind
from chainette.io.rundir.accepted_rows import AcceptedRows, Boundary
from chainette.io.rundir.event_types import Beyond, Event, LastAccepted, RootDone
from chainette.records import CHAIN_INPUT, Outcome, Read, Row, Unit, record_of

__all__ = ["Admitted", "Commit", "Committed", "InOrder", "Item", "LiveRoots", "Suspended"]


@dataclass(frozen=True)
class Admitted:
    """A root is admitted, with its good rows and its number of records."""

    root: int
    rows: list[Row]
    records: int
    #: Its durable outcomes from earlier sessions.
    durable: Durable | None = None
    #: The position up to which the input was read.
    read: Read | None = None


@dataclass(frozen=True)
class Commit:
    """The outcome of a unit; `done` is true if it was the last one of its root.

    Rejections of bad lines are a commit at `chain_input`; a root without pending rows is completed by such a commit too.
    """

    unit: Unit
    outcome: Outcome
    done: bool
    #: (stream id, token) of the result in a fleet.
    pos: tuple[str, str] | None = None
    #: The number of rows that went in, if the unit does not contain them.
    taken: int | None = None


@dataclass(frozen=True)
class Suspended:
    """A root waits for a later phase; its rows are in the shards."""

    root: int


#: An item of a group. An event is logged at its position in the group.
Item = Admitted | Commit | Suspended | Event


@dataclass(frozen=True)
class Committed:
    """The result of a group."""

    #: The finished rows of each root that the group completed.
    finished: list[list[Row]]
    #: The log events, in order.
    events: list[Event]
    #: Seconds to sync rows and log.
    synced: float = 0.0


@dataclass
class _Live:
    rows: list[Row]
    records: int
    durable: Durable
    keys: dict[str, bytes | None]


class LiveRoots:
    """The outcomes of roots between admission and completion; the window bounds their number."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._live: dict[int, _Live] = {}

    def open(self, admitted: Admitted) -> None:
        keys = {row.row_id: row.key for row in admitted.rows}
        self._live[admitted.root] = _Live(admitted.rows, admitted.records, admitted.durable or Durable(), keys)

    def add(self, commit: Commit) -> None:
        durable, outcome = self._live[commit.unit.root].durable, commit.outcome
        node = self._plan.stations.get(commit.unit.node)
        rejected = reasons_of(outcome.rejected)
        if node is not None:
            durable.add(node, outcome.outputs, rejected, outcome.dropped, outcome.escalated)
        elif rejected:
            durable.add_rejected(CHAIN_INPUT, rejected)

    def key(self, root: int, row_id: str) -> bytes | None:
        """The `--key` value of a row, or of the row it descends from."""
        return self._live[root].keys.get(record_of(row_id))

    def close(self, root: int) -> tuple[list[Row], RootDone]:
        """Removes a complete root; returns its finished rows, and the counts for its log line."""
        settled = self.settled(root)
        del self._live[root]
        return settled

    def settled(self, root: int) -> tuple[list[Row], RootDone]:
        """As `close`, but the root stays."""
        live = self._live[root]
        settled = settle(self._plan, root, live.rows, live.durable)
        bad = live.records - len(live.rows)
        return settled.rows, RootDone(live.records, bad, len(settled.rows), settled.forks)

    def suspend(self, root: int) -> Durable:
        """Removes an incomplete root from memory, and returns its outcomes."""
        return self._live.pop(root).durable

    def beyond(self, root: int, boundary: Boundary) -> dict[str, Beyond]:
        """Node or fork -> its rows of a root after the last accepted row, if there are any."""
        live, plan = self._live[root], self._plan
        within = live.durable.within(boundary.includes)
        rows = [row for row in live.rows if boundary.includes(CHAIN_INPUT, row.row_id)]
        forks, inner = settle(plan, root, live.rows, live.durable).forks, settle(plan, root, rows, within).forks
        found = {
            fork: Beyond(taken=taken - inside[0], given=taken - stopped - inside[0] + inside[1], stopped=stopped - inside[1])
            for fork, (taken, stopped) in forks.items()
            for inside in [inner.get(fork, (0, 0))]
        }
        found |= {node: _difference(plan, node, live.durable, within) for node in plan.nodes}
        bad = _lost_reasons(live.durable, within, CHAIN_INPUT)
        good, worse = len(live.rows) - len(rows), bad.total()
        found[CHAIN_INPUT] = Beyond(taken=good + worse, given=good, rejected=worse, reasons=dict(bad))
        return {name: counts for name, counts in found.items() if counts != Beyond()}


def _difference(plan: Plan, node: str, durable: Durable, within: Durable) -> Beyond:
    """The rows of a node that are not in the outcomes within a boundary."""
    all_in, all_out, all_dropped = durable.counts(node)
    some_in, some_out, some_dropped = within.counts(node)
    reasons = _lost_reasons(durable, within, node)
    ways = Counter[str]()
    if plan.nodes[node].kind is NodeKind.DECISION:
        ways = Counter(map(way_of, durable.values(node))) - Counter(map(way_of, within.values(node)))
    return Beyond(
        taken=all_in - some_in,
        given=all_out - some_out,
        rejected=reasons.total(),
        dropped=all_dropped - some_dropped,
        reasons=dict(reasons),
        ways=dict(ways),
    )


def _lost_reasons(durable: Durable, within: Durable, node: str) -> Counter[str]:
    return Counter(durable.reasons(node)) - Counter(within.reasons(node))


@dataclass
class InOrder:
    """Completes the roots of a run with `accept` in order: each root waits for those before it."""

    accepted: AcceptedRows
    live: LiveRoots
    #: Returns the boundary after a row; None if the rows after it are not counted.
    boundary: Callable[[str], Boundary] | None = None
    _waiting: set[int] = field(default_factory=set)

    def __len__(self) -> int:
        """The number of roots whose rows have all ended, and that wait for earlier roots."""
        return len(self._waiting)

    def __contains__(self, root: int) -> bool:
        return root in self._waiting

    def wait(self, root: int) -> None:
        """Adds a root whose rows have all ended."""
        self._waiting.add(root)

    def leave(self) -> list[int]:
        """Removes and returns the waiting roots: a new epoch admits incomplete roots again."""
        waiting, self._waiting = [*self._waiting], set()
        return waiting

    def closed(self) -> Iterator[tuple[int, list[Row], RootDone]]:
        """Closes the roots that need not wait any more, up to that of the last accepted row, with their accepted rows."""
        accepted = self.accepted
        root, missing, written = accepted.roots, accepted.missing, accepted.written
        while root in self._waiting and missing > 0:
            self._waiting.remove(root)
            rows, done = self._close(root, missing)
            yield root, rows[written:], done
            root, missing, written = root + 1, missing - done.accepted, 0

    def _close(self, root: int, missing: int) -> tuple[list[Row], RootDone]:
        """The accepted rows of a root and its counts, with the boundary if enough rows are accepted."""
        rows, done = self.live.settled(root)
        if len(rows) >= missing:
            last = rows[missing - 1].row_id
            beyond = self.live.beyond(root, self.boundary(last)) if self.boundary is not None else {}
            rows, done = rows[:missing], msgspec.structs.replace(done, last=LastAccepted(last, missing, beyond))
        self.live.suspend(root)
        return rows, done
