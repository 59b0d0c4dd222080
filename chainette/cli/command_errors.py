"""The errors of commands: `guarded` turns each into a message on stderr and an exit code.

No exception leaves a command as a traceback unless the user passes --debug.
"""

from __future__ import annotations

import functools
import inspect
import re
import sys
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import typer

from chainette.cli.exit_codes import INTERRUPTED
from chainette.cli.flags import Debug
from chainette.cli.printing import show_path, silence_stdout, tell
from chainette.cli.signature import Flags
from chainette.errors import ChainetteError, PlanError, Problem
from chainette.utils.terminal_text import visible

__all__ = ["error_lines", "guarded", "problem_line", "show_error", "warn"]


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
