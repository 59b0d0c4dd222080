"""One ask of a row: its question, the bad answers so far, and the seed that follows from them."""

from __future__ import annotations

import hashlib
from functools import reduce

import msgspec

from chainette.records import Message, Row, Unfinished, Usage

__all__ = ["FRESH", "Ask", "row_seed"]

#: A row that was not asked for yet.
FRESH = Unfinished()


def row_seed(run_seed: int, step_id: str, row_id: str, ask: int, rounds: str = "", engine: int = 0, *, sample: int = 0) -> int:
    """The sampling seed of one ask, 0 <= seed < 2**31: a hash, so that scheduling cannot change it.

    `rounds` is the round of a loop, if it is not the first, `engine` the number of an escalated engine, and `sample` that of
    a candidate.
    """
    text = f"{run_seed}\0{step_id}\0{row_id}\0{ask}"
    text += (f"\0{rounds}" if rounds else "") + (f"\0engine {engine}" if engine else "")
    text += f"\0sample {sample}" if sample else ""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest()) & 0x7FFFFFFF


class Ask(msgspec.Struct, frozen=True):
    """One row's question, and how often it was asked."""

    row: Row
    #: The messages of the first ask.
    question: tuple[Message, ...]
    #: From 1; goes on if `--retry` opened the row again.
    number: int
    #: The answers before this ask, since the row was opened.
    before: Unfinished

    @property
    def attempt(self) -> int:
        """The number of this ask among those since the row was opened."""
        return self.before.asks + 1

    @property
    def messages(self) -> tuple[Message, ...]:
        corrections = self.before.corrections
        return reduce(_corrected, corrections, self.question) if corrections else self.question

    @property
    def corrects(self) -> bool:
        """Whether the messages end in a bad answer and a complaint about it."""
        return bool(self.before.corrections) and bool(self.before.corrections[-1][0].strip())

    def again(self, corrections: tuple[tuple[str, str], ...], usage: Usage) -> Ask:
        before = Unfinished(self.attempt, 0, usage, corrections)
        return msgspec.structs.replace(self, number=self.number + 1, before=before)


def _corrected(messages: tuple[Message, ...], correction: tuple[str, str]) -> tuple[Message, ...]:
    """The messages with a bad answer and a complaint about it.

    Without the answer, the complaint joins the last user message: many chat templates refuse two in a row.
    """
    bad, complaint = correction
    if bad.strip():
        return *messages, Message("assistant", bad), Message("user", complaint)
    *before, last = messages
    if last.role != "user":
        return *messages, Message("user", complaint)
    return *before, Message("user", f"{last.content}\n\n{complaint}")
