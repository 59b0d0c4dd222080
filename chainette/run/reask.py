"""The conversation of a re-ask: the question, then each bad answer with a complaint about it."""

from __future__ import annotations

from chainette.engine.base import Completion
from chainette.records import Message

__all__ = ["corrected", "correction"]

#: Characters of a bad answer that are sent back; some servers ignore `max_tokens`.
_LONGEST_BAD = 32_768


def correction(bad: Completion, problem: str, context: int | None, answer_tokens: int) -> tuple[str, str]:
    """A bad answer and the complaint about it, both of which fit in the model's context beside the next answer.

    Args:
        context: the model's tokens, if they are known.
        answer_tokens: tokens of the next answer.
    """
    complaint = f"That answer cannot be used: {problem}\nAnswer again, with the JSON object only."
    if context is None or not bad.usage.completion_tokens:
        return bad.text[:_LONGEST_BAD], complaint
    per_token = len(bad.text) / bad.usage.completion_tokens
    tokens = context - bad.usage.prompt_tokens - answer_tokens
    room = max(0, int(tokens * per_token) - len(complaint))
    return bad.text[: min(room, _LONGEST_BAD)], complaint


def corrected(messages: tuple[Message, ...], correction: tuple[str, str]) -> tuple[Message, ...]:
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
