"""Runs that services drive: handed over, and watched from here."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import typer
from chainette_workers.service.coordinator_service import CoordinatorDuty
from chainette_workers.service.service import Places, serve
from rich.text import Text

from chainette.cli.command_errors import warn
from chainette.cli.drive_flags import FleetDriveFlags
from chainette.cli.exit_codes import INTERRUPTED, exit_code_of
from chainette.cli.flag_bundles import Task
from chainette.cli.launch import load_plan
from chainette.cli.printing import command_line, for_scripts, tell
from chainette.cli.screen.fleet_screen import RunView, watch
from chainette.cli.screen.summary import summary_lines
from chainette.cli.screen.tables import console, counts_table
from chainette.core.plan import Plan
from chainette.core.run_settings import RunSettings
from chainette.core.usercode.confined import module_of
from chainette.core.usercode.loading import LoadedChain
from chainette.core.usercode.parameters import settings_of
from chainette.errors import Problem, RunError
from chainette.fleet.redis.connect import connect, eviction_risk
from chainette.fleet.redis.run_registry import Board, Order, Role, inside, relative_runs
from chainette.io.inputs.hub import is_hub
from chainette.io.rundir.chain_marks import marks_of
from chainette.io.rundir.metadata import metadata_of
from chainette.io.rundir.open import read_state
from chainette.io.rundir.paths import RunDir
from chainette.io.rundir.run_state import Status
from chainette.utils.ids import new_run_id
from chainette.utils.remote_files import is_url, shown_url

__all__ = ["hand_over"]


def hand_over(task: Task, settings: RunSettings, way: FleetDriveFlags, *, quiet: bool, here: bool) -> None:
    """Hands a run over to services; `here`: this process admits its rows."""
    loaded, plan = load_plan(task.chain, task.chain_root, task.parameters, settings)
    if not quiet:
        warn(plan.warnings)
    run_id = new_run_id()
    order = _order_of(task, settings, loaded, plan, task.directory(run_id))
    with connect(way.redis) as connection:
        board = Board(connection)
        hosts = _require_services(board, [Role.SINK] if here else [*Role])
        board.ask(run_id, order)
        if (risk := eviction_risk(connection)) and not here:  # else its coordinator says so
            warn([Problem(risk, None, warning=True)])
        if here:
            offered, modules = settings_of(task.parameters or ()), module_of(loaded.reference)
            places = Places(task.chain_root.resolve(), Path.cwd(), Path.cwd(), offered, modules)
            _admit(board, run_id, way.redis, places, quiet=quiet)
            _tell_end(Path(order.directory), quiet=quiet)
            return
    if quiet:
        tell(run_id)
        return
    tell(f"run {run_id} queued; the sink on {hosts} writes it to {order.directory} (relative to its --runs-root)")
    tell(f"watch: {command_line('status', run_id, '--watch')}")


def _admit(board: Board, run_id: str, redis: str | None, places: Places, *, quiet: bool) -> None:
    """Coordinates a run until it has left Redis, and shows its progress.

    Raises:
        typer.Exit: Ctrl-C.
        RunError: Redis does not answer the coordinator at the start.
    """
    stopping = threading.Event()
    duty = CoordinatorDuty(places)
    with ThreadPoolExecutor(1) as side:
        serving = side.submit(serve, redis, duty, stopping, run_id)
        try:
            _watch(board, run_id, serving.done, quiet=quiet)
        except KeyboardInterrupt:
            tell("interrupted; rows already admitted go on", fg="red", err=True)
            tell(f"admit the rest: chainette coordinator; give it up: {command_line('cancel', run_id)}", err=True)
            raise typer.Exit(INTERRUPTED) from None
        finally:
            stopping.set()
        serving.result()


def _watch(board: Board, run_id: str, is_left: Callable[[], bool], *, quiet: bool) -> None:
    """Shows a run until it has left Redis, or its coordinator has ended; waits for a Redis that does not answer."""
    view = RunView(board, run_id)

    def draw(width: int, height: int) -> list[Text] | None:
        lines = None if is_left() else view.draw(width, height)
        return lines if lines is None or not quiet else []

    watch(console(), draw)


def _tell_end(directory: Path, *, quiet: bool) -> None:
    """Shows the result the sink wrote, if this process can see the directory.

    Raises:
        typer.Exit: not every row got through.
    """
    found = RunDir(directory)
    if not found.exists():
        tell(f"the run is over; its rows are in {directory} (relative to the sink's --runs-root)")
        return
    state, _ = read_state(found)
    metadata = metadata_of(state)
    if not quiet:
        console().print(counts_table(metadata))
        for line in summary_lines(metadata, directory):
            console().print(line, soft_wrap=True)
    else:
        typer.echo(for_scripts(directory))
    if state.status is not Status.FINISHED:
        raise typer.Exit(1)
    if code := exit_code_of(metadata):
        raise typer.Exit(code)


def _require_services(board: Board, roles: Sequence[Role]) -> str:
    """The hosts of live sinks.

    Raises:
        RunError: a service is missing.
    """
    missing = [role for role in roles if not board.services(role)]
    if missing:
        commands = " and ".join(f"`chainette {role}`" for role in missing)
        way = "--detach" if Role.COORDINATOR in roles else "--no-sink"
        raise RunError(
            f"no live {' and no live '.join(missing)} serves this Redis; start {commands}, or leave out {way} to do it here"
        )
    return ", ".join(sorted({member.host or "?" for member in board.services(Role.SINK).values()}))


def _order_of(task: Task, settings: RunSettings, loaded: LoadedChain, plan: Plan, directory: Path) -> Order:
    """The run as services take it.

    Raises:
        RunError: a path is not relative to the folders that services have.
    """
    if settings.engines_file is not None:
        file, root = Path(settings.engines_file).resolve(), task.chain_root.resolve()
        below = file.relative_to(root) if file.is_relative_to(root) else file
        settings = replace(settings, engines_file=inside(str(below), "the engine file"))
    for path in task.inputs:
        if is_url(path) or is_hub(path):
            shown = shown_url(path) if is_url(path) else path
            raise RunError(f"{shown}: services take relative paths below their roots only; copy it there, or use `run`")
    return Order(
        reuse=relative_runs(settings.reuse),
        chain_ref=inside(loaded.reference, "the chain"),
        digest=loaded.digest,
        files=loaded.names,
        parameters=dict(plan.parameters),
        marks=marks_of(plan),
        inputs=tuple(inside(path if path != "-" else "/dev/stdin", "the input") for path in task.inputs),
        directory=inside(str(directory), "the run directory"),
        options=replace(settings, reuse=()),
    )
