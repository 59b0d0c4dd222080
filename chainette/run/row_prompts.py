"""The prompts that a row of a run directory was asked with, rendered again: they are not kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace

from chainette.core.durable import Durable
from chainette.core.flow import frontier
from chainette.core.plan import Plan
from chainette.core.plan_node import NodeKind
from chainette.core.prompt import prompter
from chainette.errors import TemplateError
from chainette.io.inputs.roots import Root
from chainette.io.rundir.dependents import lost_nodes
from chainette.io.rundir.durable_rows import rows_of_root
from chainette.io.rundir.input_records import same_input_of
from chainette.io.rundir.paths import RunDir
from chainette.io.rundir.row_story import read_lines
from chainette.io.rundir.run_state import RunState
from chainette.records import CHAIN_INPUT, Message, Row, record_of, step_of
from chainette.run.options import RunOptions
from chainette.run.resumption import compiled_now
from chainette.run.selected_rows import changes_since
from chainette.run.session import roots_of

__all__ = ["RowPrompts", "prompts_of"]


@dataclass(frozen=True)
class RowPrompts:
    """Prompts of the rows of one root."""

    #: (node, row id) -> the messages of its first request.
    messages: Mapping[tuple[str, str], tuple[Message, ...]]
    #: Nodes whose prompts cannot be rendered as they were, and the reason.
    stale: frozenset[str] = frozenset()
    reason: str = ""


def prompts_of(directory: RunDir, row_id: str) -> RowPrompts:
    """The prompts of the steps that a row, and those of its record, came to. Runs the code of the chain.

    Raises:
        LoadError, PlanError: the chain cannot be loaded, or does not fit together.
        InputError: the input is gone, or it is not the one that the run read.
    """
    _, plan = compiled_now(directory, {})
    state, lines = read_lines(directory)
    number = state.roots.root_of(int(record_of(row_id)))
    state = replace(state, roots=replace(state.roots, lines={number: [*lines.of(number)]}))
    changes = changes_since(state, plan)
    stale = frozenset(plan.nodes if changes and CHAIN_INPUT in changes.stale else changes.stale if changes else ())
    root = _root(directory, plan, state, number)
    found = {}
    for node in plan.nodes.values():
        if node.kind is NodeKind.STEP and node.id not in stale and root is not None:
            for row in _arriving(directory, plan, state, root, node.id):
                try:
                    found[node.id, row.row_id] = prompter(plan, node).messages(row)
                except TemplateError as error:
                    found[node.id, row.row_id] = (Message("error", str(error)),)
    return RowPrompts(found, stale, f"the chain has changed since: {', '.join(changes.sentences)}" if changes else "")


def _root(directory: RunDir, plan: Plan, state: RunState, number: int) -> Root | None:
    options = RunOptions(columns=tuple(state.run.settings.get("columns") or ()))
    with closing(same_input_of(directory, state)) as source:
        return next(roots_of(plan, source, options, state.roots.starts).pending(lambda other: other < number), None)


def _arriving(directory: RunDir, plan: Plan, state: RunState, root: Root, node: str) -> Iterator[Row]:
    """The rows that came to a node: those that would be pending there if nothing were known of it."""
    durable = rows_of_root(directory, plan, state, root.number, {node, *lost_nodes(plan, state)}) or Durable()
    for unit in frontier(plan, root.number, root.rows, durable).units:
        if step_of(unit.node) == node:
            yield from unit.rows
