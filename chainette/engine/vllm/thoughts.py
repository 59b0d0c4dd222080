"""Separates a model's thoughts from its answer with one of vLLM's parsers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from chainette.engine.base import Delta

__all__ = ["ThinkingAnswer", "thinking"]


class ThinkingAnswer:
    """One answer as it arrives. Without a parser all of it is the answer."""

    def __init__(self, parser: Any = None, chat: Any = None) -> None:
        self._parser, self._chat = parser, chat
        self._raw, self._ids = "", list[int]()
        self._told = Delta()
        self._pieces = 0

    @property
    def tokens(self) -> int:
        return len(self._ids)

    def take(self, text: str, ids: Sequence[int]) -> Delta:
        """The parts of a piece that belong to the thoughts and to the answer."""
        before, ids_before = self._raw, self._ids
        self._raw, self._ids, self._pieces = before + text, [*ids_before, *ids], self._pieces + 1
        if self._parser is None:
            return Delta(text)
        found = self._parser.extract_reasoning_streaming(before, self._raw, text, ids_before, self._ids, list(ids))
        delta = Delta() if found is None else Delta(found.content or "", found.reasoning or "")
        self._told = Delta(self._told.text + delta.text, self._told.reasoning + delta.reasoning)
        return delta

    def whole(self) -> tuple[str | None, str]:
        """(thoughts, answer): the joined pieces; no answer if the model did not finish its thoughts."""
        if self._parser is None:
            return None, self._raw
        if self._pieces > 1:
            return self._told.reasoning or None, self._told.text
        reasoning, answer = self._parser.extract_reasoning(self._raw, self._chat)
        return reasoning, answer or ""


def thinking(parser: str, tokenizer: Any) -> ThinkingAnswer:
    """The pieces of a model that thinks first, separated by vLLM's parser for its kind."""
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.reasoning import ReasoningParserManager

    return ThinkingAnswer(
        ReasoningParserManager.get_reasoning_parser(parser)(tokenizer), ChatCompletionRequest(messages=[], model="")
    )
