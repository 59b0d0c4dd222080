"""Whether a run still has the chain that computed its rows, and how to recompute stale rows."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any

from chainette.core.plan import Plan
from chainette.core.usercode.parameters import set_flags
from chainette.errors import ChainChanged
from chainette.io.rundir.chain_changes import FLATTENED, rescues_between
from chainette.io.rundir.dependents import affected_by, lost_nodes, starts_of
from chainette.io.rundir.graph_of_plan import graph_of
from chainette.io.rundir.open import again_in_python
from chainette.io.rundir.paths import RunDir
from chainette.io.rundir.run_state import RunState
from chainette.records import CHAIN_INPUT
from chainette.run.selected_rows import changes_since, stale_starts
from chainette.utils.plurals import counted

__all__ = ["changed_parameters", "require_unchanged", "taken_back", "tell_rescues", "way_to_recompute"]

_log = logging.getLogger("chainette")


def require_unchanged(directory: RunDir, state: RunState, plan: Plan, alone: str = "") -> None:
    """Raises ChainChanged unless the plan would make every row and file of the directory as they are.

    `alone` says how the rows that are wanted can be asked without the others.
    """
    _require_same_chain(directory, state, plan)
    _require_engine_column(directory, state, plan)
    changes = changes_since(state, plan)
    if changes is None:
        return
    starts = stale_starts(plan, state, changes)
    alone = "" if starts == [FLATTENED] else alone
    rows = " and ".join(f"{counted(state.node(step).taken, 'row')} of {step}" for step in starts)
    raise ChainChanged(
        f"{directory}: the chain has changed since its rows were written: {', '.join(changes.sentences)}. "
        f"{alone}{way_to_recompute(directory, starts, _sets(state, plan), f' ({rows})' if alone else '')}"
        f"{again_in_python(directory, state.run, starts)}"
    )


def _require_engine_column(directory: RunDir, state: RunState, plan: Plan) -> None:
    """Raises ChainChanged if a step has `escalate` now, and shards whose fixed columns lack `_engine`."""
    recorded = state.graph.by_id
    added = [node.id for node in plan.nodes.values() if node.told_engine and node.id in recorded]
    lacking = [node for node in added if not recorded[node].escalate and state.node(node).taken]
    if lacking and (kind := state.run.settings["format"]) != "jsonl":
        steps = " and ".join(lacking)
        raise ChainChanged(
            f"{directory}: {steps} has `escalate` now, but its {kind} shards have no column `_engine`; a run in jsonl takes "
            f"it. To recompute {steps}: `chainette resume {directory} {_sets(state, plan)}{_from(lacking)}`"
        )


def tell_rescues(directory: RunDir, state: RunState, plan: Plan) -> None:
    """Says which rows a raised setting concerns."""
    for node, words in rescues_between(state.graph, graph_of(plan)):
        rejected = state.nodes[node].rejected if node in state.nodes else 0
        waiting = f"; {rejected:,} rejected rows wait for `chainette rejected {directory} --retry`" if rejected else ""
        _log.warning("%s: rows still to be asked use it%s", words, waiting)


def way_to_recompute(directory: RunDir, starts: Sequence[str], sets: str = "", rows: str = "") -> str:
    """A sentence with the command that recomputes these nodes and all that follow."""
    if starts == [CHAIN_INPUT]:
        purpose = "To read the input and recompute every row"
    elif starts == [FLATTENED]:
        purpose = "To keep every row, and put flattened together as the chain is now"
    else:
        purpose = f"To recompute {' and '.join(starts)} and all that follow"
    return f"{purpose}{rows}: `chainette resume {directory} {sets}{_from(starts)}`"


def _require_same_chain(directory: RunDir, state: RunState, plan: Plan) -> None:
    """Raises ChainChanged if the plan has none of the nodes the directory was made with."""
    recorded = [node.id for node in state.graph.nodes]
    if not plan.nodes.keys() & {*recorded}:
        raise ChainChanged(
            f"{directory} is of another chain: it has rows of {state.run.chain!r} ({', '.join(recorded)}), the chain now is "
            f"{plan.chain!r} ({', '.join(plan.nodes)}); put the old chain back, or name another directory for a new run"
        )


def _sets(state: RunState, plan: Plan) -> str:
    """The --set flags of parameters that differ from those in the log."""
    changed = changed_parameters(state, plan)
    return f"{set_flags(changed)} " if changed else ""


def changed_parameters(state: RunState, plan: Plan) -> dict[str, Any]:
    """The parameters that differ from those in the log."""
    return {name: value for name, value in plan.parameters.items() if state.parameters.get(name) != value}


def _from(steps: Iterable[str]) -> str:
    return " ".join(f"--from {step}" for step in steps)


def taken_back(directory: RunDir, plan: Plan, state: RunState, steps: Sequence[str]) -> frozenset[str]:
    """The nodes of some steps, and everything that depends on them.

    Raises:
        ChainChanged: rows of other nodes are stale too.
    """
    if not steps:
        require_unchanged(directory, state, plan)
        return frozenset()
    _require_same_chain(directory, state, plan)
    affected = affected_by(plan, steps)
    changes = changes_since(state, plan)
    missed = [node for node in (changes.stale if changes else ()) if node not in affected and node != FLATTENED]
    if missed:
        raise ChainChanged(
            f"{directory}: {', '.join(missed)} changed too and does not depend on {', '.join(steps)}; "
            f"use `{_sets(state, plan)}{_from(starts_of(plan, [*steps, *missed, *lost_nodes(plan, state)]))}`"
        )
    return affected
