"""`chainette rollback`: restores the rows a run directory had before the last `--from` or `--retry`."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from chainette.cli.command_errors import guarded
from chainette.cli.directory_status import summary_line, version_lines
from chainette.cli.flags import RunDirectory
from chainette.cli.printing import tell
from chainette.io.rundir.paths import RunDir
from chainette.io.rundir.version_swap import rollback as go_back

__all__ = ["rollback"]


@guarded
def rollback(directory: RunDirectory) -> None:
    """Swap DIR with its newest version: the rows it had before the last `resume --from` or `rejected --retry`.

    DIR becomes the newest version, so a second rollback undoes the first. No process may be working on the run.
    """
    here = Path.cwd()
    go_back(RunDir(directory))
    with suppress(OSError):
        os.chdir(here)  # inside DIR, the folder of that name is another one now
    tell(f"{directory} is as it was before: {summary_line(directory)}")
    for line in version_lines(directory):
        tell(line)
