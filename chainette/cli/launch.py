"""Shared by `run`, `resume` and `rejected --retry`: loading the chain, reporting the run, and its end.

Ctrl-C, SIGTERM, a closed pipe and every error that the user can fix leave a resumable directory, and the command that
continues it is printed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from chainette.cli.common import (
    command_line,
    console,
    is_terminal,
    show_error,
    show_path,
    silence_stdout,
    tell,
    warn,
)
from chainette.cli.exit_codes import INTERRUPTED, REJECTED
from chainette.cli.flags import ChainRef, ChainRoot, Debug, JsonLogs, Quiet, Settings, Show, Stream
from chainette.cli.screen.live import LiveView
from chainette.cli.screen.plain import JsonLines, Plain, QuietReporter, Reporter, line_writer
from chainette.cli.screen.show import ShowAnswers
from chainette.cli.screen.tokens import Tokens, text_writer
from chainette.cli.screen.tree import draw
from chainette.cli.standing import can_go_on
from chainette.cli.version import version
from chainette.core.plan import Plan
from chainette.core.run_settings import RunSettings
from chainette.core.usercode.loading import LoadedChain, load_chain
from chainette.core.usercode.parameters import given, settings_of
from chainette.engine.config import EngineRegistry, overlaid
from chainette.errors import DiskError, EngineError, InputError, Problem, RunStopped
from chainette.hooks import Hook
from chainette.io.rundir.paths import RunDir
from chainette.io.rundir.result import RunResult
from chainette.run import executor
from chainette.run.options import Drive, RunOptions
from chainette.run.session import compile_plan
from chainette.utils.banner import banner
from chainette.utils.debug import ChainDebugger
from chainette.utils.ids import new_run_id

__all__ = ["Task", "Telling", "launch", "load_plan", "run_task", "texts_of"]


@dataclass(frozen=True, kw_only=True)
class Task:
    """A chain, an input and a run directory, as the user names them."""

    chain: ChainRef
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUTS...",
            help="JSONL, CSV, TSV or Parquet: files, folders or 'patterns*', read one after another; - for standard input.",
        ),
    ]
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="DIR", help="The run directory [default: runs/<run id>].")
    ] = None
    parameters: Settings = None
    chain_root: ChainRoot = Path()

    def load(self, settings: RunSettings) -> tuple[LoadedChain, Plan]:
        """See `load_plan`."""
        return load_plan(self.chain, self.chain_root, self.parameters, settings)


@dataclass(frozen=True, kw_only=True)
class Telling:
    """The output that the user wants of a run.

    Raises:
        typer.BadParameter: two wishes exclude each other.
    """

    quiet: Quiet = False
    json_logs: JsonLogs = False
    show: Show = False
    stream: Stream = False
    debug: Debug = False
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

    def reporter(self, directory: RunDir, plan: Plan | None) -> Reporter:
        """The reporter that the flags and stdout ask for."""
        if self.quiet:
            return QuietReporter(line_writer())
        if self.json_logs:
            return JsonLines(directory, line_writer())
        if self.stream:
            return Tokens(directory, text_writer())
        screen = console()
        if self.show or self.debug or not is_terminal() or screen.is_dumb_terminal:
            return Plain(directory, line_writer())

        return LiveView(directory, screen, _head(plan))

    def others(self) -> Iterator[Hook]:
        """The other hooks that the flags ask for."""
        if self.show:
            yield ShowAnswers(console())
        if self.debug:
            yield ChainDebugger(lambda text: tell(text, err=True))

    @contextlib.contextmanager
    def foreign_output(self) -> Iterator[None]:
        """Sends prints of the user's code to stderr if a program reads stdout."""
        if self.quiet or self.json_logs:
            with contextlib.redirect_stdout(sys.stderr):
                yield
        else:
            yield


def _head(plan: Plan | None) -> str:
    """The banner and the chain, printed once above the bars."""
    return "\n\n".join([banner(version()), *([draw(plan)] if plan is not None else [])])


