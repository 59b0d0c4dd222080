"""Adaptation: changes to a request whose server refuses a parameter by name.

Only parameters whose absence keeps the meaning are changed, and none the step set itself. Pure functions over the
JSON of a request and the words of a refusal.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import msgspec

from chainette.engine.base import SamplingParams
from chainette.engine.grammar_fit import loosened
from chainette.records import Message

__all__ = ["CHANGES", "adapted", "advice", "remedy"]

Body = dict[str, Any]

_REFUSED = (
    r"(unsupported|not? support|n.t support|unrecogni[sz]ed|unknown|unexpected|extra|not permitted|not allowed|invalid"
    r"|unavailable|not available|only the default|deprecated|not enabled|disabled|forbidden|\buse\b)"
)

#: Names in a refusal, and the setting they are about; the first that is named counts.
_SETTINGS = (
    (r"system", "write the step's instructions in user_prompt, with system_prompt='' and output_format_instruction=''"),
    (r"max_(completion_)?tokens|max_new_tokens", "set SamplingParams(max_tokens=...) of the step"),
    (r"temperature", "set SamplingParams(temperature=...) of the step"),
    (r"response_format|json_schema|schema|structured|grammar", "give the engine response_format='json_object' or 'none'"),
    (r"\bseed\b", "leave it out: extra={'seed': None} of the engine"),
    (r"\b(top_p|top_k|stop|presence_penalty|frequency_penalty|repetition_penalty)\b", "change it in the step's SamplingParams"),
    (r"model", "correct the engine's model"),
)


@dataclass(frozen=True)
class Change:
    """One change to a request."""

    #: The change, as users read it.
    words: str
    #: Words of a refusal that ask for it: a pattern, which few processes ever need.
    pattern: str
    #: Whether the step left the parameter open.
    is_ours: Callable[[SamplingParams], bool]
    apply: Callable[[Body], None]


def _named(name: str) -> str:
    """A refusal that names a parameter."""
    return rf"({name}).*{_REFUSED}|{_REFUSED}.*({name})"


def _rename(old: str, new: str) -> Callable[[Body], None]:
    def apply(body: Body) -> None:
        if old in body:
            body[new] = body.pop(old)

    return apply


def _drop(name: str) -> Callable[[Body], None]:
    def apply(body: Body) -> None:
        body.pop(name, None)

    return apply


def _as_object(body: Body) -> None:
    if b'"json_schema"' in msgspec.json.encode(body.get("response_format")):
        body["response_format"] = {"type": "json_object"}


def _loosen(body: Body) -> None:
    if (looser := _looser_format(msgspec.json.encode(body.get("response_format")))) is not None:
        body["response_format"] = looser


@lru_cache(maxsize=64)  # every request of a step has the same one
def _looser_format(asked: bytes) -> Body | None:
    """The response_format with a looser schema; None if there is nothing to loosen."""
    found = msgspec.json.decode(asked)
    match found:
        case {"json_schema": {"schema": dict(schema)} as named} if (loose := loosened(schema)) != schema:
            return dict(found | {"json_schema": named | {"schema": loose}})
    return None


def _fold_system(body: Body) -> None:
    """Puts system messages before the first user message, as one."""
    messages = body["messages"]
    system = "\n\n".join(message.content for message in messages if message.role == "system")
    first, *rest = [message for message in messages if message.role != "system"] or [Message("user", "")]
    body["messages"] = (Message(first.role, f"{system}\n\n{first.content}".strip()), *rest)


#: Name -> change, in the order in which they are tried.
CHANGES = {
    "max_completion_tokens": Change(
        "max_tokens is sent as max_completion_tokens",
        rf"max_tokens.*max_completion_tokens|{_REFUSED}.*\bmax_tokens\b",
        lambda _sampling: True,
        _rename("max_tokens", "max_completion_tokens"),
    ),
    "max_tokens": Change(
        "max_completion_tokens is sent as max_tokens",
        _named(r"\bmax_completion_tokens"),
        lambda _sampling: True,
        _rename("max_completion_tokens", "max_tokens"),
    ),
    "temperature": Change(
        "temperature is left to the server",
        _named(r"\btemperature"),
        lambda sampling: sampling.temperature == SamplingParams().temperature,
        _drop("temperature"),
    ),
    "seed": Change(
        "seed is not sent, so answers vary from run to run",
        _named(r"\bseed\b"),
        lambda sampling: sampling.seed is None,
        _drop("seed"),
    ),
    "looser_schema": Change(
        "keywords of the schema that not every grammar has (pattern, multipleOf, uniqueItems, ...) are not sent; answers are "
        "validated",
        r"schema.*(features?|keywords?|constraints?|patterns?|regex).*not (supported|permitted|allowed)"
        r"|invalid schema|invalid grammar|compil\w+ grammar|grammar.*(fail|error|invalid)",
        lambda _sampling: True,
        _loosen,
    ),
    "json_object": Change(
        "response_format is json_object; the schema is in the prompt, and answers are validated",
        _named(r"response_format|json.schema|structured.outputs?"),
        lambda _sampling: True,
        _as_object,
    ),
    "response_format": Change(
        "response_format is not sent; the schema is in the prompt, and answers are validated",
        _named(r"response_format|json_schema|json_object|structured.outputs?"),
        lambda _sampling: True,
        _drop("response_format"),
    ),
    "system": Change(
        "system messages are sent as part of the first user message",
        _named(r"system\W+(role|message|prompt|instruction)|role\W+system|developer instruction|system.{0,20}role"),
        lambda _sampling: True,
        _fold_system,
    ),
    "stream_options": Change(
        "stream_options is not sent, so streamed answers have no usage",
        _named(r"stream_options|include_usage"),
        lambda _sampling: True,
        _drop("stream_options"),
    ),
}


def adapted(body: Body, made: Iterable[str]) -> Body:
    """The request with these changes."""
    changed = dict(body)
    for name in made:
        CHANGES[name].apply(changed)
    return changed


def remedy(words: str, sampling: SamplingParams, body: Body, made: Sequence[str], declared: Container[str]) -> str | None:
    """The name of the next change a refusal asks for; None if nothing can be changed for it.

    `made` are the changes with which `body` was refused; the keys in `declared` are the user's own.
    """
    refused = [adapted(body, made[:count]) for count in range(len(made) + 1)]
    before = refused[-1]
    for name, change in CHANGES.items():
        if name in made or not re.search(change.pattern, words, re.IGNORECASE | re.DOTALL) or not change.is_ours(sampling):
            continue
        after = adapted(body, [*made, name])
        touched = [key for key in before | after if before.get(key) != after.get(key)]
        if after not in refused and not any(key in declared for key in touched):
            return name
    return None


def advice(words: str) -> str:
    """The change to the declaration a refusal calls for, one clause."""
    for pattern, setting in _SETTINGS:
        if re.search(pattern, words, re.IGNORECASE):
            return setting
    return "correct the engine's declaration or the step's SamplingParams"
