"""ChainDebugger: the hook behind `--debug`, which reports prompts, answers and timings as they happen.

It prints nothing itself but passes each text to a callable. A text holds a whole event or exchange, so the output of
concurrent steps is not interleaved.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from chainette.hooks import Hook

if TYPE_CHECKING:
    from chainette.engine.base import Completion, Request
    from chainette.io.rundir.event_types import Event

__all__ = ["ChainDebugger"]

#: Fields that every event has, or that only recovery needs.
_SILENT = frozenset({"seq", "at", "epoch", "off", "graph", "settings", "versions", "pos", "anchor"})


class ChainDebugger(Hook):
    """Writes every event, and every request with its answer. Times are seconds since the debugger was created."""

    def __init__(self, write: Callable[[str], object], clock: Callable[[], float] = time.monotonic) -> None:
        self._write = write
        self._clock = clock
        self._began = clock()

    def on_event(self, event: Event) -> None:
        kind = str(event.__struct_config__.tag)
        shown = ((name, getattr(event, name)) for name in event.__struct_fields__ if name not in _SILENT)
        values = " ".join(f"{name}={_value(value)}" for name, value in shown if value not in ("", 0, None, [], {}))
        self._write(f"{self._time()} {kind} {values}".rstrip())

    def on_answers(self, step_id: str, requests: Sequence[Request], completions: Sequence[Completion]) -> None:
        for request, completion in zip(requests, completions, strict=True):
            self._write(f"{self._time()} {self._exchange(step_id, request, completion)}")

    def _time(self) -> str:
        return f"[{self._clock() - self._began:9.3f}]"

    def _exchange(self, step_id: str, request: Request, completion: Completion) -> str:
        usage = completion.usage
        lines = [f"{step_id} {request.label} seed={request.seed}"]
        lines += [_indented(message.role, message.content) for message in request.messages]
        if completion.reasoning:
            lines.append(_indented("reasoning", completion.reasoning))
        lines.append(_indented(f"answer ({completion.finish})", completion.text or completion.error))
        lines.append(f"    {usage.prompt_tokens} + {usage.completion_tokens} tokens in {usage.seconds:.3f} s")
        return "\n".join(lines)


def _value(value: object) -> str:
    text = str(value)
    return repr(text) if " " in text else text


def _indented(title: str, text: str) -> str:
    return "\n".join([f"    {title}:", *(f"        {line}" for line in text.splitlines())])
