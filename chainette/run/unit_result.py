"""Tally: what became of the rows of one unit, told as it happens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import anyio

from chainette.core.flow import row_of
from chainette.core.plan import PlanNode
from chainette.core.streaming import Asked, Dropped, Passed, Piece
from chainette.engine.base import Completion, Delta, Engine, Request
from chainette.hooks import Hook
from chainette.records import Output, Reason, Rejection, Row, Spent, Usage
from chainette.utils.foreign import told

__all__ = ["MAX_ROW_BYTES", "RAW_LIMIT", "Tally", "excess", "raised", "streamed", "writable"]

#: Bytes of all that one row becomes in one node.
MAX_ROW_BYTES = 16 << 20

#: Characters of a raw answer that a rejection keeps.
RAW_LIMIT = 65_536

_NOTHING = Spent()


@dataclass
class Tally:
    """Every row is kept, dropped or rejected once."""

    node: PlanNode
    hook: Hook
    outputs: list[tuple[Row, Output]] = field(default_factory=list)
    rejected: list[Rejection] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    usage: Usage = field(default_factory=Usage)

    def keep(self, row: Row, output: Output) -> None:
        self.outputs.append((row, output))
        if self.hook.streams:
            self.hook.on_stream(Passed(self.node.id, row_of(self.node, row, output)))

    def drop(self, row: Row) -> None:
        self.dropped.append(row.row_id)
        if self.hook.streams:
            self.hook.on_stream(Dropped(self.node.id, row.row_id))

    def reject(
        self, row: Row, reason: Reason, message: str, attempts: int = 0, raw: str | None = None, spent: Spent = _NOTHING
    ) -> None:
        cut = raw[:RAW_LIMIT] if raw is not None else None
        words, asks = writable(message), attempts or row.asks
        rejection = Rejection(row.row_id, self.node.id, reason, words, asks, cut, row.line, row.key, spent)
        self.rejected.append(rejection)
        if self.hook.streams:
            self.hook.on_stream(rejection)


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


def excess(outputs: Sequence[Output]) -> str:
    """Why a row may not become these; "" where it may."""
    found = sum(len(output.value) + len(output.reasoning or "") for output in outputs)
    return f"the row became {found:,} bytes; at most {MAX_ROW_BYTES:,} are kept of one" if found > MAX_ROW_BYTES else ""


def writable(text: str) -> str:
    """The text with halves of surrogate pairs, which no file can hold, as "?"."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def raised(error: BaseException) -> str:
    """What was raised, and by which line of the user's: `LookupError: not this one (chain.py:7)`."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = f" ({trace.tb_frame.f_code.co_filename}:{trace.tb_lineno})" if trace is not None else ""
    return told(error) + place
