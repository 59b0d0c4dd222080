"""Shared by all commands: errors and exit codes, paths for people.

`guarded` is the boundary: no exception leaves a command as a traceback unless the user passes --debug. Everything printed
for people goes through `tell` or `console` (`screen/tables.py`), which escape control characters; JSON goes through
`visible_json`.
"""

from __future__ import annotations

import functools
import inspect
import os
import re
import shlex
import sys
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec
import typer

from chainette.cli.exit_codes import INTERRUPTED
from chainette.cli.flags import Debug
from chainette.cli.signature import Flags
from chainette.errors import ChainetteError, PlanError, Problem
from chainette.utils.terminal_text import visible, visible_json

__all__ = [
    "command_line",
    "error_lines",
    "for_scripts",
    "guarded",
    "is_terminal",
    "print_json",
    "problem_line",
    "show_error",
    "show_path",
    "silence_stdout",
    "tell",
    "warn",
]


def guarded(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose errors end as one message on stderr and an exit code.

    Parameters that are dataclasses become flags (`signature.py`). A command without `--debug` gets it: the traceback then
    comes before the message.
    """
    flags = Flags(command)
    takes_debug = "debug" in flags

    @functools.wraps(command)
    def run(**typed: Any) -> None:
        debug = bool(typed.get("debug") if takes_debug else typed.pop("debug", False))
        try:
            command(**flags.arguments(typed))
            sys.stdout.flush()
        except (typer.Exit, typer.Abort):
            raise
        except typer.BadParameter as error:
            error.message = visible(error.message)
            raise
        except KeyboardInterrupt:
            tell("interrupted", fg="red", err=True)
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:
            silence_stdout()
            raise typer.Exit(0) from None
        except Exception as error:
            raise typer.Exit(show_error(error, debug=debug)) from None

    option = inspect.Parameter("debug", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Debug)
    run.__signature__ = flags.signature(*(() if takes_debug else (option,)))  # type: ignore[attr-defined]
    return run


def show_error(error: Exception, *, debug: bool) -> int:
    """Prints an error to stderr and returns its exit code."""
    if debug:
        tell("".join(traceback.format_exception(error)).rstrip(), err=True)
    for line in error_lines(error):
        tell(line, fg="red", err=True)
    return error.exit_code if isinstance(error, ChainetteError) else 1


def tell(text: str, *, fg: str | None = None, err: bool = False) -> None:
    """Prints text with its control characters escaped."""
    typer.secho(visible(text), fg=fg, err=err)


def print_json(values: Iterable[Any]) -> None:
    """Prints each value whole, one JSON document per line."""
    for value in values:
        typer.echo(visible_json(msgspec.json.encode(value).decode()))


def for_scripts(text: str | Path) -> str:
    """A path or a line that a script may read: exact, except on a terminal."""
    return visible(str(text)) if is_terminal() else str(text)


def error_lines(error: Exception) -> list[str]:
    """The error as the user reads it: its message, or one line per problem of a chain."""
    if isinstance(error, PlanError):
        return [f"error: {error.headline}", *(f"  {problem_line(problem)}" for problem in error.problems)]
    if isinstance(error, ChainetteError):
        return f"error: {_seen_from_here(str(error))}".splitlines()
    if type(error).__module__.startswith("redis."):
        return [f"error: Redis holds something that Chainette did not write, or refuses a command: {error}"]
    summary = " ".join(f"{type(error).__name__}: {error}".split())
    return [f"internal error: {summary}; run with --debug for the traceback"]


def _seen_from_here(text: str) -> str:
    """The text with paths in the current folder made relative; runs store absolute paths."""
    try:
        here = re.escape(f"{Path.cwd()}/")
    except OSError:
        return text
    return re.sub(rf"(?<![\w/]){here}(?=\S)", "", text)


def problem_line(problem: Problem) -> str:
    """A problem, with its file relative to the current folder."""
    if problem.place is None:
        return problem.message
    return f"{show_path(problem.place.file)}:{problem.place.line}: {problem.message}"


def warn(problems: Iterable[Problem]) -> None:
    """Prints a check's warnings to stderr."""
    for problem in problems:
        tell(f"warning: {problem_line(problem)}", fg="yellow", err=True)


def silence_stdout() -> None:
    """Discards all further output: nobody reads the pipe."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def command_line(*words: str | os.PathLike[str]) -> str:
    """`chainette ...`, quoted for a shell."""
    return shlex.join(["chainette", *map(str, words)])


def show_path(path: str | Path) -> str:
    """The path relative to the current folder, if it is inside it and that folder still exists."""
    path = Path(path)
    try:
        here = Path.cwd()
    except OSError:
        return str(path)
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def is_terminal() -> bool:
    """Whether stdout is a terminal."""
    return sys.stdout.isatty()
