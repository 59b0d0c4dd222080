"""`chainette enqueue`: `run` with other hands, those of the workers that serve a Redis."""

from __future__ import annotations

import copy
import inspect
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from chainette_workers.service.coordinator_service import CoordinatorDuty
from chainette_workers.service.service import Places, serve
from rich.text import Text

from chainette.cli.commands.run import run
from chainette.cli.common import command_line, console, guarded, warn
from chainette.cli.exit_codes import INTERRUPTED, REJECTED
from chainette.cli.flags import RedisUrl
from chainette.cli.launch import load_plan
from chainette.cli.screen.fleet_screen import RunView, watch
from chainette.cli.screen.summary import counts_table, summary_lines
from chainette.core.plan import Plan
from chainette.core.usercode.loading import LoadedChain
from chainette.core.usercode.parameters import settings_of
from chainette.errors import Problem, RunError
from chainette.fleet.redis.connect import connect, eviction_risk
from chainette.fleet.redis.run_registry import Board, Options, Order, Role, inside
from chainette.io.rundir.likeness import marks_of
from chainette.io.rundir.open import read_state
from chainette.io.rundir.paths import RunDir
from chainette.io.rundir.replay import Status
from chainette.utils.ids import new_run_id

__all__ = ["enqueue"]

#: Flags of `run` for engines in this process, or in workers of its own.
_REFUSED = ("workers", "show", "stream")

#: What only a process that writes the run itself can do.
_HERE = (*_REFUSED, "json_logs")

Detach = Annotated[
    bool,
    typer.Option("--detach", help="Hand the run to a live `chainette coordinator` and `chainette sink`, and return at once."),
]
NoSink = Annotated[
    bool,
    typer.Option("--no-sink", help="Admit the rows in this process, and leave the writing to a live `chainette sink`."),
]


def _with_flags_of_run(command: Callable[..., None]) -> Callable[..., None]:
    """The command as Typer sees it: the parameters of `run`, then its own."""
    theirs = [_as_here(parameter) for parameter in inspect.signature(run, eval_str=True).parameters.values()]
    own = [
        parameter
        for parameter in inspect.signature(command, eval_str=True).parameters.values()
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD
    ]
    kept = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in [*theirs, *own]]
    command.__signature__ = inspect.Signature(kept)  # type: ignore[attr-defined]
    return command


def _as_here(parameter: inspect.Parameter) -> inspect.Parameter:
    """A flag of `run` as `enqueue` has it: what it refuses is in no help, and it is always over a Redis."""
    if parameter.name == "redis":
        return parameter.replace(annotation=RedisUrl)
    if parameter.name not in _REFUSED:
        return parameter
    kind, option = get_args(parameter.annotation)
    option = copy.copy(option)
    option.hidden = True
    return parameter.replace(annotation=Annotated[kind, option])


@_with_flags_of_run
def enqueue(*, detach: Detach = False, no_sink: NoSink = False, **flags: Any) -> None:
    """Run CHAIN over INPUTS through the workers that serve a Redis, into a run directory.

    Admits rows while there is room and writes what comes back, until the end or Ctrl-C; `chainette resume DIR`
    goes on where it stopped, and finds what the workers did meanwhile. Flags and exit codes are those of `run`.

    With --detach services do that, also after this command has ended: INPUTS lies below the coordinator's --inputs-root,
    the run directory below the sink's --runs-root, and CHAIN below the --chain-root of both. With --no-sink this process
    is the run's coordinator, until the end or Ctrl-C, and the current folder must be the sink's --runs-root.
    """
    if detach and no_sink:
        raise typer.BadParameter("--detach leaves both halves to services, --no-sink one of them; give one")
    if detach or no_sink:
        _hand_over(flags, here=no_sink, debug=flags["debug"])
    else:
        run(**flags)


