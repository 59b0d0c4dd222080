"""`chainette runs`, `pause`, `unpause`, `cancel`: runs that are live on a Redis."""

from __future__ import annotations

from typing import Annotated

import typer

from chainette.cli.command_errors import guarded
from chainette.cli.flags import AsJson, RedisUrl
from chainette.cli.fleet_json import run_json
from chainette.cli.printing import print_json, tell
from chainette.cli.screen.tables import console, new_table
from chainette.errors import RunError
from chainette.fleet.process_records import end, recorded
from chainette.fleet.protocol.queue_values import Lost
from chainette.fleet.redis.connect import chosen_url, connect, shown
from chainette.fleet.redis.redis_queue import FleetQueue
from chainette.fleet.redis.run_registry import Board
from chainette.fleet.redis.stall_reasons import reasons
from chainette.utils.plurals import counted
from chainette.utils.terminal_text import visible_line

__all__ = ["cancel", "kill", "pause", "runs", "unpause"]

Run = Annotated[str, typer.Argument(metavar="RUN", help="A run id; `chainette runs` lists them.")]


@guarded
def runs(redis: RedisUrl = None, as_json: AsJson = False) -> None:
    """List the live runs of a Redis, and its workers. Finished runs are not listed: their directories have everything."""
    with connect(redis) as connection:
        fleet = Board(connection).fleet()
    if as_json:
        print_json(map(run_json, fleet.runs))
        return
    columns = ("run", "state", "chain", "epoch", "roots admitted", "live rows")
    table, why = new_table(columns, numbers=columns[3:]), []
    for run in fleet.runs:
        info, total = run.info, f" of {run.info.total}" if run.info.total is not None else ""
        epoch = str(info.epoch) if info.epoch >= 0 else "-"
        table.add_row(
            *map(visible_line, (info.run, info.state, info.chain_ref)), epoch, f"{info.cursor}{total}", str(info.live_rows)
        )
        why += [f"{info.run}: {reason}" for reason in reasons(run)]
    screen = console()
    screen.print(table if fleet.runs else "no live runs")
    for line in why:
        screen.print(visible_line(line), soft_wrap=True)
    for name, member in sorted(fleet.members.items()):
        served = f"{', '.join(member.engines)}, {counted(member.rows_in_flight, 'row')} in flight"
        about = served if member.is_worker else f"pid {member.pid} on {member.host}"
        screen.print(visible_line(f"{member.kind} {name}: {about}"), soft_wrap=True)
    if not any(member.is_worker for member in fleet.members.values()):
        screen.print("no live workers; start one: chainette worker --engine NAME")


@guarded
def pause(run: Run, redis: RedisUrl = None) -> None:
    """Pause a run: work in progress is finished, and nothing new begins until `chainette unpause`."""
    _set_state(run, "paused", redis)


@guarded
def unpause(run: Run, redis: RedisUrl = None) -> None:
    """Continue a run that was paused."""
    _set_state(run, "running", redis)


@guarded
def cancel(run: Run, redis: RedisUrl = None) -> None:
    """Cancel a run for good; its finished rows stay in its directory."""
    _set_state(run, "cancelled", redis)


@guarded
def kill(
    engine: Annotated[str | None, typer.Option("--engine", metavar="NAME", help="The workers of this engine.")] = None,
    everyone: Annotated[bool, typer.Option("--all", help="All workers of this Redis.")] = False,
    redis: RedisUrl = None,
    grace: Annotated[
        float,
        typer.Option("--grace", metavar="SECONDS", min=0, help="The time that workers on this machine have to exit."),
    ] = 30.0,
) -> None:
    """Ask workers to hand back unfinished work and to exit, which takes seconds.

    Workers of the same user on this machine are waited for, and killed if they hang, even if Redis does not answer.
    """
    if (engine is None) is not everyone:
        raise typer.BadParameter("say which workers: --engine NAME, or --all")
    here = recorded(shown(chosen_url(redis)), engine)
    whom = f"of {engine!r} " if engine else ""
    asked = _ask_to_stop(engine, redis, instead=len(here))
    tell(f"asked {counted(asked, 'worker')} {whom}to end" if asked else f"no live workers {whom}there")
    for worker in end(here, grace):
        tell(f"worker {worker.name} (process {worker.pid}) did not end in {grace:g} s and was killed")


def _ask_to_stop(engine: str | None, url: str | None, *, instead: int) -> int:
    """The number of workers that were asked: through Redis, or else those in `instead`, which are known without it.

    Raises:
        RunError: Redis does not answer, and none is known without it.
    """
    try:
        with connect(url) as connection:
            return max(instead, len(FleetQueue(connection).ask_to_stop(engine)))
    except RunError as error:
        if not instead:
            raise
        tell(f"warning: {error}; only workers of this machine are ended", fg="yellow", err=True)
        return instead


def _set_state(run: str, state: str, url: str | None) -> None:
    with connect(url) as connection:
        try:
            FleetQueue(connection).set_state(run, state)
        except Lost as error:
            raise RunError(str(error)) from error
    tell(f"run {run}: {state}")
