"""The result of one unit, row by row, while it is being worked on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import inf
from time import monotonic

import anyio
import msgspec

from chainette.core.candidates import invalid_candidate
from chainette.core.flow import advance, row_of
from chainette.core.plan import Plan
from chainette.core.plan_node import PlanNode
from chainette.core.streaming import Asked, Dropped, Passed, Piece, Unusable
from chainette.engine.base import Completion, Delta, Engine, Request
from chainette.hooks import Hook
from chainette.records import (
    Effects,
    Outcome,
    Output,
    Reason,
    Rejection,
    Row,
    Spent,
    Unfinished,
    Unit,
    Usage,
    owner_of,
)
from chainette.run.answer_sources import Answers
from chainette.run.escalation import escalated
from chainette.run.shared_answers import SharedAnswer
from chainette.utils.user_errors import told

__all__ = ["MAX_ROW_BYTES", "RAW_LIMIT", "UnitResult", "excess", "raised", "spent_on", "streamed", "writable"]

#: The most bytes that one row becomes in one node.
MAX_ROW_BYTES = 16 << 20

#: Characters of a raw answer that a rejection keeps.
RAW_LIMIT = 65_536

#: Characters of the message that an invalid candidate keeps.
MAX_MESSAGE = 4096


@dataclass
class UnitResult:
    """Every row is kept, dropped, rejected or passed on to another engine once, and is finished then.

    `fill` fills it. Its holder may take the rows that are finished so far at any time: nothing of a row is in
    here before the row is finished.
    """

    plan: Plan
    node: PlanNode
    hook: Hook
    #: The sum over the finished rows' own asks.
    usage: Usage = field(default_factory=Usage)
    #: Since when (monotonic) a finished row waits to be taken; None if none does.
    since: float | None = None
    #: Brings in rows that have finished in another thread.
    pull: Callable[[], None] | None = None
    #: The answers of earlier runs, among which a row's is looked for first; None: every row is computed.
    stored: Answers | None = None
    #: Row -> the key of its answer.
    keys: dict[str, bytes] = field(default_factory=dict)
    #: Row -> work already spent on it, as long as it has not finished.
    unfinished: dict[str, Unfinished] = field(default_factory=dict)
    #: Requests that were cancelled.
    cancelled: Usage = field(default_factory=Usage)
    #: Rows, among those that have finished, with the answers of others.
    shared: int = 0
    _outputs: list[tuple[Row, Output]] = field(default_factory=list)
    _rejected: list[Rejection] = field(default_factory=list)
    _dropped: list[str] = field(default_factory=list)
    #: Rows for the next engine of the step, with their asks so far.
    _escalated: list[Row] = field(default_factory=list)

    def finished(self) -> set[str]:
        """The ids of the rows that `take` would take."""
        if self.pull is not None:
            self.pull()
        ids = {row.row_id for row, _ in self._outputs} | {row.row_id for row in self._escalated}
        return ids.union(self._dropped, (rejection.row_id for rejection in self._rejected))

    def take(self, unit: Unit) -> Outcome:
        """The outcome of the rows that have finished since the last call; `unit` consists of exactly these rows."""
        place = {row.row_id: index for index, row in enumerate(unit.rows)}
        kept = sorted(self._outputs, key=lambda pair: place[pair[0].row_id])
        rows = [row_of(self.node, row, output) for row, output in kept]
        onward = self._escalated
        earlier = {row.row_id: row.earlier for row in onward if row.earlier is not None}
        outputs = [output for _, output in kept]
        outcome = Outcome(outputs, self._rejected, self._dropped, self.usage, Effects(), earlier, self.shared)
        self._outputs, self._rejected, self._dropped, self.usage, self.since = [], [], [], Usage(), None
        self._escalated, self.shared = [], 0
        stopped = [rejection.row_id for rejection in outcome.rejected]
        effects = advance(self.plan, unit, rows, self.node.next, stopped, onward)
        return msgspec.structs.replace(outcome, effects=effects)

    def give_back(self, outcome: Outcome) -> None:
        """The outcome was refused: the next one has its usage."""
        self.usage += outcome.usage
        self.shared += outcome.shared

    def take_less(self, outcome: Outcome, unit: Unit, others: Sequence[Row]) -> Outcome:
        """The outcome of the rows of `unit` alone, out of one that was given back; the `others` wait to be taken again."""
        part = UnitResult(self.plan, self.node, self.hook, self.usage, shared=self.shared)
        self.usage, self.shared = Usage(), 0
        part._put_back(outcome, unit.rows)
        if others:
            self._put_back(outcome, others)
            self.since = -inf  # they have waited long enough
        return part.take(unit)

    def _put_back(self, outcome: Outcome, rows: Sequence[Row]) -> None:
        left = {row.row_id: row for row in rows}
        owned = ((owner_of(output.row_id, left), output) for output in outcome.outputs)
        self._outputs += [(left[owner], output) for owner, output in owned if owner is not None]
        self._rejected += [rejection for rejection in outcome.rejected if rejection.row_id in left]
        self._dropped += [row_id for row_id in outcome.dropped if row_id in left]
        onward = ((left[row_id], earlier) for row_id, earlier in outcome.escalated.items() if row_id in left)
        self._escalated += [msgspec.structs.replace(row, earlier=earlier) for row, earlier in onward]

    async def take_stored(self, rows: Sequence[Row]) -> Sequence[Row]:
        """Finishes the rows whose outputs an earlier run has under their keys; returns the others."""
        wanted = {row.row_id: key for row in rows if (key := self.keys[row.row_id])}
        if self.stored is None or not wanted:
            return rows
        found = await self.stored.find_all(self.node, wanted)
        for row in rows:
            for output in found.get(row.row_id, ()):
                self.keep(row, output)
                self.shared += not output.reused_from
        return [row for row in rows if row.row_id not in found]

    def take_shared(self, row: Row, answer: SharedAnswer) -> None:
        """Finishes a row with the answer to an equal request of another row; the row itself may have been asked before."""
        before, unfinished = len(self._escalated), self.unfinished.get(row.row_id)
        usage = Usage() if unfinished is None else unfinished.usage
        if answer.reason:
            self.reject(row, Reason(answer.reason), answer.message, answer.asks, answer.raw, usage)
        else:
            key, spent = self.keys[row.row_id], spent_on(row, usage)
            self.keep(row, Output(row.row_id, answer.value, answer.asks, answer.reasoning, spent, key), usage)
        self.shared += len(self._escalated) == before

    def age(self) -> float:
        """Seconds the oldest row that waits to be taken has waited; 0 if none does."""
        if self.pull is not None:
            self.pull()
        return 0.0 if self.since is None else monotonic() - self.since

    def add(self, rows: dict[str, Row], outputs: list[Output], rejected: list[Rejection], dropped: list[str]) -> None:
        """Takes in rows that another process has finished, out of `rows`."""
        ended = {*dropped, *(rejection.row_id for rejection in rejected)}
        for output in outputs:
            owner = str(owner_of(output.row_id, rows))
            self._outputs.append((rows[owner], output))
            ended.add(owner)
        self._rejected += rejected
        self._dropped += dropped
        for row_id in ended:
            self._finish(rows.pop(row_id), None)

    def hand_back(self) -> dict[str, Unfinished]:
        """The work already spent on rows that have not finished; it travels with them."""
        unfinished, self.unfinished = self.unfinished, {}
        return unfinished

    def discard(self) -> Usage:
        """The usage of all rows that were not taken, and that nobody will take any more."""
        usage = sum((each.usage for each in self.unfinished.values()), self.usage + self.cancelled)
        self.unfinished, self.usage, self.cancelled = {}, Usage(), Usage()
        return usage

    def keep(self, row: Row, output: Output, usage: Usage | None = None) -> None:
        self._outputs.append((row, output))
        self._finish(row, usage)
        if self.hook.streams:
            self.hook.on_stream(Passed(self.node.id, row_of(self.node, row, output)))

    def drop(self, row: Row) -> None:
        self._dropped.append(row.row_id)
        self._finish(row, None)
        if self.hook.streams:
            self.hook.on_stream(Dropped(self.node.id, row.row_id))

    def reject(
        self,
        row: Row,
        reason: Reason,
        message: str,
        attempts: int = 0,
        raw: str | None = None,
        usage: Usage | None = None,
    ) -> None:
        """Rejects a row, or passes it on to the next engine of its step; a candidate becomes an invalid one."""
        node, words, asks = self.node, writable(message), attempts or row.asks
        spent = spent_on(row, usage or Usage())
        self._finish(row, usage)
        if (onward := escalated(node, row, reason, asks, spent)) is not None:
            self._escalated.append(onward)
            if self.hook.streams:
                self.hook.on_stream(Unusable(node.id, row.row_id, asks, reason, words))
            return
        if node.samples > 1:
            self._outputs.append((row, Output(row.row_id, invalid_candidate(reason, words[:MAX_MESSAGE]), asks, None, spent)))
            if self.hook.streams:
                self.hook.on_stream(Unusable(node.id, row.row_id, asks, reason, words))
            return
        cut = raw[:RAW_LIMIT] if raw is not None else None
        rejection = Rejection(row.row_id, node.id, reason, words, asks, cut, row.line, row.key, spent, node.told_engine)
        self._rejected.append(rejection)
        if self.hook.streams:
            self.hook.on_stream(rejection)

    def _finish(self, row: Row, usage: Usage | None) -> None:
        if self.since is None:
            self.since = monotonic()
        if usage is not None:
            self.usage += usage
        if self.unfinished:
            self.unfinished.pop(row.row_id, None)


def spent_on(row: Row, usage: Usage) -> Spent:
    """Everything spent on a row, including before `--retry` opened it again."""
    return row.earlier.spent + usage.spent if row.earlier else usage.spent


async def streamed(engine: Engine, request: Request, asked: Asked, hook: Hook) -> Completion:
    """One answer, its question and every piece of it told."""
    failed: list[Exception] = []
    completion: Completion | None = None

    def tell(delta: Delta) -> None:
        try:
            if delta.anew:
                hook.on_stream(asked)
            if delta.text or delta.reasoning:
                hook.on_stream(Piece(asked.step_id, asked.row_id, asked.ask, delta.text, delta.reasoning))
        except Exception as error:  # must not look like the engine's
            failed.append(error)
            scope.cancel()

    hook.on_stream(asked)
    with anyio.CancelScope() as scope:
        completion = await engine.stream(request, tell)
    if completion is None or failed:
        raise failed[0]
    return completion


def excess(*outputs: Output) -> str:
    """The reason why a row may not become these outputs; "" if it may."""
    found = 0
    for output in outputs:
        found += len(output.value) + len(output.reasoning or "")
    return f"the row became {found:,} bytes; at most {MAX_ROW_BYTES:,} are kept of one" if found > MAX_ROW_BYTES else ""


def writable(text: str) -> str:
    """The text with halves of surrogate pairs, which no file can hold, as "?"."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def raised(error: BaseException) -> str:
    """The error and the line that raised it, for example `LookupError: not this one (chain.py:7)`."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = f" ({trace.tb_frame.f_code.co_filename}:{trace.tb_lineno})" if trace is not None else ""
    return told(error) + place
