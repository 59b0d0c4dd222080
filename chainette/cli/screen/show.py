"""`--show`: each prompt next to the engine's answer, before validation."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from chainette.engine.base import Completion, Request
from chainette.hooks import Hook
from chainette.utils.terminal_text import visible

__all__ = ["ShowAnswers", "side_by_side"]


class ShowAnswers(Hook):
    """Prints a box per answer; long texts are shown whole."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def on_answers(self, step_id: str, requests: Sequence[Request], completions: Sequence[Completion]) -> None:
        for request, completion in zip(requests, completions, strict=True):
            self._console.print(side_by_side(step_id, request, completion))


def side_by_side(step_id: str, request: Request, completion: Completion) -> Table:
    """Messages on the left, the answer and how it ended on the right."""
    title = request.label or step_id
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SQUARE, expand=True)
    table.add_column("prompt", ratio=1, overflow="fold")
    table.add_column("answer", ratio=1, overflow="fold")
    table.add_row(_prompt(request), _answer(completion))
    return table


def _prompt(request: Request) -> Text:
    text = Text()
    for message in request.messages:
        text.append(f"{visible(message.role)}\n", style="bold cyan").append(f"{visible(message.content.rstrip())}\n")
    return text


def _answer(completion: Completion) -> Text:
    text = Text()
    if completion.reasoning:
        text.append("reasoning\n", style="bold cyan").append(f"{visible(completion.reasoning.rstrip())}\n")
    text.append(visible(completion.text or completion.error))
    usage = completion.usage
    return text.append(
        f"\n{completion.finish}, {usage.prompt_tokens} + {usage.completion_tokens} tokens, {usage.seconds:.2f} s", style="dim"
    )
