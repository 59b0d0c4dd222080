"""`chainette why`: the story of one row."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any

import typer
from rich.console import Console

from chainette.cli.common import console, guarded, print_json, show_path
from chainette.cli.flags import AsJson, RunDirectory
from chainette.cli.screen.record import field_lines
from chainette.io.rundir.paths import RunDir
from chainette.io.rundir.row_story import RowStory, StepResult, story_of

__all__ = ["why"]


@guarded
def why(
    directory: RunDirectory,
    row: Annotated[str, typer.Argument(metavar="ROW", help="Its row_id: 17, or 17~0 after an expansion.")],
    as_json: AsJson = False,
) -> None:
    """Tell the story of one row of the run in DIR.

    Shows its record in the input, the output of each step with the number of answers it took, its rejection with the raw
    answer, and the rows it was made from or that were made from it. Works while the run goes on.
    """
    if not re.fullmatch(r"\d+(~\d+)*", row):
        raise typer.BadParameter(f"{row!r} is no row id; they look like 17, or 17~0 after an expansion")
    story = story_of(RunDir(directory), row)
    if as_json:
        print_json([story])
        return
    screen = console()
    for line in _lines(story, screen):
        screen.print(line, soft_wrap=True)


def _lines(story: RowStory, screen: Console) -> Iterator[str]:
    file, _, line = story.place.rpartition(":")
    yield f"row {story.row_id}: {f'{show_path(file)}:{line}' if file else 'its input cannot be read now'}"
    if story.record is not None:
        yield from field_lines(story.record if isinstance(story.record, dict) else {"record": story.record}, screen)
    for outcome in story.outcomes:
        if outcome.kind == "finished":  # it repeats the values of its steps
            continue
        yield ""
        yield f"{outcome.step}, row {outcome.row_id}: {_said(outcome)}"
        yield from field_lines(_shown(outcome), screen)
    yield ""
    yield _end(story)


def _said(outcome: StepResult) -> str:
    attempts = int(outcome.values.get("_attempts") or outcome.values.get("attempts") or 0)
    answers = f" after {attempts} answers" if attempts > 1 else " after 1 answer" if attempts else ""
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
        return f"{below} rows made from row {story.row_id} are finished"
    return f"row {story.row_id} did not reach the end of the chain"
