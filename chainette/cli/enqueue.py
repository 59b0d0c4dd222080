"""`chainette enqueue`: `run` with other hands, those of the workers that serve a Redis."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from chainette.cli.common import command_line, guarded, warn
from chainette.cli.launch import load_plan
from chainette.cli.run import run

if TYPE_CHECKING:
    from chainette.core.loading import LoadedChain
    from chainette.fleet.board import Board, Order

__all__ = ["enqueue"]

#: What only a process that writes the run itself can do.
_HERE = ("workers", "json_logs", "show", "stream")

Detach = Annotated[
    bool,
    typer.Option("--detach", help="Hand the run to a live `chainette coordinator` and `chainette sink`, and return at once."),
]


def _with_flags_of_run(command: Callable[..., None]) -> Callable[..., None]:
    """The command as Typer sees it: the parameters of `run`, then its own."""
    theirs = inspect.signature(run, eval_str=True).parameters.values()
    own = [
        parameter
        for parameter in inspect.signature(command, eval_str=True).parameters.values()
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD
    ]
    kept = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in [*theirs, *own]]
    command.__signature__ = inspect.Signature(kept)  # type: ignore[attr-defined]
    return command


@_with_flags_of_run
def enqueue(*, detach: Detach = False, **flags: Any) -> None:
    """Run CHAIN over INPUTS through the workers that serve a Redis, into a run directory.

    Admits rows while there is room and writes what comes back, until the end or Ctrl-C; `chainette resume DIR --redis URL`
    goes on where it stopped, and finds what the workers did meanwhile. Flags and exit codes are those of `run`.

    With --detach services do that, also after this command has ended: INPUTS lies below the coordinator's --inputs-root,
    the run directory below the sink's --runs-root, and CHAIN below the --chain-root of both.
    """
    if detach:
        _hand_over(flags, debug=flags["debug"])
    else:
        run(**flags)


@guarded
def _hand_over(flags: dict[str, Any], *, debug: bool) -> None:
    del debug  # of `guarded`
    for flag in _HERE:
        if flags[flag]:
            raise typer.BadParameter(f"--{flag.replace('_', '-')} needs the run in this process; leave out --detach")

    from chainette.fleet.board import Board
    from chainette.fleet.connect import connect
    from chainette.utils.ids import new_run_id

    chain_root, engines = flags["chain_root"], flags["engines"]
    loaded, plan = load_plan(flags["chain"], chain_root, engines, simulate=flags["simulate"], batch_size=flags["batch_size"])
    if not flags["quiet"]:
        warn(plan.warnings)
    run_id = new_run_id()
    order = _order(loaded, flags, flags["output"] or Path("runs") / run_id)
    with connect(flags["redis"]) as connection:
        board = Board(connection)
        hosts = _require_services(board)
        board.ask(run_id, order)
    if flags["quiet"]:
        typer.echo(run_id)
        return
    typer.echo(f"run {run_id}: handed over; its rows come to {order.directory} below the --runs-root of the sink on {hosts}")
    typer.echo(f"watch: {command_line('status', run_id, '--watch')}")


def _require_services(board: Board) -> str:
    """Where live sinks are.

    Raises:
        RunError: a service is missing.
    """
    from chainette.errors import RunError
    from chainette.fleet.board import Role

    missing = [role for role in Role if not board.services(role)]
    if missing:
        commands = " and ".join(f"`chainette {role}`" for role in missing)
        raise RunError(
            f"no live {' and no live '.join(missing)} serves this Redis; start {commands}, or leave out --detach to do it here"
        )
    return ", ".join(sorted({words.get("host", "?") for words in board.services(Role.SINK).values()}))


def _order(loaded: LoadedChain, flags: dict[str, Any], directory: Path) -> Order:
    """The run as services take it.

    Raises:
        RunError: a path is not one that they take.
    """
    from chainette.fleet.board import Options, Order, inside

    engines = flags["engines"]
    if engines is not None and engines.resolve().is_relative_to(flags["chain_root"].resolve()):
        engines = engines.resolve().relative_to(flags["chain_root"].resolve())
    same = [name for name in Options.__struct_fields__ if name not in ("format", "engines_file")]
    return Order(
        chain_ref=inside(loaded.reference, "the chain"),
        digest=loaded.digest,
        inputs=inside(flags["inputs"] if flags["inputs"] != "-" else "/dev/stdin", "the input"),
        directory=inside(str(directory), "the run directory"),
        options=Options(
            **{name: flags[name] for name in same},
            format=flags["format"].value,
            engines_file=inside(str(engines), "the engine file") if engines else None,
        ),
    )