@guarded
def _hand_over(flags: dict[str, Any], *, here: bool, debug: bool) -> None:
    """To services; `here` says that this process admits the rows."""
    del debug  # of `guarded`
    for flag in _HERE:
        if flags[flag]:
            way = "--no-sink" if here else "--detach"
            raise typer.BadParameter(f"--{flag.replace('_', '-')} needs the run in this process; leave out {way}")

    chain_root, engines = flags["chain_root"], flags["engines"]
    how = {name: flags[name] for name in ("simulate", "batch_size")}
    loaded, plan = load_plan(flags["chain"], chain_root, engines, flags["settings"], **how)
    if not flags["quiet"]:
        warn(plan.warnings)
    run_id = new_run_id()
    order = _order(loaded, plan, flags, flags["output"] or Path("runs") / run_id)
    with connect(flags["redis"]) as connection:
        board = Board(connection)
        hosts = _require_services(board, [Role.SINK] if here else [*Role])
        board.ask(run_id, order)
        if (risk := eviction_risk(connection)) and not here:  # else its coordinator says so
            warn([Problem(risk, None, warning=True)])
        if here:
            _admit(board, run_id, flags["redis"], _places(chain_root, flags["settings"]), quiet=flags["quiet"])
            _tell_end(Path(order.directory), quiet=flags["quiet"])
            return
    if flags["quiet"]:
        typer.echo(run_id)
        return
    typer.echo(f"run {run_id}: handed over; its rows come to {order.directory} below the --runs-root of the sink on {hosts}")
    typer.echo(f"watch: {command_line('status', run_id, '--watch')}")


def _admit(board: Board, run_id: str, redis: str | None, places: Places, *, quiet: bool) -> None:
    """Is the run's coordinator until the run is out of Redis, and shows it meanwhile.

    Raises:
        typer.Exit: Ctrl-C.
    """
    stopping = threading.Event()
    duty = CoordinatorDuty(places)
    thread = threading.Thread(target=serve, args=(redis, duty, stopping, run_id), name="coordinator")
    thread.start()
    try:
        _watch(board, run_id, quiet=quiet)
    except KeyboardInterrupt:
        typer.secho("interrupted; what was admitted goes on", fg="red", err=True)
        typer.secho(f"admit the rest: chainette coordinator; give it up: {command_line('cancel', run_id)}", err=True)
        raise typer.Exit(INTERRUPTED) from None
    finally:
        stopping.set()
        thread.join()


def _places(chain_root: Path, settings: list[str] | None) -> Places:
    """The roots of a service in this process."""
    return Places(chain_root.resolve(), Path.cwd(), Path.cwd(), settings_of(settings or ()))


def _watch(board: Board, run_id: str, *, quiet: bool) -> None:
    """Looks at a run until it is out of Redis; a Redis that is away is waited for."""
    view = RunView(board, run_id)

    def draw(width: int, height: int) -> list[Text] | None:
        lines = view.draw(width, height)
        return lines if lines is None or not quiet else []

    watch(console(), draw)


def _tell_end(directory: Path, *, quiet: bool) -> None:
    """What the sink wrote, where this process sees it.

    Raises:
        typer.Exit: not every row got through.
    """
    found = RunDir(directory)
    if not found.exists():
        typer.echo(f"the run is over; its rows are in {directory} below the sink's --runs-root")
        return
    state, _ = read_state(found)
    metadata = state.metadata()
    if not quiet:
        console().print(counts_table(metadata))
        for line in summary_lines(metadata, directory):
            console().print(line, soft_wrap=True)
    else:
        typer.echo(str(directory))
    if state.status is not Status.FINISHED:
        raise typer.Exit(1)
    if metadata["rows_rejected"]:
        raise typer.Exit(REJECTED)


def _require_services(board: Board, roles: Sequence[Role]) -> str:
    """Where live sinks are.

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


def _order(loaded: LoadedChain, plan: Plan, flags: dict[str, Any], directory: Path) -> Order:
    """The run as services take it.

    Raises:
        RunError: a path is not one that they take.
    """
    engines = flags["engines"]
    if engines is not None and engines.resolve().is_relative_to(flags["chain_root"].resolve()):
        engines = engines.resolve().relative_to(flags["chain_root"].resolve())
    same = [name for name in Options.__struct_fields__ if name not in ("format", "engines_file")]
    return Order(
        chain_ref=inside(loaded.reference, "the chain"),
        digest=loaded.digest,
        parameters=dict(plan.parameters),
        marks=marks_of(plan),
        inputs=tuple(inside(path if path != "-" else "/dev/stdin", "the input") for path in flags["inputs"]),
        directory=inside(str(directory), "the run directory"),
        options=Options(
            **{name: flags[name] for name in same},
            format=flags["format"].value,
            engines_file=inside(str(engines), "the engine file") if engines else None,
        ),
    )
