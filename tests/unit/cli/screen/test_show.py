"""`--show`: prompts and answers side by side, whole."""

from __future__ import annotations

import io

from rich.console import Console

from chainette.cli.screen.show import ShowAnswers
from chainette.engine.base import Completion, Finish, Request, SamplingParams
from chainette.records import Message, Usage


def shown(request: Request, completion: Completion, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width, markup=False, highlight=False, emoji=False)
    ShowAnswers(console).on_answers("extract", [request], [completion])
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def asked(*contents: str, label: str = "extract row 7 ask 1") -> Request:
    roles = ("system", "user")
    messages = tuple(Message(role, content) for role, content in zip(roles, contents, strict=False))
    return Request(messages=messages, sampling=SamplingParams(), seed=1, schema={}, schema_name="x", label=label)


def test_prompt_and_answer_stand_beside_each_other() -> None:
    usage = Usage(requests=1, prompt_tokens=12, completion_tokens=5, seconds=0.25)
    lines = shown(asked("be brief", "what is it?"), Completion('{"name": "x"}', usage=usage)).splitlines()
    assert lines[0].strip() == "extract row 7 ask 1"
    first = next(line for line in lines if "system" in line)
    assert first.index("system") < first.index('{"name": "x"}')
    assert any("what is it?" in line for line in lines)
    assert any("stop, 12 + 5 tokens, 0.25 s" in line for line in lines)


def test_markup_and_long_texts_are_shown_as_they_are() -> None:
    text = shown(asked("[bold]not markup[/bold] :smile:", "x" * 100), Completion("y" * 100, Finish.LENGTH))
    assert "[bold]not markup[/bold]" in text and ":smile:" in text
    assert (text.count("x"), text.count("y")) == (100 + 1, 100 + 1)  # one each in "extract" and "system"
    assert "length," in text


def test_reasoning_and_errors_are_shown() -> None:
    text = shown(asked("a", "b"), Completion("", Finish.ERROR, reasoning="thinking hard", error="HTTP 400: bad"))
    assert "thinking hard" in text
    assert "HTTP 400: bad" in text
