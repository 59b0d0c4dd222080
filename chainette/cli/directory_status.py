"""The state of the run in a directory: from its log, and whether a process works on it."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from chainette.cli.printing import command_line
from chainette.errors import ChainetteError, RunError
from chainette.io.rundir.metadata import metadata_of
from chainette.io.rundir.open import read_state
from chainette.io.rundir.paths import RunDir
from chainette.io.rundir.run_state import Status
from chainette.io.rundir.versions import KEPT, version_numbers
from chainette.utils.plurals import counted

__all__ = ["can_go_on", "is_working", "standing", "summary_line", "version_lines"]


def is_working(directory: Path) -> bool:
    """Whether a process holds the lock of a run directory."""
    if not RunDir(directory).exists():
        return False
    with RunDir(directory).log.open("rb") as log:
        try:
            fcntl.flock(log, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:  # without locks on the file system, nobody can work on it
            return False
    return False


def can_go_on(directory: Path) -> bool:
    """Whether the directory holds a run that `chainette resume` can go on with."""
    try:
        state, _ = read_state(RunDir(directory))
    except ChainetteError:
        return False
    return state.created is not None and state.status in (Status.RUNNING, Status.PAUSED)


def standing(metadata: dict[str, Any], *, working: bool) -> str:
    """The state of a run in a word, with the reason for a pause."""
    match Status(metadata["status"]):
        case Status.RUNNING:
            return "running" if working else "killed (no process works on it)"
        case Status.PAUSED:
            return f"paused: {metadata['reason']}"
        case Status.CANCELLED:
            return "cancelled"
        case Status.FINISHED:
            return "finished"


def version_lines(directory: Path) -> Iterator[str]:
    """The versions of a directory, newest first, and the command that restores the newest."""
    run = RunDir(directory)
    numbers = version_numbers(run)
    for number in reversed(numbers):
        version = directory / run.versions.name / str(number)
        back = f"; restore it: {command_line('rollback', directory)}" if number == numbers[-1] else ""
        yield f"version {number} ({version}): {summary_line(version)}{back}"
    if numbers:
        yield f"at most {KEPT} versions are kept"


def summary_line(directory: Path) -> str:
    """The state and row counts of a run that no process works on."""
    try:
        metadata = metadata_of(read_state(RunDir(directory))[0])
    except RunError as error:
        return str(error)
    counts = f"{counted(metadata['rows_finished'], 'row')} finished, {metadata['rows_rejected']:,} rejected"
    return f"{standing(metadata, working=False)}, {counts}"
