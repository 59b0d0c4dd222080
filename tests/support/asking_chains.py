"""Chains that ask scripted engines, and the events of their runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from chainette import Chain, Step
from chainette.engine.base import Request
from chainette.errors import EngineUnavailable
from chainette.hooks import Hook
from chainette.io.rundir.event_log import read_log
from chainette.io.rundir.event_types import Event
from tests.support.chains import Text, Word

__all__ = ["SAME", "Watch", "asking", "events", "flaky"]

SAME = '{"word": "same"}'


def asking(*ids: str, **keys: Any) -> Chain:
    """A chain of steps, each on the engine of its own name."""
    steps = [
        Step(id=one, input_model=Text if one == ids[0] else Word, output_model=Word, engine_name=one, **keys) for one in ids
    ]
    return Chain(name="asking", steps=steps, batch_size=4)


def events(path: Path) -> list[Event]:
    return [event for _, event in read_log(path / "events.jsonl")]


class Watch(Hook):
    """Calls a function at each event, or at each answer."""

    def __init__(self, on_event: Any = lambda event: None, on_answers: Any = lambda: None) -> None:
        self._on_event, self._on_answers = on_event, on_answers

    def on_event(self, event: Event) -> None:
        self._on_event(event)

    def on_answers(self, step_id: str, requests: Any, completions: Any) -> None:
        self._on_answers()


def flaky(failures: int, error: type[EngineUnavailable] = EngineUnavailable) -> Any:
    """Answers after it failed that many times."""
    left = [failures]

    def answer(request: Request) -> str:
        if left[0]:
            left[0] -= 1
            raise error("503: overloaded")
        return SAME

    return answer