def launch(
    directory: RunDir, telling: Telling, start: Callable[[tuple[Hook, ...]], RunResult], plan: Plan | None = None
) -> None:
    """Runs `start` with the hooks that report it, and ends the command.

    Raises:
        typer.Exit: unless the run finished without a rejected row.
    """
    reporter = telling.reporter(directory, plan)
    try:
        with telling.foreign_output(), reporter, _terminating_as_ctrl_c():
            result = start((reporter, *telling.others()))
        reporter.end(result)
    except KeyboardInterrupt:
        tell("interrupted", fg="red", err=True)
        _say_how_to_go_on(directory, telling.again)
        raise typer.Exit(INTERRUPTED) from None
    except BrokenPipeError:
        silence_stdout()
        _say_how_to_go_on(directory, telling.again)
        raise typer.Exit(INTERRUPTED) from None
    except (RunStopped, DiskError, EngineError, InputError) as error:
        code = show_error(error, debug=telling.debug)
        if "chainette resume" not in str(error):
            _say_how_to_go_on(directory, telling.again)
        raise typer.Exit(code) from None
    if not result.metadata["records"]:
        given = result.metadata["input"]
        name = "the input" if given.get("below") == "run" else show_path(given["path"])  # standard input has no path to show
        tell(f"warning: {name} holds no records", fg="yellow", err=True)
    if result.metadata["rows_rejected"]:
        raise typer.Exit(REJECTED)


@contextlib.contextmanager
def _terminating_as_ctrl_c() -> Iterator[None]:
    """SIGTERM stops a run as Ctrl-C does; if Ctrl-C is ignored, it ends the process as usual."""

    def stop(number: int, frame: FrameType | None) -> None:
        interrupt = signal.getsignal(signal.SIGINT)
        if callable(interrupt):
            interrupt(signal.SIGINT, frame)
        else:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _say_how_to_go_on(directory: RunDir, again: Sequence[str]) -> None:
    if can_go_on(directory.path):
        tell(f"go on: {command_line('resume', str(directory), *again)}", err=True)


def run_task(task: Task, settings: RunSettings, drive: Drive | None, telling: Telling) -> None:
    """Runs a chain over an input into a fresh directory, and ends the command as `launch` does."""
    run_id, here = new_run_id(), Path.cwd()
    directory = RunDir(task.output or Path("runs") / run_id)
    with telling.foreign_output():
        loaded, plan = task.load(settings)
    if not telling.quiet:
        warn(plan.warnings)
    moved = Path.cwd() != here  # by the chain
    sources = [str(here / path) if moved and path != "-" else path for path in task.inputs]
    options = {
        **asdict(settings),
        "run_id": run_id,
        "chain_ref": loaded.reference,
        "chain_root": str(task.chain_root),
        "chain_digest": loaded.digest,
        "parameters": loaded.parameters,
        "drive": drive,
    }
    inputs = sources[0] if len(sources) == 1 else sources
    launch(directory, telling, lambda hooks: executor.run(plan, inputs, directory, hooks=hooks, **options), plan)


def load_plan(
    reference: str, chain_root: Path, parameters: list[str] | None, settings: RunSettings
) -> tuple[LoadedChain, Plan]:
    """The chain that the user named, with the parameters of --set, loaded and checked.

    Raises:
        LoadError: it cannot be loaded.
        PlanError: it does not fit together.
    """
    loaded = load_chain(reference, chain_root, given(texts_of(parameters)))
    plan = compile_plan(loaded.chain, RunOptions(**asdict(settings), parameters=loaded.parameters))
    return loaded, replace(plan, warnings=(*plan.warnings, *_unused(plan, settings.engines_file)))


def texts_of(words: list[str] | None) -> dict[str, str]:
    """The values of --set NAME=VALUE by name.

    Raises:
        typer.BadParameter: two values for one name.
    """
    found = settings_of(words or ())
    for name, texts in found.items():
        if len({*texts}) > 1:
            raise typer.BadParameter(f"--set {name} is given twice, as {texts[0]} and as {texts[1]}")
    return {name: texts[0] for name, texts in found.items()}


def _unused(plan: Plan, engines: str | None) -> Iterator[Problem]:
    """A warning if an engine file changes nothing: its names are mistyped, or it belongs to another chain."""
    if engines is not None and plan.engines:
        named = [config.name for config in overlaid(EngineRegistry(), engines)]
        if not plan.engines.keys() & named:
            found, wanted = ", ".join(named) or "none", ", ".join(plan.engines)
            yield Problem(
                f"{show_path(engines)} has no engine of the chain: it has {found}, the chain uses {wanted}", None, warning=True
            )
