"""`chainette rollback`: brings back the rows that a run directory had before the last `--from` or `--retry`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import typer

from chainette.cli.common import command_line, guarded
from chainette.cli.flags import RunDirectory

__all__ = ["rollback", "version_lines"]


@guarded
def rollback(directory: RunDirectory) -> None:
    """Swap DIR with its newest version: the rows it had before the last `resume --from` or `rejected --retry`.

    DIR becomes the newest version itself, so that a second rollback undoes the first. No process may work on the run.
    """
    from chainette.run import executor

    here = Path.cwd()
    executor.rollback(directory)
    with suppress(OSError):
        os.chdir(here)  # inside DIR, the folder of that name is another one now
    typer.echo(f"{directory} is as it was before: {_summary(directory)}")
    for line in version_lines(directory):
        typer.echo(line)


def version_lines(directory: Path) -> Iterator[str]:
    """The versions of a directory, the newest first, and how to bring that one back."""
    from chainette.io.rundir.paths import RunDir
    from chainette.io.rundir.versions import version_numbers

    run = RunDir(directory)
    numbers = version_numbers(run)
    for number in reversed(numbers):
        version = directory / run.versions.name / str(number)
        back = f"; bring it back: {command_line('rollback', directory)}" if number == numbers[-1] else ""
        yield f"version {number} ({version}): {_summary(version)}{back}"


def _summary(directory: Path) -> str:
    """Where the run of a directory that nobody works on stands."""
    from chainette.cli.commands.status import standing
    from chainette.errors import RunError
    from chainette.io.rundir.open import read_state
    from chainette.io.rundir.paths import RunDir

    try:
        metadata = read_state(RunDir(directory))[0].metadata()
    except RunError as error:
        return str(error)
    counts = f"{metadata['rows_finished']:,} rows finished, {metadata['rows_rejected']:,} rejected"
    return f"{standing(metadata, working=False)}, {counts}"
