"""The text of an answer: the one JSON object in it, and the thoughts before it. The same for every backend.

Models wrap their JSON in thoughts, fences, polite words and end tokens, or write it as a JSON string. All of it is taken
off if exactly one JSON object remains; two objects, or one inside a list or an unclosed brace, are not guessed at.
"""

from __future__ import annotations

import json
import re

__all__ = ["holds_object", "unwrapped"]

#: Characters of a wrapped answer that are searched; a longer one must be plain JSON.
_MOST = 4 << 20

_OPEN = re.compile(
    r"\s*(?:<(?:think|thinking|thoughts?|reasoning|seed:think)>|\[THINK\]|◁think▷|<\|begin_of_thought\|>"
    r"|<\|START_THINKING\|>|(?:<\|start\|>assistant)?<\|channel\|>(?:analysis|commentary)[^{<]{0,80}<\|message\|>)",
    re.IGNORECASE,
)
_CLOSE = re.compile(
    r"</(?:think|thinking|thoughts?|reasoning|seed:think)>|\[/THINK\]|◁/think▷|<\|end_of_thought\|>|<\|END_THINKING\|>"
    r"|(?:<\|end\|>)?(?:<\|start\|>assistant)?<\|channel\|>final[^{]{0,80}?<\|message\|>",
    re.IGNORECASE,
)
#: The channels of gpt-oss, from a server that leaves out special tokens.
_BARE_CHANNELS = re.compile(r"\s*analysis(?P<thoughts>.*?)assistantfinal(?P<rest>.*)", re.DOTALL)
_BRACE = re.compile(r"[{}]")
_decode = json.JSONDecoder().raw_decode


def unwrapped(text: str) -> tuple[str, str]:
    """(thoughts, answer): the answer is the only JSON object after the thoughts; without exactly one, all of that text."""
    thoughts, rest = _split(text)
    return thoughts, _answer_in(rest) or rest.strip()


def holds_object(text: str) -> bool:
    """Whether the text is a whole answer: exactly one complete JSON object after the thoughts."""
    return _answer_in(_split(text)[1]) is not None


def _split(text: str) -> tuple[str, str]:
    """(thoughts, the rest). The opening mark may be missing: chat templates write it at the end of the prompt."""
    if bare := _BARE_CHANNELS.match(text):
        return bare["thoughts"].strip(), bare["rest"]
    thoughts: list[str] = []
    while (close := _CLOSE.search(text)) and (not thoughts or _OPEN.match(text)):
        thoughts.append(_OPEN.sub("", text[: close.start()]).strip())
        text = text[close.end() :]
    return "\n".join(thoughts), text


def _answer_in(text: str) -> str | None:
    found = _only_object(text)
    return found if found is not None or len(text) > _MOST else _only_object(_told_in_a_string(text))


def _told_in_a_string(text: str) -> str:
    """The text inside a JSON string: an object that was encoded twice; "" if this is not a JSON string."""
    plain = text.strip()
    if not plain.startswith('"'):
        return ""
    try:
        value = json.loads(plain)
    except (ValueError, RecursionError):
        return ""
    return value if isinstance(value, str) else ""


def _only_object(text: str) -> str | None:
    found: str | None = None
    start = text.find("{") if len(text) <= _MOST else -1
    while start >= 0:
        end = _object_end(text, start)
        if end is not None:
            if found is not None or _is_listed(text, start):
                return None
            found = text[start:end]
        else:
            end = _brace_end(text, start)
            if end is None:  # the rest may be a part of an object that was cut
                return None
        start = text.find("{", end)
    return found


def _object_end(text: str, start: int) -> int | None:
    """The end of the JSON object that begins here; None if it is not JSON."""
    try:
        return _decode(text, start)[1]
    except (ValueError, RecursionError):
        return None


def _brace_end(text: str, start: int) -> int | None:
    """The end of words in braces, such as `{name}`; None if they are not closed."""
    depth = 0
    for brace in _BRACE.finditer(text, start):
        depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return brace.end()
    return None


def _is_listed(text: str, start: int) -> bool:
    """Whether a bracket opens right before this place."""
    before = start - 1
    while before >= 0 and text[before].isspace():
        before -= 1
    return before >= 0 and text[before] == "["
