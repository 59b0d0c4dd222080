"""`chainette why`: the story of one row."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console

from chainette.cli.command_errors import guarded
from chainette.cli.flags import AsJson, RunDirectory, Yes
from chainette.cli.launch import require_trust
from chainette.cli.printing import print_json, show_path
from chainette.cli.screen.record import field_lines, indented
from chainette.cli.screen.tables import console
from chainette.io.rundir.paths import RunDir
from chainette.io.rundir.row_story import RowStory, StepResult, story_of
from chainette.run.row_prompts import RowPrompts, prompts_of
from chainette.utils.plurals import counted

__all__ = ["why"]


@guarded
def why(
    directory: RunDirectory,
    row: Annotated[str, typer.Argument(metavar="ROW", help="Its row_id: 17, or 17~0 after an expansion.")],
    prompt: Annotated[
        bool, typer.Option("--prompt", help="Also show the prompts, rendered again by the chain, whose code is run for it.")
    ] = False,
    as_json: AsJson = False,
    yes: Yes = False,
) -> None:
    """Tell the story of one row of the run in DIR.

    Shows its record in the input, the output of each step with the number of answers it took, its rejection with the raw
    answer, and the rows it was made from or that were made from it. Works while the run goes on. Of several answers, the
    last is kept; a rejection from before a --retry is shown as long as the old version of the directory exists.
    """
    if not re.fullmatch(r"\d+(~\d+)*", row):
        raise typer.BadParameter(f"{row!r} is not a row id; they look like 17, or 17~0 after an expansion")
    story, prompts = story_of(RunDir(directory), row), None
    if prompt:
        require_trust(RunDir(directory), trusted=yes)
        prompts = prompts_of(RunDir(directory), row)
    if as_json:
        print_json([story if prompts is None else _with_prompts(story, prompts)])
        return
    screen = console()
    for line in _lines(story, prompts, screen):
        screen.print(line, soft_wrap=True)


def _with_prompts(story: RowStory, prompts: RowPrompts) -> dict[str, Any]:
    """The story for programs, each outcome of a step with its `prompt`."""
    told = msgspec.to_builtins(story)
    for outcome in told["outcomes"]:
        outcome["prompt"] = prompts.messages.get((outcome["node"], outcome["row_id"]))
    return {**told}


def _lines(story: RowStory, prompts: RowPrompts | None, screen: Console) -> Iterator[str]:
    file, _, line = story.place.rpartition(":")
    yield f"row {story.row_id}: {f'{show_path(file)}:{line}' if file else 'its input cannot be read now'}"
    if story.record is not None:
        yield from field_lines(story.record if isinstance(story.record, dict) else {"record": story.record}, screen)
    for outcome in story.outcomes:
        if outcome.kind == "finished":  # it repeats the values of its steps
            continue
        yield ""
        yield f"{outcome.step}, row {outcome.row_id}: {_said(outcome)}"
        yield from _prompt_lines(outcome, prompts, screen)
        yield from _earlier_lines(outcome, story.earlier, screen)
        yield from field_lines(_shown(outcome), screen)
    yield ""
    yield _end(story)


def _prompt_lines(outcome: StepResult, prompts: RowPrompts | None, screen: Console) -> Iterator[str]:
    """The prompt of an outcome, message by message."""
    if prompts is None:
        return
    if outcome.node in prompts.stale:
        yield f"  its prompt cannot be shown: {prompts.reason}"
    for message in prompts.messages.get((outcome.node, outcome.row_id), ()):
        yield from indented(f"  [{message.role}]  ", message.content.rstrip(), screen)


def _earlier_lines(outcome: StepResult, earlier: Sequence[StepResult], screen: Console) -> Iterator[str]:
    """The answers before the one an outcome has, as far as they were kept."""
    found = [one for one in earlier if (one.node, one.row_id) == (outcome.node, outcome.row_id)]
    for one in found:
        yield f"  before a retry: {_said(one)}: {one.values['message']}"
        if raw := one.values.get("raw"):
            yield from indented("    raw  ", raw, screen)
    if (lost := _attempts(outcome) - 1 - len(found)) > 0 and outcome.kind in ("output", "rejected"):
        yield f"  {lost} earlier answer{'s were' if lost > 1 else ' was'} not kept"


def _attempts(outcome: StepResult) -> int:
    return int(outcome.values.get("_attempts") or outcome.values.get("attempts") or 0)


def _said(outcome: StepResult) -> str:
    attempts = _attempts(outcome)
    answers = f" after {counted(attempts, 'answer')}" if attempts else ""
    match outcome.kind:
        case "rejected":
            return f"rejected, {outcome.values['reason']}{answers}"
        case "output":
            return f"output{answers}"
        case kind:
            return kind


def _shown(outcome: StepResult) -> dict[str, Any]:
    """The fields worth showing."""
    told = {"_attempts", "attempts", "reason", *(["line"] if outcome.kind == "rejected" else [])}
    return {name: value for name, value in outcome.values.items() if name not in told and value is not None and value != ""}


def _end(story: RowStory) -> str:
    """Where the row stands now."""
    own = [outcome for outcome in story.outcomes if outcome.row_id == story.row_id]
    below = sum(outcome.kind == "finished" for outcome in story.outcomes if outcome.row_id != story.row_id)
    last = own[-1] if own else None
    if last is not None and last.kind in ("rejected", "dropped", "finished"):
        return f"row {story.row_id} is {last.kind}" + (f" at {last.step}" if last.kind != "finished" else "")
    if not story.complete:
        return f"row {story.row_id} is not finished yet" + (f"; its last outcome is that of {last.step}" if last else "")
    if below:
        return f"{counted(below, 'row')} made from row {story.row_id} {'are' if below > 1 else 'is'} finished"
    return f"row {story.row_id} did not reach the end of the chain"
