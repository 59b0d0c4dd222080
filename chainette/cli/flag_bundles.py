"""Bundles of flags (`signature.py`) for commands that run a chain. `--help` shows them without importing their code."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from chainette.cli.flags import ChainRef, ChainRoot, Debug, Hooked, JsonLogs, Quiet, Settings, Show, Stream

__all__ = ["Task", "Telling"]


@dataclass(frozen=True, kw_only=True)
class Task:
    """A chain, an input and a run directory, as the user names them."""

    chain: ChainRef
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUTS...",
            help="JSONL, CSV, TSV (.gz, .zst), Parquet: files, folders, 'patterns*', URLs, in turn; or hf:OWNER/NAME/SPLIT, "
            "a data set of the Hugging Face Hub; -: standard input.",
        ),
    ]
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="DIR", help="The run directory [default: <run id> below --runs].")
    ] = None
    runs: Annotated[
        Path, typer.Option("--runs", metavar="DIR", help="The folder of the run directory, if -o does not name one.")
    ] = Path("runs")
    parameters: Settings = None
    chain_root: ChainRoot = Path()

    def directory(self, run_id: str) -> Path:
        """The run directory of a run with this id."""
        return self.output or self.runs / run_id


@dataclass(frozen=True, kw_only=True)
class Telling:
    """The output the user wants of a run.

    Raises:
        typer.BadParameter: two wishes exclude each other.
    """

    quiet: Quiet = False
    json_logs: JsonLogs = False
    show: Show = False
    stream: Stream = False
    debug: Debug = False
    hook: Hooked = None
    #: The flags with which `resume` continues in the same way.
    again: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        wishes = {"--quiet": self.quiet, "--json-logs": self.json_logs, "--show": self.show, "--stream": self.stream}
        chosen = [flag for flag, wished in wishes.items() if wished]
        if len(chosen) > 1:
            raise typer.BadParameter(f"{' and '.join(chosen)} exclude each other; give one")

    @property
    def watching(self) -> str:
        """The flag whose output needs the engines in this process; "" if none was given."""
        return "--stream" if self.stream else "--show" if self.show else ""

    @contextlib.contextmanager
    def foreign_output(self) -> Iterator[None]:
        """Sends prints of the user's code to stderr if a program reads stdout."""
        if self.quiet or self.json_logs:
            with contextlib.redirect_stdout(sys.stderr):
                yield
        else:
            yield
