"""Text that matches a regular expression, drawn at random.

Guarantee: a drawn text matches its pattern (it is checked before it is returned). A pattern that cannot be
drawn, such as most lookarounds, gives None; the caller reports it.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable
from random import Random
from re import _constants as sre  # type: ignore[attr-defined]
from re import _parser as sre_parser  # type: ignore[attr-defined]
from typing import Any

from chainette.engine.simulated.rust_regex import as_python

__all__ = ["compile_pattern"]

Draw = Callable[[Random], str]

#: Repetitions drawn beyond the minimum if a pattern sets no upper bound.
_SPREAD = 6
_TRIES = 30
_ANY = string.ascii_letters + string.digits + " "
_CATEGORIES = {
    sre.CATEGORY_DIGIT: string.digits,
    sre.CATEGORY_SPACE: " ",
    sre.CATEGORY_WORD: string.ascii_letters + string.digits + "_",
    sre.CATEGORY_NOT_DIGIT: string.ascii_letters,
    sre.CATEGORY_NOT_SPACE: string.ascii_letters + string.digits,
    sre.CATEGORY_NOT_WORD: " -.",
}


def compile_pattern(pattern: str, shortest: int = 0, longest: int | None = None) -> Callable[[Random], str | None]:
    """A function that draws a matching text with a length inside the bounds; None if it found none."""
    try:
        python = as_python(pattern)
        matcher = re.compile(python)
        draw = _sequence(sre_parser.parse(python))
    except (re.error, NotImplementedError, OverflowError, RecursionError):
        return lambda _rng: None

    def draw_checked(rng: Random) -> str | None:
        for _ in range(_TRIES):
            text = _padded(draw(rng), shortest)
            if len(text) >= shortest and (longest is None or len(text) <= longest) and matcher.search(text):
                return text
        return None

    return draw_checked


def _padded(text: str, shortest: int) -> str:
    """Repeats the last character, as an open pattern such as `^[a-z]+$` allows."""
    return text + text[-1:] * (shortest - len(text))


def _sequence(parsed: Any) -> Draw:
    parts = [_part(op, value) for op, value in parsed]
    return lambda rng: "".join([part(rng) for part in parts])


def _part(op: Any, value: Any) -> Draw:
    if op is sre.LITERAL:
        return lambda _rng: chr(value)
    if op is sre.IN:
        return _one_of(_members(value))
    if op is sre.ANY:
        return _one_of(_ANY)
    if op is sre.NOT_LITERAL:
        return _one_of(_ANY.replace(chr(value), ""))
    if op in (sre.MAX_REPEAT, sre.MIN_REPEAT, sre.POSSESSIVE_REPEAT):
        return _repeat(*value)
    if op is sre.BRANCH:
        return _branch([_sequence(branch) for branch in value[1]])
    if op is sre.SUBPATTERN:
        return _sequence(value[-1])
    if op is sre.ATOMIC_GROUP:
        return _sequence(value)
    if op in (sre.AT, sre.ASSERT, sre.ASSERT_NOT):
        return lambda _rng: ""
    raise NotImplementedError(str(op))


def _one_of(choices: str) -> Draw:
    size = len(choices)
    return lambda rng: choices[int(rng.random() * size)]


def _branch(branches: list[Draw]) -> Draw:
    return lambda rng: branches[int(rng.random() * len(branches))](rng)


def _repeat(least: int, most: int, parsed: Any) -> Draw:
    part = _sequence(parsed)
    choices = min(most, least + _SPREAD) - least + 1
    return lambda rng: "".join([part(rng) for _ in range(least + int(rng.random() * choices))])


def _members(items: Any) -> str:
    """The characters of a class; of a negated one, the plain characters outside it."""
    negated = bool(items) and items[0][0] is sre.NEGATE
    members = "".join(_class_member(op, value) for op, value in items[negated:])
    if negated:
        members = "".join(character for character in _ANY if character not in members)
    if not members:
        raise NotImplementedError("an empty class")
    return members


def _class_member(op: Any, value: Any) -> str:
    if op is sre.LITERAL:
        return chr(value)
    if op is sre.RANGE:
        low, high = value
        return "".join(map(chr, range(low, min(high, low + 127) + 1)))
    if op is sre.CATEGORY:
        return _CATEGORIES[value]
    raise NotImplementedError(str(op))
