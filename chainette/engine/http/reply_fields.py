"""Fields of chat replies, whatever type a server gives them.

Guarantee: nothing but msgspec.DecodeError and, for fields nested very deep, RecursionError is raised.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec

from chainette.utils.json_escapes import ESCAPE

__all__ = [
    "BROKEN",
    "Object",
    "TokenCounts",
    "calls",
    "choices",
    "count",
    "document",
    "error",
    "message",
    "said",
    "thoughts",
    "tokens",
    "word",
]

Object = dict[str, Any]

#: Bytes of a reply whose fields may have any type. A larger one must have the usual types: a list of empty lists, say,
#: takes twenty times its size in memory.
_MOST = 4 << 20
#: Lists of parts inside each other that are followed.
_DEEPEST = 4
#: Larger counts of tokens are mistakes, and too large for any table.
_MOST_TOKENS = 1 << 53

_TEXT_KINDS = frozenset({"", "text", "output_text", "input_text", "summary_text"})
_THOUGHT_KINDS = frozenset({"thinking", "reasoning", "thought", "reasoning_content", "reasoning_text"})
_ALL_KINDS = _TEXT_KINDS | _THOUGHT_KINDS
_NAMED_KINDS = _ALL_KINDS - {""}

#: JSON strings and, outside of them, numbers that JSON lacks.
_STRING_OR_NO_NUMBER = re.compile(r'"(?>[^"\\]++|\\.)*+"|(?P<no_number>-?\b(?:NaN|Infinity)\b)', re.DOTALL)
_NO_UTF_8 = re.compile("[\udc80-\udcff]")
#: Stands for a character that is not whole; a Unicode noncharacter, which no text holds.
BROKEN = "\ufffe"


class _PlainMessage(msgspec.Struct, omit_defaults=True):
    content: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    thinking: str | None = None


class _PlainChoice(msgspec.Struct, omit_defaults=True):
    message: _PlainMessage
    finish_reason: str | None = None


class _PlainReply(msgspec.Struct, omit_defaults=True):
    """OpenAI's fields, then Ollama's; all others are passed over undecoded."""

    choices: tuple[_PlainChoice] | None = None
    usage: dict[str, Any] | None = None
    model: str | None = None
    message: _PlainMessage | None = None
    done: bool | None = None
    done_reason: str | None = None
    prompt_eval_count: int | None = None
    eval_count: int | None = None


_decode = msgspec.json.Decoder().decode
_decode_plain = msgspec.json.Decoder(_PlainReply).decode


def document(data: bytes) -> Object:
    """The fields of a JSON object. NaN, numbers out of range and broken characters may stand beside the answer.

    Raises:
        msgspec.DecodeError: it is not a JSON object, or too large for its types.
    """
    try:
        return _decoded(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as failed:
        mended = _mended(data) if len(data) <= _MOST else data
        if mended == data:
            raise msgspec.DecodeError(str(failed)) from None
        return _decoded(mended)


def _decoded(data: bytes) -> Object:
    if len(data) <= _MOST:
        try:
            found = _decode(data)
        except msgspec.ValidationError:  # a number out of range
            pass
        else:
            if not isinstance(found, dict):
                raise msgspec.ValidationError("not a JSON object")
            return found
    plain: Object = msgspec.to_builtins(_decode_plain(data))
    return plain


def _mended(data: bytes) -> bytes:
    text = _NO_UTF_8.sub(BROKEN, data.decode(errors="surrogateescape"))
    text = ESCAPE.sub(lambda found: BROKEN if found["half"] else found[0], text)
    return _STRING_OR_NO_NUMBER.sub(lambda found: "null" if found["no_number"] else found[0], text).encode()


def choices(document: Object) -> list[Object]:
    found = document.get("choices")
    return [choice for choice in found if isinstance(choice, dict)] if isinstance(found, list | tuple) else []


def message(choice: Object) -> Object | None:
    """The message of a choice, or its piece of one; None if it has neither."""
    for name in ("message", "delta"):
        found = choice.get(name)
        if isinstance(found, dict):
            return found
        if isinstance(found, str):
            return {"content": found}
    return {"content": choice["text"]} if isinstance(choice.get("text"), str) else None


def said(content: object) -> str:
    """A text, the text parts of a list, or an object as JSON; "" if it is none of these."""
    if isinstance(content, str):
        return content
    if isinstance(content, dict) and word(content.get("type")).lower() not in _NAMED_KINDS:
        return msgspec.json.encode(content).decode()
    return _part(content, _TEXT_KINDS)


def thoughts(message: Object) -> str:
    """The thoughts beside a content, or else those among its parts."""
    for name in ("reasoning_content", "reasoning", "thinking"):
        if found := _part(message.get(name), _ALL_KINDS):
            return found
    content = message.get("content")
    return _part(content, _THOUGHT_KINDS) if isinstance(content, list) else ""


def calls(message: Object) -> Iterator[tuple[int, str]]:
    """The index of each tool call, and its arguments or a piece of them."""
    found = message.get("tool_calls")
    for call in found if isinstance(found, list) else ():
        if isinstance(call, dict):
            yield count(call.get("index")), _arguments(call.get("function"))
    if message.get("function_call"):
        yield 0, _arguments(message["function_call"])


def error(found: object) -> bytes:
    """The error as JSON, b"" if there is none."""
    return msgspec.json.encode(found) if found else b""


class TokenCounts(NamedTuple):
    """Tokens of the prompt, of the answer, and of the part of the prompt that the server had in its cache."""

    prompt: int = 0
    answer: int = 0
    cached: int = 0


def tokens(document: Object) -> TokenCounts | None:
    """The tokens, if a count of them is there."""
    usage = document.get("usage")
    if isinstance(usage, dict):
        prompt = count(usage.get("prompt_tokens")) or count(usage.get("input_tokens"))
        answer = count(usage.get("completion_tokens")) or count(usage.get("output_tokens"))
        return TokenCounts(prompt, answer, min(prompt, _cached(usage)))
    if "eval_count" in document or "prompt_eval_count" in document:
        return TokenCounts(count(document.get("prompt_eval_count")), count(document.get("eval_count")))
    return None


def _cached(usage: Object) -> int:
    """Cached tokens as OpenAI and vLLM, its Responses API, DeepSeek, Moonshot, and Anthropic's dialect name them."""
    for name in ("prompt_tokens_details", "input_tokens_details"):
        details = usage.get(name)
        if isinstance(details, dict) and (found := count(details.get("cached_tokens"))):
            return found
    names = ("prompt_cache_hit_tokens", "cached_tokens", "cache_read_input_tokens")
    return next((found for name in names if (found := count(usage.get(name)))), 0)


def count(found: object) -> int:
    """A count of tokens; 0 if it is not one."""
    is_number = isinstance(found, int | float) and not isinstance(found, bool)
    return int(found) if is_number and 0 <= found < _MOST_TOKENS else 0  # type: ignore[operator, call-overload]


def word(found: object) -> str:
    """A name, such as a reason to finish; the `type` or `reason` of an object; "" if it is neither."""
    if isinstance(found, dict):
        found = found.get("type") or found.get("reason")
    return found if isinstance(found, str) else ""


def _arguments(function: object) -> str:
    return said(function.get("arguments")) if isinstance(function, dict) else ""


def _part(found: object, kinds: frozenset[str], deepest: int = _DEEPEST) -> str:
    """The text in a string, in a list of parts or in a part."""
    if isinstance(found, str):
        return found if "" in kinds else ""
    if not found or not deepest:
        return ""
    if isinstance(found, list):
        return "".join(_part(each, kinds, deepest - 1) for each in found)
    if not isinstance(found, dict) or word(found.get("type")).lower() not in kinds:
        return ""
    names = ("text", "thinking", "reasoning", "content", "summary")
    return next((text for name in names if (text := _part(found.get(name), _ALL_KINDS, deepest - 1))), "")
