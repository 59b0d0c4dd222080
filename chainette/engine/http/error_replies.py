"""Reading of statuses and error bodies: whether they concern the request, the server, or Chainette's configuration.

Pure functions. `chat_reply` reads the bodies of answers.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import msgspec

from chainette.engine.base import Cause, Completion, Finish
from chainette.records import Usage

__all__ = ["Failure", "Fault", "NoAnswer", "completion_of", "failure_of", "finish_said", "shortened", "words_of"]

#: Characters of a server's words that are shown, and bytes of an error that are searched and decoded.
_MOST_WORDS, _MOST_BYTES = 500, 1 << 16
#: The fields that hold a server's words, and how deep they lie inside each other at most.
_WORDS = ("error", "errors", "message", "detail", "msg", "error_msg", "error_message", "description", "reason")
_DEEPEST = 6

#: Statuses that concern one request.
_ABOUT_THE_REQUEST = frozenset({400, 413, 422})
#: Statuses that may refuse one request for its content, and may concern all.
_MAY_DECLINE = frozenset({403, 451})
#: 420 is an older 429.
_BUSY = frozenset({420, 429})
#: Anthropic-compatible gateways send 529 for 503.
_OVERLOADED = frozenset({503, 529})

#: How servers say that a prompt does not fit. Words about `max_tokens` alone are absent: they concern the declaration.
_TOO_LONG_WORDS = (
    r"context[ _-]?(length|size|window|limit)|maximum context|exceed_context|context the overflows",
    r"(prompt|input|request|message|messages)( is| are)? too (long|large)|(string|text) too long|request_too_large",
    r"too many (input |prompt )?tokens|must have less than \d+ tokens|inputs.{0,60}must be <=",
    r"longer than the (maximum|model|specified maximum)|(maximum|max) (input|prompt|model|sequence) length",
    r"(input|prompt|token) (token )?(count|length|tokens)\b.{0,60}\bexceed",
    r"exceed\w*.{0,40}(token limit|maximum number of (input |prompt )?tokens|max(imum)? (allowed )?(length|input))",
    r"range of input length|reduce the length of|reduce your prompt|shorten (the|your) (prompt|input)",
    r"(prompt|input) length.{0,120}(should not exceed|exceeds)|max_prompt_tokens|payload size exceeds",
    r"prompt exceeds|exceeds? (the )?max(imum)? (length|prompt)|\u8d85\u957f",
)
_TOO_LONG = re.compile("|".join(_TOO_LONG_WORDS), re.IGNORECASE | re.DOTALL)
_DECLINED = re.compile(
    r"content[ _-](filter|policy|exists risk)|content management policy|data_?inspection|inappropriate content"
    r"|(input|prompt|content|message)s?\b.{0,40}\bflagged|prohibited (use|content)|\u654f\u611f",
    re.IGNORECASE | re.DOTALL,
)
#: OpenAI also answers 429 for an account without credit.
_UNPAID = re.compile(r"insufficient_quota|billing_hard_limit", re.IGNORECASE)
#: Statuses that refuse every request: no key, no credit, no such way of asking. A redirect is one too.
_ABOUT_THE_ENGINE = frozenset({401, 402, 405})
#: Statuses by which a server denies one request, say for its content, or every request.
_DENYING = frozenset({403, 404, 406, 410, 424, 451})
#: A 429 that waiting does not end: the request is larger than the limit.
_TOO_LARGE = re.compile(r"request too large|larger than (the|your) .{0,40}limit", re.IGNORECASE)
#: Statuses of a gateway when the server behind it is starting, ending or slow.
_GATEWAY = frozenset({502, 503, 504, 529})

_NOTHING = Usage()


class NoAnswer(Exception):
    """A body without a usable answer, although the status promises one."""

    def __init__(self, words: str, usage: Usage = _NOTHING) -> None:
        super().__init__(words)
        #: The cost, if the body states its tokens.
        self.usage = usage


class Fault(StrEnum):
    """Why a try gave no answer, although another may."""

    #: 429: alive, but overloaded
    BUSY = "busy"
    #: 503: overloaded, starting or ending
    OVERLOADED = "overloaded"
    #: another 5xx, a broken connection, a malformed body, an unknown status
    BROKEN = "broken"
    #: 403 and the like: alive, but unwilling
    DENIED = "denied"
    #: no connection; the request was not sent
    UNREACHABLE = "unreachable"
    #: no answer in time
    TIMEOUT = "timeout"


@dataclass(frozen=True)
class Failure:
    """One try that gave no answer."""

    fault: Fault
    #: The event and its place, without secrets.
    words: str
    #: Seconds for which the server asked for no requests.
    retry_after: float | None = None
    #: The HTTP status; 0 if there was no complete reply.
    status: int = 0
    #: The cost of an unusable answer, if the server states its tokens.
    usage: Usage = _NOTHING

    @property
    def cause(self) -> Cause:
        """The cause, for a request that is given up."""
        if self.fault is Fault.DENIED:
            return Cause.DENIED
        is_busy = self.status in _GATEWAY or self.retry_after is not None or self.fault is Fault.BUSY
        return Cause.BUSY if is_busy else Cause.BROKEN

    @property
    def is_answer(self) -> bool:
        """Whether the server is well, although this request got no answer."""
        return self.fault in (Fault.BUSY, Fault.DENIED)

    @property
    def may_pass(self) -> bool:
        """Whether the same request may succeed within seconds. After a timeout, that is too long to wait here."""
        return self.fault not in (Fault.DENIED, Fault.TIMEOUT)

    @property
    def is_overload(self) -> bool:
        """Whether fewer concurrent requests may help."""
        return self.fault in (Fault.BUSY, Fault.OVERLOADED, Fault.TIMEOUT)


def words_of(data: bytes) -> str:
    """The text of an error body, uncut: it may quote a key, and only a whole key can be hidden."""
    try:
        found = _words(msgspec.json.decode(data)) if len(data) <= _MOST_BYTES else None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        found = None
    return found or data.decode(errors="replace")


def shortened(words: str) -> str:
    """Words whose secrets are hidden, on one line of limited length."""
    line = " ".join(words[:_MOST_BYTES].split())
    return line if len(line) <= _MOST_WORDS else line[:_MOST_WORDS] + "..."


def completion_of(status: int, data: bytes, words: str) -> Completion | None:
    """The completion of a request the server will not answer; None if the status does not concern the request.

    A prompt that is too long may also be a 500, from older llama.cpp servers.
    """
    finish = Finish.TOO_LONG if status == 413 else finish_said(_decoded(data))
    if status in _MAY_DECLINE:
        return Completion("", Finish.REFUSED, error=words) if finish is Finish.REFUSED else None
    if status == 500:
        return Completion("", Finish.TOO_LONG, error=words) if finish is Finish.TOO_LONG else None
    if status not in _ABOUT_THE_REQUEST:
        return None
    if finish is None:
        return Completion("", Finish.ERROR, error=f"{status}: {words}")
    return Completion("", finish, error=words or str(status))


def finish_said(words: str) -> Finish | None:
    """TOO_LONG or REFUSED, if an error says so."""
    if _TOO_LONG.search(words):
        return Finish.TOO_LONG
    return Finish.REFUSED if _DECLINED.search(words) else None


def failure_of(status: int, data: bytes, words: str, wait: float | None) -> Failure | None:
    """The failure that a status without an answer stands for; None if it refuses every request."""
    text = _decoded(data)
    if status in _ABOUT_THE_ENGINE or 300 <= status < 400 or (status in _BUSY and _UNPAID.search(text)):
        return None
    if status in _DENYING or (status in _BUSY and _TOO_LARGE.search(text)):
        return Failure(Fault.DENIED, words, status=status)
    if status in _OVERLOADED:
        return Failure(Fault.OVERLOADED, words, wait, status)
    return Failure(Fault.BUSY if status in _BUSY else Fault.BROKEN, words, wait, status)


def _decoded(data: bytes) -> str:
    return data[:_MOST_BYTES].decode(errors="replace")


def _words(body: Any, deepest: int = _DEEPEST) -> str | None:
    """The words in an error, which servers wrap in objects and lists."""
    if isinstance(body, list) and body:
        body = body[0]
    if isinstance(body, str) or not deepest:
        return body if isinstance(body, str) else None
    if not isinstance(body, dict):
        return None
    for name in _WORDS:
        if body.get(name):
            return _with_cause(_words(body[name], deepest - 1) or msgspec.json.encode(body[name]).decode(), body)
    return None


def _with_cause(words: str, error: dict[str, Any]) -> str:
    """The words of a router, and those of the server behind it; and the parameter they are about."""
    metadata = error.get("metadata")
    cause = metadata.get("raw") if isinstance(metadata, dict) else None
    words = f"{words}: {cause}" if isinstance(cause, str) else words
    place = error.get("loc") or error.get("param")
    name = ".".join(str(each) for each in place if each != "body") if isinstance(place, list) else place
    return f"{words} ({name})" if isinstance(name, str) and name not in words else words
