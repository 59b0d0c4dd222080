"""Interprets a server's answer: a matter of the request, of the server, or of Chainette's configuration.

Pure functions over statuses and bodies; error texts are looked for in the places where OpenAI,
vLLM, llama.cpp, Ollama, TGI and FastAPI put them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import msgspec

from chainette.engine.base import Completion, Finish

__all__ = ["Failure", "Fault", "completion_of", "fault_of", "first_words"]

_MOST_WORDS = 500

#: Statuses that concern one request.
_ABOUT_THE_REQUEST = frozenset({400, 413, 422})
#: Statuses below 500 after which the same request may succeed.
_PASSING = frozenset({408, 409, 425})
#: Anthropic-compatible gateways send 529 for 503.
_OVERLOADED = frozenset({503, 529})

_TOO_LONG = re.compile(
    r"context[ _-]?(length|size|window)|maximum context|exceed_context|(prompt|input|request) is too long|too many tokens"
    r"|tokens? .{0,60}must be <=|maximum (input|prompt|model) length|longer than the maximum",
    re.IGNORECASE | re.DOTALL,
)
_DECLINED = re.compile(r"content[ _](filter|policy)|content management policy", re.IGNORECASE)
#: OpenAI also answers 429 for an account without credit.
_UNPAID = re.compile(r"insufficient_quota|billing_hard_limit", re.IGNORECASE)


class Fault(StrEnum):
    """Why a try gave no answer, although another may."""

    #: 429: alive, but overloaded
    BUSY = "busy"
    #: 503: overloaded, starting or ending
    OVERLOADED = "overloaded"
    #: another 5xx, a broken connection, a malformed body
    BROKEN = "broken"
    #: no connection; the request was not sent
    UNREACHABLE = "unreachable"
    #: no answer in time
    TIMEOUT = "timeout"


@dataclass(frozen=True)
class Failure:
    """One try that gave no answer."""

    fault: Fault
    #: What happened and where, without secrets.
    words: str
    #: Seconds for which the server asked for no requests.
    retry_after: float | None = None

    @property
    def is_overload(self) -> bool:
        """Whether fewer concurrent requests may help."""
        return self.fault in (Fault.BUSY, Fault.OVERLOADED, Fault.TIMEOUT)


def first_words(data: bytes) -> str:
    """The text of an error body, on one line, shortened."""
    try:
        found = _message(msgspec.json.decode(data))
    except (msgspec.DecodeError, UnicodeDecodeError):
        found = None
    line = " ".join((found or data.decode(errors="replace")).split())
    return line if len(line) <= _MOST_WORDS else line[:_MOST_WORDS] + "..."


def completion_of(status: int, data: bytes, words: str) -> Completion | None:
    """The completion of a request that the server will not answer; None if the status does not concern the request.

    A prompt that is too long may also be a 500, from older llama.cpp servers.
    """
    if status not in _ABOUT_THE_REQUEST and status != 500:
        return None
    text = data.decode(errors="replace")
    if _TOO_LONG.search(text):
        return Completion("", Finish.TOO_LONG, error=words)
    if status == 500:
        return None
    if _DECLINED.search(text):
        return Completion("", Finish.REFUSED, error=words)
    return Completion("", Finish.ERROR, error=f"{status}: {words}")


def fault_of(status: int, data: bytes) -> Fault | None:
    """What a status says about the next try; None if every try would end the same way."""
    if status == 429:
        return None if _UNPAID.search(data.decode(errors="replace")) else Fault.BUSY
    if status in _OVERLOADED:
        return Fault.OVERLOADED
    return Fault.BROKEN if status >= 500 or status in _PASSING else None


def _message(body: Any) -> str | None:
    if isinstance(body, str):
        return body
    if isinstance(body, dict):
        for name in ("error", "message", "detail"):
            if name in body:
                return _message(body[name]) or msgspec.json.encode(body[name]).decode()
    return None
