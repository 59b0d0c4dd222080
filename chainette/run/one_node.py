"""`Node.execute`: one node alone over a list of inputs (the seed's contract). Nothing inside Chainette calls it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import filterfalse
from typing import Any, cast

from pydantic import BaseModel

from chainette.core.branch import Branch, JoinBranch
from chainette.core.chain import DEFAULT_BATCH_SIZE, Chain
from chainette.core.compile import compile_chain
from chainette.core.dump import dump_model
from chainette.core.loop import Loop
from chainette.core.names import INPUTS
from chainette.core.node import Node
from chainette.core.plan import Plan
from chainette.core.route import Route
from chainette.engine.lifecycle import Engines
from chainette.errors import DeclarationError, RowsRejected
from chainette.hooks import Hook
from chainette.io.inputs.roots import Root
from chainette.io.rundir.live_roots import Commit, Committed, Item, Suspended
from chainette.io.rundir.scratch import Scratch
from chainette.io.rundir.writer import RunWriter
from chainette.records import CHAIN_INPUT, Reason, Rejection, Row, Source, owner_of, row_order
from chainette.run.limits import Limits
from chainette.run.scheduler import LocalRun
from chainette.utils.plurals import counted

__all__ = ["execute_node"]


async def execute_node(
    node: Node,
    inputs: Sequence[BaseModel],
    histories: Sequence[Row] | None = None,
    writer: RunWriter | None = None,
    hook: Hook | None = None,
    batch_size: int | None = None,
) -> tuple[list[Any], list[Row]]:
    """See `Node.execute`."""
    if isinstance(node, Route | Loop):
        raise DeclarationError(f"{node.place}: {node.id!r} is not a single node; run a Chain(steps=[...]) with it")
    if not inputs:
        return [], []
    if histories is not None and len(histories) != len(inputs):
        raise DeclarationError(
            f"{node.id!r}: {counted(len(inputs), 'input')}, but histories for {len(histories)}; give one history per input"
        )
    rows = _rows(inputs, histories)
    known = sorted({name for row in histories for name in row.values}) if histories else []
    element = node.join(node.name) if isinstance(node, Branch) and not isinstance(node, JoinBranch) else node
    plan = compile_chain(_alone(element, type(inputs[0])), batch_size=batch_size or DEFAULT_BATCH_SIZE, known=known)
    collected = _Collected(plan, writer)
    async with Engines(plan.engines) as engines:
        roots = _roots(rows, plan.batch_size)
        pending = partial(filterfalse, lambda root: collected.is_done(root.number), roots)
        await LocalRun(plan, pending, collected, engines, 0, Limits(), hook or Hook()).run()
    finished = sorted(collected.finished, key=lambda row: row_order(row.row_id))
    if isinstance(node, Branch):
        collected.rejected += _missing(node, rows, finished, collected.rejected)
    if collected.rejected:
        raise RowsRejected(collected.rejected)
    outputs = [row[cast("Source[Any]", element)] for row in finished]
    if isinstance(node, Branch) and not isinstance(node, JoinBranch):
        return outputs, list(histories or rows)
    return outputs, [
        Row(row.row_id, {k: v for k, v in row.values.items() if k != INPUTS}, row.line, row.key) for row in finished
    ]


def _alone(node: Node, model: type[BaseModel]) -> Chain:
    return Chain(name=f"only_{node.id}", steps=[node], input_model=model)


def _rows(inputs: Sequence[BaseModel], histories: Sequence[Row] | None) -> list[Row]:
    if histories is None:
        return [Row(str(index), {CHAIN_INPUT: dump_model(item)}) for index, item in enumerate(inputs)]
    return [row.with_values(row.row_id, {INPUTS: dump_model(item)}) for row, item in zip(histories, inputs, strict=True)]


def _roots(rows: list[Row], size: int) -> list[Root]:
    chunks = (rows[start : start + size] for start in range(0, len(rows), size))
    return [Root(number, chunk, [], len(chunk)) for number, chunk in enumerate(chunks)]


def _missing(node: Branch, rows: list[Row], finished: list[Row], rejected: list[Rejection]) -> Iterator[Rejection]:
    """A branch keeps the length of its inputs: a row it dropped is no output."""
    ids = {row.row_id for row in rows}
    known = {owner_of(row_id, ids) for row_id in [*(row.row_id for row in finished), *(bad.row_id for bad in rejected)]}
    for row in rows:
        if row.row_id not in known:
            yield Rejection(row.row_id, node.id, Reason.APPLY_ERROR, "the branch dropped the row", 0, None, row.line)


class _Collected(Scratch):
    """Keeps the rows a directory would hold; passes the node's outcomes on to a directory if one is given."""

    def __init__(self, plan: Plan, writer: RunWriter | None) -> None:
        super().__init__(plan)
        self._writer = writer
        self.finished: list[Row] = []
        self.rejected: list[Rejection] = []

    def commit(self, group: Sequence[Item]) -> Committed:
        committed = super().commit(group)
        for rows in committed.finished:
            self.finished += rows
        self.rejected += [rejection for item in group if isinstance(item, Commit) for rejection in item.outcome.rejected]
        if self._writer is not None:
            self._writer.commit([_unfinished(item) for item in group])
            self._writer.commit([Suspended(item.unit.root) for item in group if isinstance(item, Commit) and item.done])
        return committed


def _unfinished(item: Item) -> Item:
    """A node alone never completes a root of the writer's own chain."""
    return Commit(item.unit, item.outcome, done=False) if isinstance(item, Commit) else item
