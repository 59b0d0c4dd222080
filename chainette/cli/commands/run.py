"""`chainette run`: a chain over an input, into a run directory."""

from __future__ import annotations

from typing import Annotated

import typer

from chainette.cli.command_errors import guarded
from chainette.cli.drive_flags import DriveFlags
from chainette.cli.flag_bundles import Task, Telling
from chainette.core.run_settings import RunSettings
from chainette.utils.garbage_collection import importing

__all__ = ["MOST_STREAMED", "StreamWriter", "run"]

#: Rows that `--stream` shows at most.
MOST_STREAMED = 100

StreamWriter = Annotated[
    bool, typer.Option("--stream-writer", help="Always on: rows are written as they come. Accepted for old scripts.")
]


@guarded
def run(task: Task, settings: RunSettings, way: DriveFlags, telling: Telling, stream_writer: StreamWriter = False) -> None:
    """Run CHAIN over INPUTS into a run directory.

    After Ctrl-C, `chainette resume` continues the run. Exit codes: 0 done, 1 error, 2 usage,
    3 done with rejected rows, 130 interrupted.
    """
    with importing():
        from chainette.cli.launch import run_task  # noqa: PLC0415 - most of the package, which --help does without

    del stream_writer
    drive = way.drive(telling.watching)
    if telling.stream and (settings.limit is None or settings.limit > MOST_STREAMED):
        raise typer.BadParameter(f"--stream is for looking at a few rows; add --limit 1, or at most {MOST_STREAMED}")
    run_task(task, settings, drive, telling)
