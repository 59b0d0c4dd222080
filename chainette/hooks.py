"""What watches a run: hooks are called by name at fixed points and never change what happens.

The live view, `--json-logs`, `--show`, metrics and the debugger are hooks. An exception in a hook is
the caller's bug and stops the run; it never costs a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from chainette.engine.base import Completion, Request
    from chainette.io.events import Event

__all__ = ["Hook", "Hooks"]


class Hook:
    """Watches nothing; subclasses override what they watch."""

    def on_event(self, event: Event) -> None:
        """An event of the log, after it became durable, in order."""

    def on_answers(self, step_id: str, requests: Sequence[Request], completions: Sequence[Completion]) -> None:
        """An engine answered, in order; before the answers are validated."""


class Hooks(Hook):
    """Several hooks as one."""

    def __init__(self, hooks: Sequence[Hook]) -> None:
        self._hooks = hooks

    def on_event(self, event: Event) -> None:
        for hook in self._hooks:
            hook.on_event(event)

    def on_answers(self, step_id: str, requests: Sequence[Request], completions: Sequence[Completion]) -> None:
        for hook in self._hooks:
            hook.on_answers(step_id, requests, completions)
