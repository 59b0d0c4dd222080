"""`chainette resume`: goes on with a run directory from what is durable."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from chainette.cli.common import command_line, guarded, warn
from chainette.cli.flags import (
    Debug,
    JsonLogs,
    MaxRejectRate,
    MetricsHost,
    MetricsPort,
    OverRedis,
    Patience,
    Quiet,
    RunDirectory,
    Settings,
    Show,
    Window,
    Workers,
)
from chainette.cli.launch import Telling, launch, texts_of
from chainette.cli.standing import can_go_on, is_working
from chainette.cli.way import Way, drive_of, over_redis, reached
from chainette.errors import Problem, RedisUnavailable, RunError
from chainette.fleet.redis.connect import connect
from chainette.fleet.redis.queue import FleetQueue, Lost
from chainette.fleet.redis.run_registry import Board, Order, Role
from chainette.hooks import Hook
from chainette.io.rundir.events import RunCreated
from chainette.io.rundir.likeness import marks_of
from chainette.io.rundir.open import read_created, read_state
from chainette.io.rundir.paths import RunDir
from chainette.io.rundir.result import RunResult
from chainette.run import executor
from chainette.run.resume import compiled_now, require_limit

__all__ = ["resume"]

#: Flags of `run` that the first line of the log answers for.
_FIXED = frozenset(
    {
        "--batch-size",
        "--chain-root",
        "--engines",
        "--flattened",
        "--format",
        "--key",
        "--max-rows-per-file",
        "--no-flattened",
        "--output",
        "--seed",
        "--simulate",
        "--usage",
        "-o",
    }
)


@guarded
def resume(
    context: typer.Context,
    directory: RunDirectory,
    from_step: Annotated[
        list[str] | None,
        typer.Option(
            "--from",
            metavar="STEP",
            help="Compute this step and all that follow anew, as the chain is now; repeatable. "
            "`flattened` keeps every row and only names and joins them anew; `chain_input` computes everything anew. "
            "`chainette rollback DIR` brings the old rows back.",
        ),
    ] = None,
    inputs: Annotated[
        list[Path] | None,
        typer.Option("--input", metavar="PATH", help="Where the input lies now, if it has moved; repeatable."),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option("--limit", metavar="N", min=1, help="Take the first N records, more than before; also of a finished run."),
    ] = None,
    settings: Settings = None,
    max_reject_rate: MaxRejectRate = None,
    engine_patience: Patience = 600.0,
    window: Window = None,
    workers: Workers = None,
    redis: OverRedis = None,
    local: Annotated[bool, typer.Option("--local", help="Do the work in this process, however the run was started.")] = False,
    metrics_host: MetricsHost = "127.0.0.1",
    metrics_port: MetricsPort = 0,
    quiet: Quiet = False,
    json_logs: JsonLogs = False,
    show: Show = False,
    debug: Debug = False,
) -> None:
    """Go on with the run in DIR, the way it was started, or as --local, --workers or --redis say.

    The chain and the input may lie elsewhere than before, if the project was moved as a whole.

    What is durable is not asked for again. The chain, its parameters, the input, the engines and the settings are those
    that the log of DIR recorded; --set changes a parameter, if no row depends on it or --from computes those rows anew.
    If a live `chainette sink` serves the run, it is asked to go on.
    """
    _refuse(context.args)
    wanted = Way(local, workers, redis)
    parameters = texts_of(settings)
    telling = Telling(quiet, json_logs, show, debug, again=wanted.flags)

    run, paths = RunDir(directory), [path.absolute() for path in inputs or ()]
    begun = read_created(run)
    recorded = Way.recorded(begun)
    way = wanted if wanted.flags else recorded
    drive = drive_of(way.workers, way.redis, (metrics_host, metrics_port), watching=telling.watching)

    def start(hooks: tuple[Hook, ...]) -> RunResult:
        result = executor.resume(
            run,
            from_step=from_step or (),
            inputs=paths,
            limit=limit,
            parameters=parameters,
            max_reject_rate=max_reject_rate,
            engine_patience=engine_patience,
            window=window,
            hooks=hooks,
            drive=drive,
        )
        for redis in result.redis:
            if ("--redis", redis) != way.flags:  # nobody waits for it there any more
                _take_out(redis, begun.run_id)
        return result

    try:
        if (way.local or way.workers) or paths or not _asks_a_sink(run, begun, way.redis, from_step or (), limit, parameters):
            launch(run, telling, start)
    except RedisUnavailable as error:
        here = command_line("resume", directory, *_again(from_step, inputs, limit, settings), "--local")
        raise RunError(f"{error}; or do the work in this process: {here}") from error


resume.context_settings = {"ignore_unknown_options": True, "allow_extra_args": True}  # type: ignore[attr-defined]


def _again(
    from_steps: Sequence[str] | None, inputs: Sequence[Path] | None, limit: int | None, settings: Sequence[str] | None
) -> Iterator[str]:
    """The flags that ask for the same resume once more."""
    limits = [limit] if limit is not None else []
    for flag, values in (("--from", from_steps), ("--input", inputs), ("--limit", limits), ("--set", settings)):
        for value in values or ():
            yield from (flag, str(value))


def _take_out(redis: str, run: str) -> None:
    """Deletes a run's leftovers from a Redis that it no longer uses; warns if that cannot be reached."""
    try:
        over_redis(reached(redis)).clean(run)
    except RunError as error:
        warn([Problem(str(error), None, warning=True)])


