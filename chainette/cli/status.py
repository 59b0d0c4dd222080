"""`chainette status`: where the run of a directory stands, and what to do next."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chainette.cli.common import console, guarded
from chainette.cli.options import RunDirectory

if TYPE_CHECKING:
    from chainette.io.replay import RunState

__all__ = ["can_go_on", "is_working", "status"]


@guarded
def status(directory: RunDirectory) -> None:
    """Show where the run in DIR stands.

    Rows per step, tokens, engines, and what to do next.
    """
    from chainette.cli.summary import counts_table
    from chainette.io.rundir import RunDir
    from chainette.io.session import read_state

    state, _ = read_state(RunDir(directory))
    metadata = state.metadata()
    working = is_working(directory)
    screen = console()
    for line in _head(state, metadata, working=working):
        screen.print(line, soft_wrap=True)
    screen.print()
    screen.print(counts_table(metadata))
    screen.print()
    for line in _tail(metadata, directory, working=working):
        screen.print(line, soft_wrap=True)


def _head(state: RunState, metadata: dict[str, Any], *, working: bool) -> Iterator[str]:
    yield f"run {metadata['run_id']} of chain {metadata['chain']}: {_standing(metadata, working=working)}"
    total = f" of {state.expected:,}" if state.expected is not None else ""
    yield f"input: {metadata['input'].get('path', '?')}, {metadata['records']:,}{total} records done"
    if metadata["units_retried"]:
        yield f"units tried again because an engine did not answer: {metadata['units_retried']:,}"


def _standing(metadata: dict[str, Any], *, working: bool) -> str:
    from chainette.io.replay import Status

    match Status(metadata["status"]):
        case Status.RUNNING:
            return "running" if working else "killed (no process works on it)"
        case Status.PAUSED:
            return f"paused: {metadata['reason']}"
        case Status.CANCELLED:
            return "cancelled"
        case Status.FINISHED:
            return "finished"


def _tail(metadata: dict[str, Any], directory: Path, *, working: bool) -> Iterator[str]:
    from chainette.cli.summary import accounting_line, engine_lines, next_lines, token_line

    yield accounting_line(metadata)
    yield from token_line(metadata)
    yield from engine_lines(metadata)
    yield from next_lines(metadata, directory, working=working)


def is_working(directory: Path) -> bool:
    """Whether a process holds the lock of a run directory."""
    from chainette.io.rundir import RunDir

    with RunDir(directory).log.open("rb") as log:
        try:
            fcntl.flock(log, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def can_go_on(directory: Path) -> bool:
    """Whether the directory holds a run that `chainette resume` can go on with."""
    from chainette.errors import ChainetteError
    from chainette.io.replay import Status
    from chainette.io.rundir import RunDir
    from chainette.io.session import read_state

    try:
        state, _ = read_state(RunDir(directory))
    except ChainetteError:
        return False
    return state.created is not None and state.status in (Status.RUNNING, Status.PAUSED)
