"""Counts the answers of this process's engines whose rows are not durable yet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from chainette.engine.base import Completion
from chainette.io.rundir.event_types import AnswersDiscarded, Event, UnitCommitted
from chainette.records import declared_of

__all__ = ["Arrivals"]


class Arrivals:
    """By step, the answers that have arrived, minus those in the log. Zero for engines of other processes."""

    def __init__(self) -> None:
        self._answers: Counter[str] = Counter()
        self._tokens: Counter[str] = Counter()

    def answer(self, step: str, completions: Sequence[Completion]) -> None:
        """Counts answers that have arrived."""
        self._answers[step] += len(completions)
        self._tokens[step] += sum(completion.usage.completion_tokens for completion in completions)

    def follow(self, event: Event) -> None:
        """Subtracts the answers of a durable event."""
        if isinstance(event, UnitCommitted | AnswersDiscarded):
            step, usage = declared_of(event.node), event.usage  # it may count answers that never arrived, being unusable
            self._answers[step] = max(0, self._answers[step] - usage.requests)
            self._tokens[step] = max(0, self._tokens[step] - usage.completion_tokens)

    def waiting(self, step: str) -> tuple[int, int]:
        """(answers, tokens in them) that are not durable yet."""
        return self._answers[step], self._tokens[step]
