"""`--select`: the rows of a run directory that are computed again, in dbt's words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from chainette.core.plan import Plan
from chainette.engine.model_files import files_of
from chainette.errors import InputError, RunDirectoryError
from chainette.io.rundir.chain_changes import FLATTENED, Changes, changes_between, different_models
from chainette.io.rundir.dependents import affected_by, lost_nodes, starts_of
from chainette.io.rundir.graph_of_plan import graph_of
from chainette.io.rundir.run_state import RunState
from chainette.records import CHAIN_INPUT, declared_of

__all__ = ["CHANGED", "REJECTED", "Selection", "changes_since", "require_nodes", "selection_of", "stale_starts"]

#: Words that are no ids of steps.
CHANGED, REJECTED = "changed", "rejected"


@dataclass(frozen=True)
class Selection:
    """Rows that are computed again; none if it is empty."""

    #: Steps that are recomputed, with everything that follows.
    steps: tuple[str, ...] = ()
    #: Whether rejected rows are opened again.
    rejected: bool = False


def changes_since(state: RunState, plan: Plan) -> Changes | None:
    """Changes of the chain, or of files of its engines, since the rows of a directory were written."""
    found = {
        name: different_models(name, state.engines.loaded_from(name), files_of(config)) for name, config in plan.engines.items()
    }
    return changes_between(state.graph, graph_of(plan), {name: words for name, words in found.items() if words})


def stale_starts(plan: Plan, state: RunState, changes: Changes) -> list[str]:
    """The steps to recompute after these changes: those of the `--from` that a plain resume prints."""
    return starts_of(plan, [*changes.stale, *lost_nodes(plan, state)])


def selection_of(words: Sequence[str], plan: Plan, state: RunState) -> Selection:
    """The rows that `--select` means, for the chain as it is now: `changed+`, `STEP+`, `rejected`, or a last `STEP`.

    Raises:
        InputError: other steps follow a step that is named without +, or a word has another form.
        RunDirectoryError: the chain has no such step.
    """
    steps: list[str] = []
    for word in words:
        name, plus, rest = word.partition("+")
        if not name or rest:
            raise InputError(f"--select {word}: write changed+, STEP+, rejected, or a STEP that nothing follows")
        if word == REJECTED:  # no step may have this id
            continue
        chosen = _changed(plan, state) if name == CHANGED and name not in plan.nodes else [name]
        require_nodes(plan, chosen, (CHAIN_INPUT, FLATTENED))
        if not plus and (followers := _followers(plan, chosen)):
            raise InputError(f"--select {word}: {', '.join(followers)} would have to be recomputed too; write --select {word}+")
        steps += chosen
    return Selection(tuple(dict.fromkeys(steps)), REJECTED in words)


def _changed(plan: Plan, state: RunState) -> list[str]:
    changes = changes_since(state, plan)
    return [] if changes is None else stale_starts(plan, state, changes)


def _followers(plan: Plan, steps: Sequence[str]) -> list[str]:
    """The steps that depend on these, apart from themselves."""
    affected = affected_by(plan, steps) - {*steps}
    return [node for node in plan.nodes if node in affected and declared_of(node) == node]


def require_nodes(plan: Plan, names: Sequence[str], others: Sequence[str] = ()) -> None:
    """Raises RunDirectoryError if a name is neither a node of the plan nor among `others`."""
    for name in names:
        if name not in plan.nodes and name not in others:
            raise RunDirectoryError(f"the chain has no step {name!r}; it has {', '.join(plan.nodes)}")
