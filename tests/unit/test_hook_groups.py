"""Several hooks as one."""

from __future__ import annotations

from collections.abc import Sequence

from chainette.engine.base import Completion, Request
from chainette.hooks import Hook, Hooks


class Counting(Hook):
    def __init__(self) -> None:
        self.heard: list[str] = []

    def on_answers(self, step_id: str, requests: Sequence[Request], completions: Sequence[Completion]) -> None:
        del requests, completions
        self.heard.append(step_id)

    def on_generated(self, engine: str, requests: int) -> None:
        self.heard += [engine] * requests


def test_calls_for_each_row_reach_every_hook_that_watches_them_also_in_groups_of_groups() -> None:
    first, second = Counting(), Counting()
    hooks = Hooks([Hook(), Hooks([first, Hook()]), second])
    hooks.on_answers("step", [], [])
    hooks.on_generated("engine", 2)
    assert first.heard == second.heard == ["step", "engine", "engine"]
