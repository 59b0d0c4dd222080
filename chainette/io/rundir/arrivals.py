"""Answers of this process's engines that have arrived and whose rows are not durable yet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from chainette.engine.base import Completion
from chainette.io.rundir.events import AnswersDiscarded, Event, UnitCommitted

__all__ = ["Arrivals"]


class Arrivals:
    """Per step: what arrived, less what the log has. Always nothing for engines of other processes."""

    def __init__(self) -> None:
        self._answers: Counter[str] = Counter()
        self._tokens: Counter[str] = Counter()

    def answer(self, step: str, completions: Sequence[Completion]) -> None:
        """These have arrived."""
        self._answers[step] += len(completions)
        self._tokens[step] += sum(completion.usage.completion_tokens for completion in completions)

    def follow(self, event: Event) -> None:
        """An event is durable."""
        if isinstance(event, UnitCommitted | AnswersDiscarded):
            self._answers[event.node] -= event.usage.requests
            self._tokens[event.node] -= event.usage.completion_tokens

    def waiting(self, step: str) -> tuple[int, int]:
        """(answers, tokens in them) that are not durable yet."""
        return max(0, self._answers[step]), max(0, self._tokens[step])
