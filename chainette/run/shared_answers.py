"""Rows with equal requests are asked once (`dedupe`): one of them asks, and the others wait for its answer and take it.

Answers are shared within one step of one run at one engine: while the question is in flight, and afterwards as long as
memory remembers it. If the row that asks leaves unanswered, another one asks in its place; if its engine gives no answer,
all wait for the next try with it. Workers of a fleet tell each other through the queue (`LeasedQueue.share`); a queue that
loses its data costs a second ask.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import anyio
import msgspec

from chainette.engine.base import Completion, Finish
from chainette.errors import EngineUnavailable
from chainette.fleet.protocol.keys import RunKeys
from chainette.fleet.protocol.queue_values import Asker
from chainette.records import Reason
from chainette.run.blame import FAILURES
from chainette.utils.recent_values import Recent

__all__ = ["QUESTIONS", "Exchange", "Questions", "SharedAnswer", "SharedAnswers", "Waiting"]

#: Questions whose answers are remembered, and the bytes of these answers in a temporary file.
QUESTIONS, _BYTES = 1_000_000, 1 << 30

#: Questions whose failures are remembered.
_FAILING = 10_000

#: Seconds between two looks whether another worker has an answer by now.
_LOOK = 0.1

#: Questions and answers of one call, and the bytes of these answers.
_AT_ONCE, _LIGHT = 500, 4 << 20

#: Rejections that every row with the same request would get.
_SHARED = frozenset(
    {Reason.PROMPT_TOO_LONG, Reason.TRUNCATED, Reason.NOT_JSON, Reason.INVALID_OUTPUT, Reason.REFUSED},
)


class SharedAnswer(msgspec.Struct, frozen=True, array_like=True):
    """The outcome of a question: an output, or the rejection its answers led to."""

    #: The number of its last ask.
    asks: int
    value: bytes = b""
    reasoning: str | None = None
    #: "" if it led to an output.
    reason: str = ""
    message: str = ""
    raw: str | None = None

    @property
    def is_shared(self) -> bool:
        """Whether other rows take it."""
        return not self.reason or self.reason in _SHARED


class Waiting(Protocol):
    """A row that waits for the answer to its question."""

    @property
    def gone(self) -> bool:
        """Whether it waits no more, since its unit is out of the worker's hands."""

    def take(self, answer: SharedAnswer, *, checked: bool) -> SharedAnswer | None:
        """Ends the row with the answer; `checked` if this process has validated it. Returns the answer as the step's model
        writes it; None if it is none for the step."""

    def ask(self, *, alone: bool) -> None:
        """The row asks. `alone`: for itself only; otherwise others wait for its answer."""

    def put_off(self, trouble: Completion | EngineUnavailable) -> None:
        """The row that asked got no answer: this one waits for the next try with it."""


@dataclass(eq=False)
class _Open:
    """A question without an answer."""

    keys: RunKeys
    waiting: deque[Waiting] = field(default_factory=deque)

    def rest(self) -> list[Waiting]:
        """The rows that still wait for it."""
        return [row for row in self.waiting if not row.gone]


@dataclass
class Exchange:
    """News of one run for other workers, and questions for them."""

    wanted: list[bytes] = field(default_factory=list)
    answers: list[tuple[bytes, bytes]] = field(default_factory=list)
    given_up: list[bytes] = field(default_factory=list)

    def piece(self) -> Exchange:
        """Takes out as much as goes into one call."""
        count = size = 0
        while count < min(len(self.answers), _AT_ONCE) and (not count or size < _LIGHT):
            size += len(self.answers[count][1])
            count += 1
        taken = Exchange(self.wanted[:_AT_ONCE], self.answers[:count], self.given_up)
        self.wanted, self.answers, self.given_up = self.wanted[_AT_ONCE:], self.answers[count:], []
        return taken

    @property
    def is_empty(self) -> bool:
        return not (self.wanted or self.answers or self.given_up)


_OVER = Completion("", Finish.FAILED, error="the epoch of the run is over")

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(SharedAnswer).decode


