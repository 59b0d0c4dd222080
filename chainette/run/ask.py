"""One ask of a row: its question, and the bad answers so far with the complaints about them."""

from __future__ import annotations

from functools import reduce

import msgspec

from chainette.records import Message, Row, Unfinished, Usage

__all__ = ["FRESH", "Ask"]

#: A row that was not asked for yet.
FRESH = Unfinished()


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
        return reduce(_corrected, self.before.corrections, self.question)

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
