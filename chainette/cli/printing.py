"""Text that commands print: control characters are escaped, and paths and commands can be copied.

Everything printed for people goes through `tell` or `console` (`screen/tables.py`); JSON goes through `visible_json`.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import typer

from chainette.utils.terminal_text import visible, visible_json

__all__ = ["command_line", "for_scripts", "is_terminal", "print_json", "show_path", "silence_stdout", "tell"]


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
