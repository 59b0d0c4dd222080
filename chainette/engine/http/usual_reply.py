"""The usual chat reply, as OpenAI, vLLM and llama.cpp send it: decoded in one call, a quarter of the work of `chat_reply`.

A field of another type, an error, thoughts, a tool call or any other end makes a reply unusual; `chat_reply` reads those.
Both give the same completion for a usual one.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from chainette.engine.base import Completion, Finish
from chainette.records import Usage

__all__ = ["usual_reply"]

#: Larger counts are mistakes.
_Count = Annotated[int, Meta(ge=0, lt=1 << 53)]
#: An empty list, which servers send for calls that nobody made.
_Nothing = Annotated[list[Any], Meta(max_length=0)] | None


class _Details(msgspec.Struct):
    cached_tokens: _Count | None = None


class _Usage(msgspec.Struct):
    """Counts under OpenAI's names, and none under those of others."""

    prompt_tokens: _Count
    completion_tokens: _Count
    prompt_tokens_details: _Details | None = None
    input_tokens: None = None
    output_tokens: None = None
    input_tokens_details: None = None
    prompt_cache_hit_tokens: None = None
    cached_tokens: None = None
    cache_read_input_tokens: None = None


class _Message(msgspec.Struct):
    content: str
    refusal: None = None
    reasoning_content: None = None
    reasoning: None = None
    thinking: None = None
    tool_calls: _Nothing = None
    function_call: None = None


class _Choice(msgspec.Struct):
    message: _Message
    finish_reason: Literal["stop", "length"]
    error: None = None


class _Reply(msgspec.Struct):
    choices: tuple[_Choice]
    usage: _Usage
    model: str
    error: None = None


_decode = msgspec.json.Decoder(_Reply).decode


def usual_reply(data: bytes, seconds: float) -> tuple[Completion, str] | None:
    """The completion in a body and the name of its model; None if it has another form."""
    try:
        reply = _decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    [choice] = reply.choices
    usage, details = reply.usage, reply.usage.prompt_tokens_details
    prompt, cached = usage.prompt_tokens, 0 if details is None else details.cached_tokens or 0
    spent = Usage(1, prompt, usage.completion_tokens, seconds, cached_tokens=min(prompt, cached))
    return Completion(choice.message.content, Finish(choice.finish_reason), None, spent), reply.model
