"""The `chainette` command: a table of its commands.

A command's module is imported when the command runs, so that `chainette --help`, shell completion and mistyped names
are answered without it.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup

from chainette.cli.exit_codes import INTERRUPTED
from chainette.cli.option_advice import AdvisingCommand
from chainette.errors import SettingsError
from chainette.utils.garbage_collection import collect_rarely, importing
from chainette.utils.private_files import VARIABLE as UMASK
from chainette.utils.process_end import end, leave
from chainette.utils.terminal_text import guard_logs, visible

__all__ = ["COMMANDS", "Command", "app", "main"]


class Command(NamedTuple):
    """The part of a command that `chainette --help` shows."""

    #: In `chainette.cli.commands`; its function has the name of the command, with `_` for `-`.
    module: str
    #: One line of at most 60 characters, or a terminal of 80 columns cuts it.
    help: str
    #: The objects it prints with `--json`; "" if it shows nothing.
    objects: str


COMMANDS: Mapping[str, Command] = {
    "init": Command("init", "Write a small project to begin with.", ""),
    "plan": Command("plan", "Estimate the requests and the cost of a run.", "one: the estimate, with its steps"),
    "run": Command("run", "Run CHAIN over INPUTS into a run directory.", ""),
    "resume": Command("resume", "Go on with the run in DIR.", ""),
    "enqueue": Command("enqueue", "Run CHAIN over INPUTS through the workers of a Redis.", ""),
    "worker": Command("worker", "Serve engines to the runs of a Redis.", ""),
    "coordinator": Command("services", "Admit the rows of detached runs, as a service.", ""),
    "sink": Command("services", "Write the directories of detached runs, as a service.", ""),
    "valkey": Command("valkey", "Run a Valkey on this machine until Ctrl-C.", ""),
    "runs": Command("runs", "List the live runs of a Redis, and its workers.", "one for each live run"),
    "pause": Command("runs", "Hold a live run until `unpause`.", ""),
    "unpause": Command("runs", "Continue a run that was paused.", ""),
    "cancel": Command("runs", "Give a live run up for good; its directory stays.", ""),
    "kill": Command("runs", "Ask workers to hand back unfinished work and to end.", ""),
    "config": Command("config", "Show the defaults of chainette.toml, by key.", "one for each key, with its value and origin"),
    "inspect": Command(
        "inspect",
        "Check CHAIN without running it; list its nodes.",
        "one: nodes, parameters, and `problems` with file and line, also if the chain cannot run",
    ),
    "inspect-dag": Command("inspect", "Draw CHAIN.", "one: the chain as in graph.json"),
    "schema": Command("schema", "Print the JSON Schema of chain.yml, for editors.", "the schema, also without `--json`"),
    "engines": Command(
        "engines", "List backends, or the engines of CHAIN.", "one for each backend and plugin; with CHAIN, one for each engine"
    ),
    "warmup": Command(
        "warmup", "Open an engine, ask it once, and show how long that took.", "one: seconds, tokens, memory and the answer"
    ),
    "conformance": Command(
        "conformance", "Hold an engine to the promises runs rely on.", "one for each case, as soon as it is decided"
    ),
    "status": Command(
        "status",
        "Show the state of a run, or of a fleet.",
        "one: metadata.json of DIR with `standing`; or RUN as in `runs`; or the `runs` and `members` of a fleet",
    ),
    "ls": Command("ls", "List the run directories below a folder.", "one for each run directory"),
    "rows": Command("rows", "Show the rows of the run in DIR as a table.", "one for each row"),
    "why": Command("why", "Tell the story of one row of the run in DIR.", "one: the record and the outcomes of each step"),
    "diff": Command("diff", "Show which rows changed between two runs, by field.", "one for each changed row"),
    "rejected": Command("rejected", "List the rejected rows of DIR, or --retry them.", "one for each rejected row"),
    "rollback": Command("rollback", "Swap DIR with its newest version.", ""),
    "export": Command("export", "Write the rows of DIR as Parquet, CSV or JSONL files.", ""),
    "rebuild": Command("rebuild", "Write the derived files of DIR again.", ""),
    "report": Command("report", "Write the run in DIR as one HTML page.", ""),
}


class _Commands(TyperGroup):
    """The table as a group: names and help from the table, and a real command once one is chosen."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        for name, command in COMMANDS.items():
            self.add_command(TyperCommand(name, help=command.help), name)

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        name, found, rest = super().resolve_command(ctx, args)
        return name, found and _imported(name or ""), rest


def _imported(name: str) -> Any:
    """The command itself, from its module."""
    with importing():
        module = import_module(f"chainette.cli.commands.{COMMANDS[name].module}")
    function = getattr(module, name.replace("-", "_"))
    alone = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)
    alone.command(name, cls=AdvisingCommand, context_settings=getattr(function, "context_settings", None))(function)
    return typer.main.get_command(alone)


app = typer.Typer(
    name="chainette",
    cls=_Commands,
    help="Typed LLM pipelines over millions of rows, on your own GPUs, exactly once.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from chainette.cli.version import version  # noqa: PLC0415 - no other start of the command pays for it

        typer.echo(f"chainette {version()}")
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
    umask: Annotated[
        str | None,
        typer.Option("--umask", metavar="MODE", help="Who may read new files [default: $CHAINETTE_UMASK, else 077: only you]."),
    ] = None,
) -> None:
    """Typed LLM pipelines over millions of rows, on your own GPUs, exactly once."""
    del version
    _take_defaults(context)
    if umask is not None:
        os.environ[UMASK] = umask  # child processes write files, too


def _take_defaults(context: typer.Context) -> None:
    """Gives the commands the defaults of chainette.toml and of CHAINETTE_* variables."""
    from chainette.cli.project_file import default_map, defaults_of, variables_of  # noqa: PLC0415 - not for --help

    try:
        defaults = defaults_of(Path.cwd(), os.environ)
    except FileNotFoundError:  # the current folder is gone
        return
    except SettingsError as error:
        raise typer.BadParameter(visible(str(error))) from None
    context.obj, context.default_map = defaults, default_map(defaults)
    os.environ |= variables_of(defaults)  # child processes need them, too


def main() -> None:
    """The entry point. A character a terminal cannot show becomes "?" there."""
    _open_standard_streams()
    collect_rarely()
    guard_logs()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    try:
        app(prog_name="chainette")
    except SystemExit as ended:
        if ended.code == INTERRUPTED:
            leave(INTERRUPTED)  # without waiting for threads that still run a user's function
        if isinstance(ended.code, int) and not _threads_of_the_user():
            end(ended.code)
        raise


def _threads_of_the_user() -> bool:
    """Whether Python would wait for a thread."""
    return any(not thread.daemon for thread in threading.enumerate() if thread is not threading.main_thread())


def _open_standard_streams() -> None:
    """Opens closed standard streams on /dev/null; otherwise uvloop gets their descriptors, and aborts."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
            setattr(sys, name, os.fdopen(number, "w" if number else "r", closefd=False))


if __name__ == "__main__":
    main()
