"""Swaps a run directory with its newest version."""

from __future__ import annotations

from contextlib import closing

from chainette.errors import RunDirectoryError
from chainette.io.rundir.derived_files import publish_metadata
from chainette.io.rundir.directory_swap import aside_of, remove_leftovers, swap
from chainette.io.rundir.event_log import EventLog
from chainette.io.rundir.open import read_created, read_state
from chainette.io.rundir.origin import require_no_links
from chainette.io.rundir.paths import RunDir, disk_errors
from chainette.io.rundir.versions import keep_versions, link_tree, version_numbers

__all__ = ["rollback"]


def rollback(directory: RunDir) -> None:
    """Swaps a directory with its newest version; a second call swaps them back.

    Raises:
        RunDirectoryInUse: another process writes to it.
        RunDirectoryError: there is no run, or no earlier version of it.
        DamagedRun: the log of the version is damaged.
        DiskError: the disk is full, or a write failed; the directory is as it was.
    """
    read_created(directory)
    require_no_links(directory)
    with closing(EventLog(directory.log)):
        remove_leftovers(directory)
        numbers = version_numbers(directory)
        if not numbers:
            raise RunDirectoryError(
                f"{directory} has no earlier version to restore; `resume --from` and `rejected --retry` keep one"
            )
        *older, newest = numbers
        version, aside = directory.versions / str(newest), RunDir(aside_of(directory.path))
        state, _ = read_state(RunDir(version))
        with disk_errors(aside.path):
            link_tree(version, aside.path)
            publish_metadata(aside, state)
            keep_versions(directory, aside, older)
            swap(directory.path)
