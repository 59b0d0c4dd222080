"""Whether a row whose answer is bad is asked again, and with which correction."""

from __future__ import annotations

from typing import Any

from chainette.core.step import Step
from chainette.engine.base import Completion
from chainette.records import Reason
from chainette.run.ask import Ask
from chainette.run.read_answer import BadAnswer
from chainette.run.unit_result import writable

__all__ = ["next_corrections"]

#: Characters of a bad answer that are sent back; some servers ignore `max_tokens`.
_LONGEST_BAD = 32_768


def next_corrections(
    step: Step[Any, Any], ask: Ask, completion: Completion, bad: BadAnswer, context: int | None
) -> tuple[tuple[str, str], ...] | None:
    """The corrections of the next ask; None if the row is given up: it is out of attempts, or asking again cannot give
    another answer. `context`: the model's tokens, if they are known."""
    if ask.attempt >= step.max_attempts:
        return None
    so_far, sampling = ask.before.corrections, step.sampling
    match bad.reason:
        case Reason.NOT_JSON | Reason.INVALID_OUTPUT:
            return *so_far, _correction(completion, writable(bad.message), context, sampling.max_tokens)
        case Reason.TRUNCATED:  # only the seed differs, which does nothing at temperature 0
            return so_far if sampling.temperature > 0 else None
        case Reason.PROMPT_TOO_LONG | Reason.ENGINE_ERROR if ask.corrects:  # the bad answer may be the reason
            return *so_far[:-1], ("", so_far[-1][1])
        case _:
            return None


def _correction(bad: Completion, problem: str, context: int | None, answer_tokens: int) -> tuple[str, str]:
    """A bad answer and the complaint about it, both of which fit in the model's context beside the next answer."""
    complaint = f"That answer cannot be used: {problem}\nAnswer again, with the JSON object only."
    if context is None or not bad.usage.completion_tokens:
        return bad.text[:_LONGEST_BAD], complaint
    per_token = len(bad.text) / bad.usage.completion_tokens
    tokens = context - bad.usage.prompt_tokens - answer_tokens
    room = max(0, int(tokens * per_token) - len(complaint))
    return bad.text[: min(room, _LONGEST_BAD)], complaint
