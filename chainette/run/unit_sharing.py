"""A unit's part in shared answers (`dedupe`): its rows that wait for the answers of others, and those that ask for others."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

import anyio
import msgspec
from anyio.abc import TaskGroup

from chainette.core.step import Step
from chainette.engine.base import Completion
from chainette.errors import EngineUnavailable
from chainette.records import Output
from chainette.run.ask import Ask
from chainette.run.read_answer import BadAnswer, read_value
from chainette.run.shared_answers import Questions, SharedAnswer
from chainette.run.unit_result import MAX_ROW_BYTES, UnitResult

__all__ = ["UnitSharing"]


@dataclass(eq=False, slots=True)
class _Waiting:
    """A row that takes the answer of another one with the same question, or asks for both (`shared_answers.Waiting`)."""

    unit: UnitSharing
    first: Ask
    question: bytes
    #: Whether it waits no more, since its unit is out of the worker's hands.
    gone: bool = False

    def take(self, answer: SharedAnswer, *, checked: bool) -> SharedAnswer | None:
        found = answer if checked else self.unit.checked(self.first, answer)
        if found is not None:
            self.unit.end_wait(self)
            self.unit.result.take_shared(self.first.row, found)
        return found

    def ask(self, *, alone: bool) -> None:
        self.unit.end_wait(self)
        self.unit.begin(self.first, None if alone else self.question)

    def put_off(self, trouble: Completion | EngineUnavailable) -> None:
        self.unit.end_wait(self)
        self.unit.on_no_answer(self.first, trouble)


@dataclass
class UnitSharing:
    """The rows of a unit whose step asks equal requests once."""

    questions: Questions
    step: Step[Any, Any]
    result: UnitResult
    #: Called for a row if the one that asked in its place got no answer.
    on_no_answer: Callable[[Ask, Completion | EngineUnavailable], None]
    #: Row -> the question it asks for others, too.
    _asked_for_others: dict[str, bytes] = field(default_factory=dict)
    #: Rows that are the ones to ask.
    _to_begin: list[Ask] = field(default_factory=list)
    #: Rows that wait for the answers of others, and the number of them the lane was told.
    _waiting: set[_Waiting] = field(default_factory=set)
    _told: int = 0
    _changed: anyio.Event = field(default_factory=anyio.Event)

    async def ask_once(
        self, asks: Sequence[Ask], begin: Callable[[Sequence[Ask]], Coroutine[Any, Any, None]], group: TaskGroup
    ) -> None:
        """Asks each question once; the other rows wait for its answer, here or in another unit."""
        rows = [_Waiting(self, ask, self.questions.question(self.result.keys[ask.row.row_id], ask.row.asks)) for ask in asks]
        self._waiting.update(rows)
        for row in rows:
            self.questions.want(row.question, row)
        while self._waiting or self._to_begin:
            asks, self._to_begin = self._to_begin, []
            self._changed = anyio.Event()
            self._tell_waiting()
            if not self._waiting:
                await begin(asks)
            elif asks:
                group.start_soon(begin, asks)
            else:
                await self._changed.wait()

    def begin(self, ask: Ask, question: bytes | None) -> None:
        """A row asks; `question`: for others, too."""
        if question is not None:
            self._asked_for_others[ask.row.row_id] = question
        self._to_begin.append(ask)

    def end_wait(self, row: _Waiting) -> None:
        """A row does not wait for the answer of another one any more."""
        self._waiting.discard(row)
        self._changed.set()

    def _tell_waiting(self) -> None:
        if more := len(self._waiting) - self._told:
            self._told += more
            self.questions.on_waiting(more)

    def leave(self) -> None:
        """Nothing more is asked or waited for: others ask the questions in this unit's place."""
        for row in self._waiting:
            row.gone = True
        self._waiting.clear()
        self._tell_waiting()
        for question in self._asked_for_others.values():
            self.questions.answers.leave(question)
        self._asked_for_others.clear()

    def settle(self, ask: Ask, outcome: BadAnswer | Output, raw: str | None = None) -> None:
        """Rows with the same question share the outcome, if this one asked for them."""
        question = self._asked_for_others.pop(ask.row.row_id, None)
        if question is None:
            return
        if isinstance(outcome, Output):
            answer = SharedAnswer(ask.number, outcome.value, outcome.reasoning)
        else:
            answer = SharedAnswer(ask.number, reason=outcome.reason, message=outcome.message, raw=raw)
        self.questions.answers.settle(question, answer)

    def put_off(self, ask: Ask, trouble: Completion | EngineUnavailable) -> None:
        """Rows with the same question wait for the next try, too, if this one asked for them."""
        question = self._asked_for_others.pop(ask.row.row_id, None)
        if question is not None:
            self.questions.answers.put_off(question, trouble)

    def checked(self, ask: Ask, answer: SharedAnswer) -> SharedAnswer | None:
        """An answer that came through the queue, where anybody may have written it; None if it is none for the step."""
        if not ask.row.asks < answer.asks <= ask.row.asks + self.step.max_attempts:
            return None
        value = read_value(self.step, answer.value.decode("utf-8", "replace")) if not answer.reason else b""
        if isinstance(value, BadAnswer) or len(value) + len(answer.reasoning or "") + len(answer.message) > MAX_ROW_BYTES:
            return None
        return msgspec.structs.replace(answer, value=value)
