"""Shared by `run`, `resume` and `rejected --retry`: loading the chain, reporting the run, and its end.

Ctrl-C, SIGTERM, a closed pipe and every error the user can fix leave a resumable directory, and the command that
continues it is printed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import typer

from chainette.cli.command_errors import show_error, warn
from chainette.cli.directory_status import can_go_on
from chainette.cli.exit_codes import INTERRUPTED, exit_code_of
from chainette.cli.flag_bundles import Task, Telling
from chainette.cli.printing import command_line, is_terminal, show_path, silence_stdout, tell
from chainette.cli.screen.plain import JsonLines, Plain, QuietReporter, Reporter, line_writer
from chainette.cli.screen.tokens import Tokens, text_writer
from chainette.core.plan import Plan
from chainette.core.run_settings import RunSettings
from chainette.core.usercode.loading import LoadedChain, load_chain
from chainette.core.usercode.parameters import given, settings_of
from chainette.engine.config import EngineRegistry
from chainette.engine.registry import overlaid
from chainette.errors import (
    BudgetSpent,
    DiskError,
    EngineError,
    InputError,
    PluginError,
    Problem,
    RunDirectoryError,
    RunStopped,
)
from chainette.hooks import Hook
from chainette.io.inputs.hub import is_hub
from chainette.io.rundir.logged_paths import chain_root_of
from chainette.io.rundir.open import read_created
from chainette.io.rundir.origin import doubt
from chainette.io.rundir.paths import RunDir
from chainette.io.rundir.result import RunResult
from chainette.run import executor
from chainette.run.options import Drive, RunOptions
from chainette.run.planning import compile_plan
from chainette.utils.ids import new_run_id
from chainette.utils.plugins import HOOKS
from chainette.utils.plurals import counted
from chainette.utils.remote_files import is_url
from chainette.utils.terminal_text import visible
from chainette.utils.user_errors import told

__all__ = ["launch", "load_plan", "require_trust", "run_task", "texts_of"]


def _reporter(telling: Telling, directory: RunDir, plan: Plan | None) -> Reporter:
    """The reporter the flags and stdout ask for."""
    if telling.quiet:
        return QuietReporter(line_writer())
    if telling.json_logs:
        return JsonLines(directory, line_writer())
    if telling.stream:
        return Tokens(directory, text_writer())
    if telling.show or telling.debug or not is_terminal():
        return Plain(directory, line_writer())
    from chainette.cli.screen.live import LiveView  # noqa: PLC0415 - rich, which other runs do without
    from chainette.cli.screen.tables import console  # noqa: PLC0415

    screen = console()
    return Plain(directory, line_writer()) if screen.is_dumb_terminal else LiveView(directory, screen, _head(plan))


def _others(telling: Telling) -> Iterator[Hook]:
    """The other hooks the flags ask for."""
    if telling.show:
        from chainette.cli.screen.show import ShowAnswers  # noqa: PLC0415 - rich
        from chainette.cli.screen.tables import console  # noqa: PLC0415

        yield ShowAnswers(console())
    if telling.debug:
        from chainette.utils.debug import ChainDebugger  # noqa: PLC0415 - for this flag only

        yield ChainDebugger(lambda text: tell(text, err=True))
    yield from map(_plugged, telling.hook or ())


def _plugged(name: str) -> Hook:
    """The hook of a plugin.

    Raises:
        PluginError: there is none of that name, or its plugin is broken.
    """
    make, whose = HOOKS.load(name)
    try:
        hook = make()
    except Exception as error:  # a plugin's code may raise anything
        raise PluginError(f"{whose} cannot be made: {told(error)}") from error
    if not isinstance(hook, Hook):
        raise PluginError(f"{whose} is neither a class derived from chainette.hooks.Hook nor a function that returns a hook")
    return hook


def _head(plan: Plan | None) -> str:
    """The banner and the chain, printed once above the bars."""
    from chainette.cli.screen.tree import draw  # noqa: PLC0415 - for a terminal only
    from chainette.cli.version import version  # noqa: PLC0415
    from chainette.utils.banner import banner  # noqa: PLC0415

    return "\n\n".join([banner(version()), *([draw(plan)] if plan is not None else [])])


def launch(
    directory: RunDir, telling: Telling, start: Callable[[tuple[Hook, ...]], RunResult], plan: Plan | None = None
) -> None:
    """Runs `start` with the hooks that report it, and ends the command.

    Raises:
        typer.Exit: unless the run finished without a rejected row, or with all rows it was to accept.
    """
    reporter, others = _reporter(telling, directory, plan), [*_others(telling)]
    try:
        with telling.foreign_output(), reporter, _terminating_as_ctrl_c():
            result = start((reporter, *others))
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
            larger = error.flags if isinstance(error, BudgetSpent) else ()
            _say_how_to_go_on(directory, (*telling.again, *larger))
        raise typer.Exit(code) from None
    if not result.metadata["records"]:
        given = result.metadata["input"]
        name = "the input" if given.get("below") == "run" else show_path(given["path"])  # standard input has no path to show
        tell(f"warning: {name} holds no records", fg="yellow", err=True)
    if (accept := result.metadata.get("accept")) and not accept["last"]:
        fewer = f"accepted {accept['certain']:,} of {counted(accept['wanted'], 'row')}: the input has no more records"
        tell(f"warning: {fewer}", fg="yellow", err=True)
    if code := exit_code_of(result.metadata):
        raise typer.Exit(code)


@contextlib.contextmanager
def _terminating_as_ctrl_c() -> Iterator[None]:
    """SIGTERM stops a run as Ctrl-C does, also where Ctrl-C is ignored, as in a background job of a script."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def require_trust(directory: RunDir, *, trusted: bool) -> None:
    """Asks before it runs code named by the log of somebody else. Without a terminal, a chain below the current folder may run.

    Raises:
        RunDirectoryError: nobody can be asked, or the answer is no.
    """
    created = read_created(directory)
    why = "" if trusted or not created.chain_ref else doubt(directory, created)
    if not why:
        return
    chain = chain_root_of(created, directory) / created.chain_ref
    said = f"{directory}: {why}. Going on runs its chain, {chain}, which is code"
    asked = sys.stdin.isatty() and sys.stderr.isatty()
    if asked and typer.confirm(visible(f"{said}. Go on?"), err=True):
        return
    if asked or not _in_plain_sight(directory, chain):
        raise RunDirectoryError(f"{said}; if you trust it, add --yes")


