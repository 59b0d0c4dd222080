"""Reading an answer: the row in it, or the reason why it is not one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
from pydantic import ValidationError

from chainette.core.dump import NotRoundTrip, dump_row, explain
from chainette.core.step import Step
from chainette.engine.base import Completion, Finish
from chainette.engine.unwrapped_answer import unwrapped
from chainette.records import Output, Reason, Usage
from chainette.run.ask import Ask
from chainette.run.unit_result import excess, spent_on, writable
from chainette.utils.user_errors import RAISED, told

__all__ = ["BadAnswer", "read_answer", "read_value", "readable"]


@dataclass(frozen=True)
class BadAnswer:
    """An answer that is not an output."""

    reason: Reason
    message: str


def read_answer(step: Step[Any, Any], completion: Completion, ask: Ask, usage: Usage, key: bytes) -> Output | BadAnswer:
    """The output row in a completion, or its fault. `key` is the key of the request."""
    match completion.finish:
        case Finish.REFUSED:
            return BadAnswer(Reason.REFUSED, completion.error or "the model declined to answer")
        case Finish.TOO_LONG:
            return BadAnswer(Reason.PROMPT_TOO_LONG, completion.error)
        case Finish.ERROR | Finish.FAILED:
            return BadAnswer(Reason.ENGINE_ERROR, completion.error)
        case Finish.LENGTH:
            whole = _read_whole(step, completion, ask, usage, key)
            return whole if isinstance(whole, Output) else _truncated(step, completion)
        case Finish.STOP:
            return _read_whole(step, completion, ask, usage, key)


def _read_whole(step: Step[Any, Any], completion: Completion, ask: Ask, usage: Usage, key: bytes) -> Output | BadAnswer:
    thoughts, value = "", read_value(step, completion.text)
    if isinstance(value, BadAnswer) and value.reason is Reason.NOT_JSON:
        thoughts, text = unwrapped(completion.text)
        value = read_value(step, text)
    if isinstance(value, BadAnswer):
        return value
    row, reasoning = ask.row, completion.reasoning or thoughts or None
    output = Output(row.row_id, value, ask.number, reasoning, spent_on(row, usage), key)
    large = excess(output)
    return BadAnswer(Reason.TOO_LARGE, large) if large else output


def read_value(step: Step[Any, Any], text: str) -> bytes | BadAnswer:
    """The output row in plain JSON."""
    try:
        return dump_row(step.output_model.model_validate_json(text))
    except ValidationError as error:
        return _invalid(error)
    except NotRoundTrip as error:
        return BadAnswer(Reason.INVALID_OUTPUT, str(error))
    except RAISED as error:  # a validator of the user's own
        return BadAnswer(Reason.INVALID_OUTPUT, told(error))


def _truncated(step: Step[Any, Any], completion: Completion) -> BadAnswer:
    limit = step.sampling.max_tokens
    cut = completion.error or f"the answer was cut at max_tokens={limit}; raise SamplingParams.max_tokens"
    bound = f"Field(max_length=...) on the strings and lists of {step.output_model.__name__}"
    return BadAnswer(Reason.TRUNCATED, f"{cut}, or bound the answer: {bound}")


def readable(completion: Completion) -> Completion:
    """The answer as text that can be written: an answer cut between two tokens may end in half a character."""
    if completion.text.isascii() and not completion.reasoning and not completion.error:
        return completion
    text, error = writable(completion.text), writable(completion.error)
    reasoning = None if completion.reasoning is None else writable(completion.reasoning)
    return msgspec.structs.replace(completion, text=text, error=error, reasoning=reasoning)


def _invalid(error: ValidationError) -> BadAnswer:
    problems = error.errors(include_url=False)
    if problems[0]["type"] == "json_invalid":
        return BadAnswer(Reason.NOT_JSON, f"not JSON: {problems[0]['msg']}")
    return BadAnswer(Reason.INVALID_OUTPUT, explain(error))
