"""A model's thoughts apart from its answer, as a parser of vLLM's tells them apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from chainette.engine.base import Delta

__all__ = ["Pieces", "thinking"]


class Pieces:
    """One answer as it comes. Without a parser all of it is the answer."""

    def __init__(self, parser: Any = None, chat: Any = None) -> None:
        self._parser, self._chat = parser, chat
        self._raw, self._ids = "", list[int]()
        self._told = Delta()
        self._pieces = 0

    @property
    def tokens(self) -> int:
        return len(self._ids)

    def take(self, text: str, ids: Sequence[int]) -> Delta:
        """What a piece adds to the answer and to the thoughts before it."""
        before, ids_before = self._raw, self._ids
        self._raw, self._ids, self._pieces = before + text, [*ids_before, *ids], self._pieces + 1
        if self._parser is None:
            return Delta(text)
        found = self._parser.extract_reasoning_streaming(before, self._raw, text, ids_before, self._ids, list(ids))
        delta = Delta() if found is None else Delta(found.content or "", found.reasoning or "")
        self._told = Delta(self._told.text + delta.text, self._told.reasoning + delta.reasoning)
        return delta

    def whole(self) -> tuple[str | None, str]:
        """(thoughts, answer): the pieces joined; no answer where the model did not come to the end of its thoughts."""
        if self._parser is None:
            return None, self._raw
        if self._pieces > 1:
            return self._told.reasoning or None, self._told.text
        reasoning, answer = self._parser.extract_reasoning(self._raw, self._chat)
        return reasoning, answer or ""


def thinking(parser: str, tokenizer: Any) -> Pieces:
    """An answer of a model that thinks first, told apart by vLLM's parser for its kind."""
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.reasoning import ReasoningParserManager

    return Pieces(ReasoningParserManager.get_reasoning_parser(parser)(tokenizer), ChatCompletionRequest(messages=[], model=""))