def _in_plain_sight(directory: RunDir, chain: Path) -> bool:
    """Whether a chain is a file of this user's below the current folder, and so is the log."""
    file = Path(str(chain).rpartition(":")[0] or chain).resolve()
    mine = all(path.is_file() and path.stat().st_uid == os.geteuid() for path in (file, directory.log))
    return mine and file.is_relative_to(Path.cwd().resolve())


def _say_how_to_go_on(directory: RunDir, again: Sequence[str]) -> None:
    if can_go_on(directory.path):
        tell(f"go on: {command_line('resume', str(directory), *again)}", err=True)


def run_task(task: Task, settings: RunSettings, drive: Drive | None, telling: Telling) -> None:
    """Runs a chain over an input into a fresh directory, and ends the command as `launch` does."""
    run_id, here = new_run_id(), Path.cwd()
    directory = RunDir(task.directory(run_id))
    with telling.foreign_output():
        loaded, plan = load_plan(task.chain, task.chain_root, task.parameters, settings)
    if not telling.quiet:
        warn(plan.warnings)
    moved = Path.cwd() != here  # by the chain
    sources = [path if not moved or path == "-" or is_url(path) or is_hub(path) else str(here / path) for path in task.inputs]
    options = {
        **asdict(settings),
        "run_id": run_id,
        "chain_ref": loaded.reference,
        "chain_root": str(task.chain_root),
        "chain_claim": loaded.claim,
        "parameters": loaded.parameters,
        "drive": drive,
        "progress": False,
    }
    inputs = sources[0] if len(sources) == 1 else sources
    launch(directory, telling, lambda hooks: executor.run(plan, inputs, directory, hooks=hooks, **options), plan)


def load_plan(
    reference: str, chain_root: Path, parameters: list[str] | None, settings: RunSettings
) -> tuple[LoadedChain, Plan]:
    """The chain the user named, with the parameters of --set, loaded and checked.

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
