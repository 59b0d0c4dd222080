"""The `chainette` command. Imports nothing heavy: `chainette --help` answers at once."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Annotated

import typer

from chainette.cli.commands.engines import engines
from chainette.cli.commands.enqueue import enqueue
from chainette.cli.commands.inspect import inspect, inspect_dag
from chainette.cli.commands.rebuild import rebuild
from chainette.cli.commands.rejected import rejected
from chainette.cli.commands.report import report
from chainette.cli.commands.resume import resume
from chainette.cli.commands.rollback import rollback
from chainette.cli.commands.rows import rows
from chainette.cli.commands.run import run
from chainette.cli.commands.runs import cancel, kill, pause, runs, unpause
from chainette.cli.commands.services import coordinator, sink
from chainette.cli.commands.status import status
from chainette.cli.commands.warmup import warmup
from chainette.cli.commands.worker import worker
from chainette.cli.common import INTERRUPTED

__all__ = ["app", "main", "version"]

app = typer.Typer(
    name="chainette",
    help="Typed LLM pipelines over millions of rows, on your own GPUs, exactly once.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    no_args_is_help=True,
)
app.command()(run)
app.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True})(resume)
app.command()(enqueue)
app.command()(worker)
app.command()(coordinator)
app.command()(sink)
app.command()(runs)
app.command()(pause)
app.command()(unpause)
app.command()(cancel)
app.command()(kill)
app.command()(inspect)
app.command("inspect-dag")(inspect_dag)
app.command()(engines)
app.command()(warmup)
app.command()(status)
app.command()(rows)
app.command()(rejected)
app.command()(rollback)
app.command()(rebuild)
app.command()(report)


def version() -> str:
    """The version that is installed."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    try:
        return installed("chainette")
    except PackageNotFoundError:
        return "(not installed)"


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"chainette {version()}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Typed LLM pipelines over millions of rows, on your own GPUs, exactly once."""


def main() -> None:
    """The entry point. A character that a terminal cannot show becomes "?" there."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    try:
        app(prog_name="chainette")
    except SystemExit as end:
        if end.code == INTERRUPTED:
            _leave_at_once()
        raise


def _leave_at_once() -> None:
    """Ends an interrupted process without waiting for a thread in which a function of the user's is at work."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(INTERRUPTED)


if __name__ == "__main__":
    main()