@dataclass
class SharedAnswers:
    """The questions of one process."""

    #: Whether other processes ask questions of the same runs.
    with_others: bool = False
    _recent: Recent = field(default_factory=lambda: Recent(QUESTIONS, _BYTES))
    _open: dict[bytes, _Open] = field(default_factory=dict)
    #: Question -> its failures; from `FAILURES` on, every row asks for itself.
    _failures: dict[bytes, int] = field(default_factory=dict)
    #: News that other workers do not know yet.
    _outgoing: dict[RunKeys, Exchange] = field(default_factory=dict)
    #: Questions that other workers ask.
    _elsewhere: set[bytes] = field(default_factory=set)
    _news: anyio.Event = field(default_factory=anyio.Event)

    def of(self, keys: RunKeys, station: str, on_waiting: Callable[[int], None]) -> Questions:
        """The questions of a step of a run to one engine; `on_waiting` is told how many rows more, or less, wait for answers
        of others."""
        prefix = hashlib.blake2b(f"{keys.run}\0{keys.epoch}\0{station}\0".encode(), digest_size=16)
        return Questions(self, keys, prefix, on_waiting)

    def close(self) -> None:
        """Forgets every answer. No row asks any more."""
        self._recent.close()

    # -- the rows

    def want(self, keys: RunKeys, question: bytes, row: Waiting) -> None:
        """Lets a row take the answer, wait for it, or ask."""
        if (known := self._recent.get(question)) is not None:
            row.take(_decode(known), checked=True)
        elif self._failures.get(question, 0) >= FAILURES:
            row.ask(alone=True)
        elif (found := self._open.get(question)) is not None:
            found.waiting.append(row)
        else:
            self._open[question] = _Open(keys, deque([row]))
            if self.with_others:
                self._tell(keys).wanted.append(question)
            else:
                self._go_on(question)

    def settle(self, question: bytes, answer: SharedAnswer) -> None:
        """The row that asked has its outcome."""
        if not answer.is_shared:
            self._fail(question, FAILURES)
            for row in self._close(question):
                row.ask(alone=True)
            return
        encoded = _encode(answer)
        self._recent.put(question, encoded)
        if self.with_others and question in self._open:
            self._tell(self._open[question].keys).answers.append((question, encoded))
        for row in self._close(question, is_told=True):
            row.take(answer, checked=True)

    def put_off(self, question: bytes, trouble: Completion | EngineUnavailable) -> None:
        """The row that asked got no answer."""
        if isinstance(trouble, Completion):
            self._fail(question, self._failures.get(question, 0) + 1)
        alone = self._failures.get(question, 0) >= FAILURES
        for row in self._close(question):
            if alone:
                row.ask(alone=True)
            else:
                row.put_off(trouble)

    def _fail(self, question: bytes, failures: int) -> None:
        self._failures.pop(question, None)
        self._failures[question] = failures
        if len(self._failures) > _FAILING:
            del self._failures[next(iter(self._failures))]

    def leave(self, question: bytes) -> None:
        """The row that asked left unanswered: another one asks."""
        self._go_on(question)

    def _go_on(self, question: bytes) -> None:
        """The next row asks; if none waits, the question is given up."""
        found = self._open[question]
        while found.waiting:
            row = found.waiting.popleft()
            if not row.gone:
                row.ask(alone=False)
                return
        self._close(question)

    def _close(self, question: bytes, *, is_told: bool = False) -> list[Waiting]:
        """The question is not open any more; returns the rows that waited for its answer."""
        found = self._open.pop(question)
        self._elsewhere.discard(question)
        if self.with_others and not is_told:
            self._tell(found.keys).given_up.append(question)
        return found.rest()

    # -- other workers

    def _tell(self, keys: RunKeys) -> Exchange:
        self._news.set()
        return self._outgoing.setdefault(keys, Exchange())

    async def outgoing(self) -> list[tuple[RunKeys, Exchange]]:
        """Waits for something to say or to ask, and returns it."""
        with anyio.move_on_after(_LOOK if self._elsewhere else None):
            await self._news.wait()
        for question in [*self._elsewhere]:
            found = self._open[question]
            if found.rest():
                self._tell(found.keys).wanted.append(question)
            else:
                self._open.pop(question)
        self._elsewhere.clear()
        self._news = anyio.Event()
        pieces = [(keys, exchange.piece()) for keys, exchange in self._outgoing.items()]
        self._outgoing = {keys: exchange for keys, exchange in self._outgoing.items() if not exchange.is_empty}
        if self._outgoing:
            self._news.set()
        return pieces

    def heard(self, wanted: Iterable[bytes], found: Sequence[bytes | Asker]) -> None:
        """Takes in the replies of the others about questions."""
        for question, reply in zip(wanted, found, strict=True):
            match reply:
                case Asker.HERE:
                    self._go_on(question)
                case Asker.ELSEWHERE:
                    self._elsewhere.add(question)
                case bytes():
                    self._take_from_others(question, reply)

    def lost(self, wanted: Iterable[bytes]) -> None:
        """The epoch of these questions is over, and the units that wait for their answers are not the worker's any more."""
        for question in wanted:
            for row in self._close(question, is_told=True):
                row.put_off(_OVER)

    def _take_from_others(self, question: bytes, encoded: bytes) -> None:
        answer: SharedAnswer | None
        try:
            answer = _decode(encoded)
        except msgspec.MsgspecError:
            answer = None
        if answer is not None and not answer.is_shared:
            answer = None
        for number, row in enumerate(self._close(question, is_told=True)):
            if answer is not None:
                answer = row.take(answer, checked=number > 0)
            if answer is None:
                row.ask(alone=True)
            elif not number:
                self._recent.put(question, _encode(answer))


@dataclass(frozen=True)
class Questions:
    """The questions of a step of a run to one engine."""

    answers: SharedAnswers
    keys: RunKeys
    _prefix: hashlib.blake2b
    on_waiting: Callable[[int], None]

    def question(self, key: bytes, asks: int) -> bytes:
        """The digest of a question, by the key of its request and the asks that came before."""
        digest = self._prefix.copy()
        digest.update(key)
        if asks:
            digest.update(b"%d" % asks)
        return digest.digest()

    def want(self, question: bytes, row: Waiting) -> None:
        """See `SharedAnswers.want`."""
        self.answers.want(self.keys, question, row)