def _asks_a_sink(
    directory: RunDir,
    run: RunCreated,
    redis: str | None,
    from_steps: Sequence[str],
    limit: int | None,
    parameters: Mapping[str, str],
) -> bool:
    """Has the run's sink go on, where a service that lives has it; False where none has.

    Raises:
        RunError: Redis does not answer, and the run needs it.
    """
    if redis is None and not is_working(directory.path):
        return False

    try:
        connection = connect(redis)
    except RunError:
        if redis is None or not can_go_on(directory.path):
            return False  # whoever has the directory is told about by its lock, and a finished run needs nobody
        raise
    with connection:
        board = Board(connection)
        info = board.run(run.run_id)
        if info is None or info.state == "cancelled":
            return False
        order, sinks = Order.of(info), board.services(Role.SINK)
        if order is None or not sinks:
            return False
        if limit is not None:
            require_limit(directory, read_state(directory)[0], limit)
            order = msgspec.structs.replace(order, options=msgspec.structs.replace(order.options, limit=limit))
        if from_steps or parameters:
            order = _anew(order, directory, from_steps, parameters)
        if from_steps or parameters or limit is not None:
            board.say(run.run_id, order.fields)
        try:
            FleetQueue(connection).set_state(run.run_id, "running")
        except Lost:
            return False  # it ended meanwhile
    hosts = ", ".join(sorted({member.host or "?" for member in sinks.values()}))
    typer.echo(f"run {run.run_id}: asked the sink on {hosts} to go on")
    typer.echo(f"watch: {command_line('status', run.run_id, '--watch')}")
    return True


def _anew(order: Order, directory: RunDir, from_steps: Sequence[str], parameters: Mapping[str, str]) -> Order:
    """The order with the chain as it is now."""
    digest, plan = compiled_now(directory, parameters)
    return msgspec.structs.replace(
        order, digest=digest, from_steps=tuple(from_steps), parameters=dict(plan.parameters), marks=marks_of(plan)
    )


def _refuse(words: list[str]) -> None:
    """Says why a word of the command line cannot be taken.

    Raises:
        typer.BadParameter: there is one.
    """
    for word in words:
        flag = word.partition("=")[0]
        if flag in _FIXED:
            raise typer.BadParameter(
                f"{flag} is fixed by the log of the run, which goes on the way it was started; begin a new run to change it"
            )
        raise typer.BadParameter(
            f"No such option: {flag}" if flag.startswith("-") else f"Got unexpected extra argument ({word})"
        )
