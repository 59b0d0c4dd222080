"""Special tokens in the text of messages stay text: `<|im_end|>` in a row must not end its turn.

Tokenizers find special tokens anywhere in a rendered prompt. So the prompt is rendered with stand-ins in their place, and
the tokenizer then gets each as two pieces that are no special token.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import msgspec

from chainette.records import Message

__all__ = ["Masked", "SpecialTokens"]

#: Private characters, of which the first that no message holds opens and closes a stand-in.
_STAND_INS = range(0xE000, 0xF8FF)


class Masked(msgspec.Struct, frozen=True):
    """Messages in which stand-ins replace special tokens."""

    messages: tuple[Message, ...]
    found: tuple[str, ...]
    stand_in: str

    def pieces(self, prompt: str) -> list[str]:
        """The prompt that was rendered from the messages, with their own text, in pieces to be tokenized apart."""
        parts = re.split(f"{self.stand_in}(\\d+){self.stand_in}", prompt)
        pieces = [parts[0]]
        for number, behind in zip(parts[1::2], parts[2::2], strict=True):
            token = self.found[int(number)]
            pieces += [token[:1], token[1:], behind]
        return [piece for piece in pieces if piece]


class SpecialTokens:
    """The special tokens of one tokenizer."""

    def __init__(self, tokens: Iterable[str]) -> None:
        # a longer token may begin with a shorter one
        known = sorted({token for token in tokens if token.strip()}, key=len, reverse=True)
        self._any = re.compile("|".join(map(re.escape, known))) if known else None

    def mask(self, messages: Sequence[Message]) -> Masked | None:
        """The messages with stand-ins; None if they hold no special token, which is the rule."""
        if self._any is None or not any(self._any.search(message.content) for message in messages):
            return None
        text = "".join(message.content for message in messages)
        stand_in = next(chr(code) for code in _STAND_INS if chr(code) not in text)
        found: list[str] = []

        def replace(match: re.Match[str]) -> str:
            found.append(match[0])
            return f"{stand_in}{len(found) - 1}{stand_in}"

        masked = [msgspec.structs.replace(message, content=self._any.sub(replace, message.content)) for message in messages]
        return Masked(tuple(masked), tuple(found), stand_in)
