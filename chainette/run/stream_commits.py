"""From a run's stream to its directory: entries become commits of the writer, and are counted once they are durable."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from chainette.core.durable import Durable
from chainette.fleet.protocol.contract import LeasedQueue
from chainette.fleet.protocol.keys import RunKeys
from chainette.fleet.protocol.messages import Admission, Result, RootRecord
from chainette.fleet.protocol.queue_values import Entry
from chainette.io.rundir.live_roots import Admitted, Commit, Item, Suspended
from chainette.records import CHAIN_INPUT, Effects, Outcome, Unit, Usage, step_of
from chainette.run.limits import RejectWatch

__all__ = ["admitted", "admitted_as", "commit_of", "count_rejects", "finished_roots", "items_of"]


def admitted(queue: LeasedQueue, keys: RunKeys, root: int, durable: Durable | None) -> Admitted:
    """A root as it was admitted; the writer needs it before the root's first entry.

    Raises:
        BadMessage: its rows are missing or invalid.
    """
    return admitted_as(root, queue.record(keys, root), durable)


def admitted_as(root: int, record: RootRecord, durable: Durable | None) -> Admitted:
    """A root whose rows are known."""
    return Admitted(root, record.rows, record.records, durable, record.read)


def items_of(opened: Iterable[Admitted], commits: Iterable[tuple[Entry, Commit | None]]) -> list[Item]:
    """One group for the writer. Roots come first, so that one line says how far the input was read for all of them.

    Adjacent results of one root and node become one line of the log: rows that fan out arrive in many small units. They
    must be adjacent because a crash may keep the first lines of a group only, each with its position in the stream.
    """
    items: list[Item] = [*opened]
    for entry, commit in commits:
        if commit is not None:
            before = items[-1] if items else None
            if isinstance(before, Commit) and (before.unit.node, before.unit.root) == (commit.unit.node, commit.unit.root):
                items[-1] = _merged(before, commit)
            else:
                items.append(commit)
        if entry.suspended:
            items.append(Suspended(entry.root))
    return items


def _merged(before: Commit, commit: Commit) -> Commit:
    first, then = before.outcome, commit.outcome
    outcome = Outcome(
        first.outputs + then.outputs,
        first.rejected + then.rejected,
        first.dropped + then.dropped,
        first.usage + then.usage,
        Effects(),
        first.escalated | then.escalated,
        first.shared + then.shared,
    )
    return Commit(before.unit, outcome, commit.done, commit.pos, (before.taken or 0) + (commit.taken or 0))


def commit_of(entry: Entry, position: tuple[str, str] | None = None) -> Commit:
    """An entry as the writer takes it; with `position` the log records where the stream goes on."""
    match entry.message:
        case Result() as result:
            rest = Effects(), result.escalated, result.shared
            outcome = Outcome(result.outputs, result.rejected, result.dropped, result.usage, *rest)
            return Commit(Unit(result.node, entry.root, result.part, "", []), outcome, entry.done, position, result.taken)
        case Admission(rejected=rejected):
            outcome = Outcome([], rejected, [], Usage(), Effects())
            return Commit(Unit(CHAIN_INPUT, entry.root, "", "", []), outcome, entry.done, position, 0)


def count_rejects(watch: RejectWatch, entries: Sequence[Entry]) -> None:
    """Counts the rejections that became durable.

    Raises:
        RunStopped: too many rows of a step were rejected.
    """
    for entry in entries:
        if isinstance(entry.message, Result):
            result = entry.message
            taken = result.taken - len(result.escalated)
            watch.count(step_of(result.node), taken, len(result.rejected), result.opened)


def finished_roots(entries: Sequence[Entry]) -> list[int]:
    """The roots that are complete with these entries."""
    return [entry.root for entry in entries if entry.done]
