"""The rows of a directory a resume would keep, found without changing anything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from chainette.core.durable import Durable
from chainette.core.plan import Plan
from chainette.errors import InputError
from chainette.io.rundir.chain_changes import FLATTENED, Changes
from chainette.io.rundir.durable_rows import rows_of_root
from chainette.io.rundir.event_types import AnyEvent, UnitCommitted
from chainette.io.rundir.fork import Reopen, require_kept
from chainette.io.rundir.paths import RunDir
from chainette.io.rundir.run_state import RunState
from chainette.run.retried_rejections import Rejections
from chainette.run.same_chain import taken_back
from chainette.run.selected_rows import CHANGED, changes_since, selection_of

__all__ = ["KeptRows", "LoggedUnits"]


@dataclass(frozen=True)
class LoggedUnits:
    """The units in a log, those of complete roots included."""

    #: Root -> the offsets of its lines.
    lines: dict[int, list[int]] = field(default_factory=dict)
    #: Root -> (node, reason) of its rejections.
    rejections: dict[int, set[tuple[str, str]]] = field(default_factory=dict)

    def note(self, offset: int, event: AnyEvent) -> None:
        """Takes in the event at an offset."""
        if isinstance(event, UnitCommitted):
            self.lines.setdefault(event.root, []).append(offset)
            if event.reasons:
                self.rejections.setdefault(event.root, set()).update((event.node, reason) for reason in event.reasons)


@dataclass(frozen=True)
class KeptRows:
    """The part of a directory a resume keeps."""

    directory: RunDir
    plan: Plan
    state: RunState | None
    #: As `resume --select` takes it.
    select: tuple[str, ...] = ()
    changes: Changes | None = None
    steps: tuple[str, ...] = ()
    reopen: Reopen = field(default_factory=Reopen)
    #: Roots with rejections that are taken back.
    reopened: frozenset[int] = frozenset()

    @classmethod
    def of(cls, directory: RunDir, plan: Plan, state: RunState | None, units: LoggedUnits, select: Sequence[str]) -> KeptRows:
        """Without a selection, the rows that have become stale are computed again. `state` is None if there is no run."""
        if state is None:
            if select:
                raise InputError(
                    f"--select names rows of a run, and there is none in {directory}; name its directory with -o DIR"
                )
            return cls(directory, plan, None)
        changes = changes_since(state, plan)
        words = tuple(select) or ((f"{CHANGED}+",) if changes is not None else ())
        chosen = selection_of(words, plan, state)
        reopen = Reopen(nodes=taken_back(directory, plan, state, chosen.steps))
        if chosen.rejected:
            reopen = replace(reopen, rejection=Rejections().without_final(directory, plan, state).includes)
        found = cls(directory, plan, state, words, changes, chosen.steps, reopen)
        if not (chosen.steps or chosen.rejected):
            return found
        require_kept(directory, plan, state, reopen)
        reopened = (root for root, pairs in units.rejections.items() if any(reopen.rejection(*pair) for pair in pairs))
        return replace(found, state=replace(state, roots=replace(state.roots, lines=units.lines)), reopened=frozenset(reopened))

    def is_done(self, root: int) -> bool:
        """Whether no row of a root is pending."""
        if self.state is None or self.reopen.nodes - {FLATTENED} or root in self.reopened:
            return False
        return self.state.roots.is_done(root)

    def durable(self, root: int) -> Durable | None:
        """The outcomes of a root that are kept."""
        if self.state is None:
            return None
        return rows_of_root(self.directory, self.plan, self.state, root, self.reopen.nodes, self.reopen.rejection)

    def why(self, step: str) -> str:
        """Why rows of a step are asked again."""
        if self.changes is not None and (words := self.changes.by_node.get(step)):
            return ", ".join(words)
        return f"follows {' and '.join(self.steps)}" if step in self.reopen.nodes and step not in self.steps else ""
