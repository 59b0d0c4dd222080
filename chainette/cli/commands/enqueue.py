"""`chainette enqueue`: `run` through the workers that serve a Redis, here or by services."""

from __future__ import annotations

from typing import Annotated

import typer

from chainette.cli.command_errors import guarded
from chainette.cli.commands.run import StreamWriter
from chainette.cli.drive_flags import FleetDriveFlags
from chainette.cli.flag_bundles import Task, Telling
from chainette.cli.signature import Hidden
from chainette.core.run_settings import RunSettings
from chainette.utils.garbage_collection import importing

__all__ = ["enqueue"]

Detach = Annotated[
    bool,
    typer.Option("--detach", help="Hand the run to a live `chainette coordinator` and `chainette sink`, and return at once."),
]
NoSink = Annotated[
    bool,
    typer.Option("--no-sink", help="Admit the rows in this process, and let a live `chainette sink` write the results."),
]


@guarded
def enqueue(
    task: Task,
    settings: RunSettings,
    way: Annotated[FleetDriveFlags, Hidden({"workers"})],
    telling: Annotated[Telling, Hidden({"show", "stream"})],
    stream_writer: StreamWriter = False,
    detach: Detach = False,
    no_sink: NoSink = False,
) -> None:
    """Run CHAIN over INPUTS through the workers that serve a Redis, into a run directory.

    Admits rows while there is room and writes the results, until the end or Ctrl-C; `chainette resume DIR` continues, with
    the results of the workers in the meantime. Flags and exit codes are those of `run`.

    With --detach, services do both, even after this command has ended: INPUTS is relative to the coordinator's
    --inputs-root, the run directory and those of --reuse to the sink's --runs-root, and CHAIN to the --chain-root of
    both. With --no-sink, this process is the run's coordinator until the end or Ctrl-C, and the current folder must be
    the sink's --runs-root.
    """
    del stream_writer
    if detach and no_sink:
        raise typer.BadParameter("--detach leaves both halves to services, --no-sink one of them; give one")
    if not (detach or no_sink):
        with importing():
            from chainette.cli.launch import run_task  # noqa: PLC0415 - most of the package, which --help does without

        run_task(task, settings, way.drive(telling.watching), telling)
        return
    _require_nothing_of_this_process(way, telling, "--no-sink" if no_sink else "--detach")
    from chainette.cli.detached import hand_over  # noqa: PLC0415 - as above

    hand_over(task, settings, way, quiet=telling.quiet, here=no_sink)


def _require_nothing_of_this_process(way: FleetDriveFlags, telling: Telling, apart: str) -> None:
    """Raises typer.BadParameter if a flag needs the process that writes the run."""
    wishes = {"--workers": way.workers, "--show": telling.show, "--stream": telling.stream, "--json-logs": telling.json_logs}
    for flag, wished in wishes.items():
        if wished:
            raise typer.BadParameter(f"{flag} needs the run in this process; leave out {apart}")
