"""Hooks watch a run: they are called by name at fixed points and never change it.

The live view, `--json-logs`, `--show`, metrics and the debugger are hooks. An exception in a hook is
the caller's bug and stops the run; it never costs a row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import StrEnum
from time import perf_counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from chainette.core.plan import Plan
    from chainette.core.streaming import StreamEvent
    from chainette.engine.base import Completion, Request
    from chainette.io.rundir.event_types import Event

__all__ = ["Hook", "Hooks", "Laps", "Stage"]


class Stage(StrEnum):
    """A part of a unit's life in the fleet."""

    #: from queued to begun
    WAIT = "wait"
    #: prompts are rendered from its rows
    RENDER = "render"
    #: the engine answers, or the function runs
    GENERATE = "generate"
    #: answers are checked
    VALIDATE = "validate"
    #: Redis takes the outcome
    COMMIT = "commit"


class Laps:
    """How the seconds of one unit divide over its stages; passed to a hook when the unit ends."""

    def __init__(self) -> None:
        self._seconds: dict[Stage, float] = {}
        self._at = perf_counter()

    def lap(self, stage: Stage) -> None:
        """Adds the time since the last lap to this stage."""
        now = perf_counter()
        self._seconds[stage] = self._seconds.get(stage, 0.0) + now - self._at
        self._at = now

    def tell(self, hook: Hook, node: str) -> None:
        for stage, seconds in self._seconds.items():
            hook.on_stage(node, stage, seconds)


class Hook:
    """Watches nothing; subclasses override the calls they watch."""

    #: Whether engines are asked for their answers token by token, and `on_stream` is called.
    streams: bool = False

    def on_event(self, event: Event) -> None:
        """An event of the log, after it became durable, in order."""

    def on_answers(self, step_id: str, requests: Sequence[Request], completions: Sequence[Completion]) -> None:
        """Answers arrived, each with its request; before they are validated."""

    def of_run(self, run: str, plan: Plan) -> Hook:  # noqa: ARG002 - for those that tell runs apart
        """The hook for one run, from here on; called again if its plan changed."""
        return self

    def forget_run(self, run: str) -> None:
        """The run is closed, or no longer served here."""

    def on_stage(self, node: str, stage: Stage, seconds: float) -> None:
        """A unit spent `seconds` in a stage; once per unit and stage."""

    def on_generating(self, engine: str, requests: int) -> None:
        """That many requests of one unit go into an engine, in one call."""

    def on_generated(self, engine: str, requests: int) -> None:
        """That many of them left it again, answered or not."""

    def on_refused(self) -> None:
        """A commit was refused; its results are thrown away."""

    def on_aside(self, messages: int) -> None:
        """That many messages from Redis cannot be right; they were put aside."""

    def on_lease_lost(self) -> None:
        """A worker found that its own lease had expired."""

    def on_workers_lost(self, workers: Sequence[str]) -> None:
        """Workers are dead, and their units are queued again."""

    def on_flush(self, seconds: float) -> None:
        """A group of results became durable; the disk took `seconds`."""

    def on_stream(self, event: StreamEvent) -> None:
        """Something happened to a row. Called on the run's event loop; must not block."""


class Hooks(Hook):
    """Several hooks as one."""

    def __init__(self, hooks: Sequence[Hook]) -> None:
        self._hooks: list[Hook] = []
        for hook in hooks:
            self._hooks += hook._hooks if type(hook) is Hooks else [hook]
        self.streams = any(hook.streams for hook in hooks)
        # the calls for each row go only to those that watch them
        self._of_answers = [hook for hook in self._hooks if _watches(hook.on_answers, Hook.on_answers)]
        self._of_generated = [hook for hook in self._hooks if _watches(hook.on_generated, Hook.on_generated)]

    def on_event(self, event: Event) -> None:
        for hook in self._hooks:
            hook.on_event(event)

    def on_answers(self, step_id: str, requests: Sequence[Request], completions: Sequence[Completion]) -> None:
        for hook in self._of_answers:
            hook.on_answers(step_id, requests, completions)

    def of_run(self, run: str, plan: Plan) -> Hook:
        return Hooks([hook.of_run(run, plan) for hook in self._hooks])

    def forget_run(self, run: str) -> None:
        for hook in self._hooks:
            hook.forget_run(run)

    def on_stage(self, node: str, stage: Stage, seconds: float) -> None:
        for hook in self._hooks:
            hook.on_stage(node, stage, seconds)

    def on_generating(self, engine: str, requests: int) -> None:
        for hook in self._hooks:
            hook.on_generating(engine, requests)

    def on_generated(self, engine: str, requests: int) -> None:
        for hook in self._of_generated:
            hook.on_generated(engine, requests)

    def on_refused(self) -> None:
        for hook in self._hooks:
            hook.on_refused()

    def on_aside(self, messages: int) -> None:
        for hook in self._hooks:
            hook.on_aside(messages)

    def on_lease_lost(self) -> None:
        for hook in self._hooks:
            hook.on_lease_lost()

    def on_workers_lost(self, workers: Sequence[str]) -> None:
        for hook in self._hooks:
            hook.on_workers_lost(workers)

    def on_flush(self, seconds: float) -> None:
        for hook in self._hooks:
            hook.on_flush(seconds)

    def on_stream(self, event: StreamEvent) -> None:
        for hook in self._hooks:
            if hook.streams:
                hook.on_stream(event)


def _watches(call: Callable[..., None], nothing: Callable[..., None]) -> bool:
    """Whether a call of a hook does more than that of `Hook`."""
    return getattr(call, "__func__", None) is not nothing
