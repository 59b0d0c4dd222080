"""The swap of a directory with its replacement, which a crash may interrupt at any point."""

from __future__ import annotations

import shutil
from contextlib import closing
from pathlib import Path

from chainette.errors import DiskError, RunDirectoryInUse
from chainette.io.rundir.answer_index import MAKING
from chainette.io.rundir.event_log import EventLog
from chainette.io.rundir.paths import RunDir, fsync_dir

__all__ = ["aside_of", "finish_swap", "remove_leftovers", "swap"]


def aside_of(path: Path) -> Path:
    """The path at which the replacement of a directory is built."""
    return _beside(path, "fork")


def _old(path: Path) -> Path:
    return _beside(path, "old")


def _beside(path: Path, suffix: str) -> Path:
    whole = path.resolve()  # "." has no name, and hard links may be impossible next to a symbolic link
    return whole.with_name(f".{whole.name}.{suffix}")


def swap(path: Path) -> None:
    """Replaces a directory with the one that was built aside; must be called under its lock."""
    path = path.resolve()
    path.rename(_old(path))
    aside_of(path).rename(path)
    fsync_dir(path.parent)
    shutil.rmtree(_old(path), ignore_errors=True)


def finish_swap(directory: RunDir) -> None:
    """Completes a swap that a crash interrupted; must be called before a directory is read.

    Raises:
        RunDirectoryInUse: another process is swapping it now.
    """
    path = directory.path.resolve()
    if not _is_cut_in_two(path):
        return
    try:
        with closing(EventLog(RunDir(_old(path)).log)):
            if _is_cut_in_two(path):
                aside_of(path).rename(path)
                fsync_dir(path.parent)
    except (DiskError, RunDirectoryInUse):
        if _is_cut_in_two(path):  # otherwise another process has completed it meanwhile
            raise


def _is_cut_in_two(path: Path) -> bool:
    return not path.exists() and _old(path).exists() and aside_of(path).exists()


def remove_leftovers(directory: RunDir) -> None:
    """Removes leftovers of a crash: a fork beside a directory, and unfinished files in it; must be called under its lock."""
    for left in (_old(directory.path), aside_of(directory.path)):
        shutil.rmtree(left, ignore_errors=True)
    for left in directory.answers.glob(f"{MAKING}*"):
        shutil.rmtree(left)
    for folder in (directory.path, directory.path / ".schema", directory.inputs):
        for file in folder.glob(".*.tmp"):
            file.unlink()
