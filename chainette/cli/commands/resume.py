"""`chainette resume`: continues a run directory from its durable rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from chainette.cli.command_errors import guarded, warn
from chainette.cli.directory_status import can_go_on, is_working
from chainette.cli.drive_flags import ResumedDriveFlags, over_redis, reached
from chainette.cli.flag_bundles import Telling
from chainette.cli.flags import RunDirectory, Select, Settings, Yes
from chainette.cli.launch import launch, require_trust, texts_of
from chainette.cli.option_advice import advice_on
from chainette.cli.printing import command_line, tell
from chainette.cli.signature import Only, fixed_flags, words_of
from chainette.core.run_settings import RESUMABLE, RunSettings
from chainette.errors import Problem, RedisUnavailable, RunError
from chainette.fleet.protocol.queue_values import Lost
from chainette.fleet.redis.connect import connect
from chainette.fleet.redis.redis_queue import FleetQueue
from chainette.fleet.redis.run_registry import Board, Order, Role, relative_runs
from chainette.hooks import Hook
from chainette.io.rundir.chain_marks import marks_of
from chainette.io.rundir.event_types import Event, RunCreated, RunResumed
from chainette.io.rundir.open import read_created, read_state
from chainette.io.rundir.paths import RunDir
from chainette.io.rundir.result import RunResult
from chainette.io.rundir.run_state import RunState
from chainette.run import executor
from chainette.run.options import Drive
from chainette.run.recorded_options import require_accept, require_limit, require_reuse
from chainette.run.resumption import compiled_now
from chainette.run.selected_rows import REJECTED, selection_of
from chainette.utils.remote_files import is_url

__all__ = ["resume"]

#: Flags of `run` whose values the log fixes.
_FIXED = frozenset({"--chain-root", "--output", "-o", *fixed_flags()})

FromSteps = Annotated[
    list[str] | None,
    typer.Option(
        "--from",
        metavar="STEP",
        help="Recompute this step and all that follow, with the chain as it is now; repeatable. "
        "`flattened` keeps every row and only renames and joins columns; `chain_input` recomputes everything. "
        "`chainette rollback DIR` restores the old rows.",
    ),
]

MovedInputs = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        metavar="PATH",
        help="The new path of an input that was moved; repeatable. With --accept, - reads standard input again from its "
        "start, and continues after the known rows.",
    ),
]

MoreInputs = Annotated[
    list[str] | None,
    typer.Option(
        "--more",
        metavar="PATH",
        help="Append this file, folder, pattern or URL to the input of a finished run, with new record numbers; repeatable.",
    ),
]


@guarded
def resume(
    context: typer.Context,
    directory: RunDirectory,
    from_step: FromSteps = None,
    select: Select = None,
    inputs: MovedInputs = None,
    more: MoreInputs = None,
    *,
    settings: Annotated[RunSettings, Only(RESUMABLE)],
    parameters: Settings = None,
    way: ResumedDriveFlags,
    telling: Annotated[Telling, Only({"quiet", "json_logs", "show", "debug", "hook"})],
    yes: Yes = False,
) -> None:
    """Continue the run in DIR the way it was started, unless --local, --workers or --redis says otherwise.

    A project that was moved as a whole resumes as it is.

    Nothing durable is asked for again. The chain, its parameters, the input, the engines and the settings are those in the
    log of DIR; --set changes a parameter if no row depends on it, or if --from recomputes those rows. If a live `chainette
    sink` serves the run, it is asked to continue. If somebody else began the run, you are asked before its chain runs.
    """
    _refuse(context.args)
    moved = tuple(path if path == "-" else _placed(path) for path in inputs or ())
    appended = tuple(map(_placed, more or ()))
    if appended and (from_step or select):
        flag = "--from" if from_step else "--select"
        raise typer.BadParameter(f"--more appends to the run as it is, {flag} recomputes rows; give one after the other")
    asked = Resumption(tuple(from_step or ()), moved, appended, texts_of(parameters), settings, tuple(select or ()))
    run = RunDir(directory)
    begun = read_created(run)
    require_trust(run, trusted=yes)
    chosen = way.or_as_begun(begun)
    drive = chosen.drive(telling.watching)
    here = chosen.local or chosen.workers or asked.inputs or asked.more or REJECTED in asked.select
    try:
        if here or not _asks_a_sink(run, begun, chosen.redis, asked):
            _go_on(run, begun, chosen, drive, asked, replace(telling, again=way.flags))
    except RedisUnavailable as error:
        again = command_line("resume", directory, *asked.words, "--local")
        raise RunError(f"{error}; or do the work in this process: {again}") from error


resume.context_settings = {"ignore_unknown_options": True, "allow_extra_args": True}  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Resumption:
    """Changes the user asks of a resume."""

    from_steps: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()
    more: tuple[str, ...] = ()
    parameters: Mapping[str, str] = field(default_factory=dict)
    settings: RunSettings = field(default_factory=RunSettings)
    select: tuple[str, ...] = ()

    @property
    def words(self) -> Iterator[str]:
        """The flags that ask for the same again."""
        sets = [f"{name}={text}" for name, text in self.parameters.items()]
        paths = (("--input", self.inputs), ("--more", self.more))
        for flag, values in (("--from", self.from_steps), ("--select", self.select), *paths, ("--set", sets)):
            for value in values:
                yield from (flag, value)
        yield from words_of(self.settings)


def _placed(source: str) -> str:
    """An input by a name that holds in any folder."""
    return source if is_url(source) else str(Path(source).absolute())


def _go_on(
    run: RunDir, begun: RunCreated, way: ResumedDriveFlags, drive: Drive | None, asked: Resumption, telling: Telling
) -> None:
    """Goes on with a run in this process, and ends the command as `launch` does."""

    first = begun.way.get("redis", "")
    moves = bool(first) and ("--redis", first) != way.flags

    def start(hooks: tuple[Hook, ...]) -> RunResult:
        result = executor.resume(
            run,
            from_step=asked.from_steps,
            select=asked.select,
            inputs=asked.inputs,
            more=asked.more,
            parameters=asked.parameters,
            hooks=(*hooks, _Moved(first, begun.run_id)) if moves else hooks,
            drive=drive,
            progress=False,
            **{name: getattr(asked.settings, name) for name in RESUMABLE},
        )
        for redis in result.redis:
            if ("--redis", redis) != way.flags:  # nobody waits for it there
                _take_out(redis, begun.run_id)
        return result

    launch(run, telling, start)


class _Moved(Hook):
    """Takes a run out of its first Redis as soon as it goes on elsewhere, so that the workers there do not ask the same
    questions. If that fails, it is tried again at the end of the run, which warns."""

    def __init__(self, redis: str, run: str) -> None:
        self._redis, self._run = redis, run

    def on_event(self, event: Event) -> None:
        if isinstance(event, RunResumed):
            with suppress(RunError):
                over_redis(reached(self._redis)).clean(self._run)


def _take_out(redis: str, run: str) -> None:
    """Deletes a run's leftovers from a Redis it no longer uses; warns if that cannot be reached."""
    try:
        over_redis(reached(redis)).clean(run)
    except RunError as error:
        warn([Problem(str(error), None, warning=True)])


def _asks_a_sink(directory: RunDir, run: RunCreated, redis: str | None, asked: Resumption) -> bool:
    """Asks a live sink to go on with the run; False if none serves it.

    Raises:
        RunError: Redis does not answer, and the run needs it.
    """
    if redis is None and not is_working(directory.path):
        return False
    try:
        connection = connect(redis)
    except RunError:
        if redis is None or not can_go_on(directory.path):
            return False  # the directory's lock names a process that works on it, and a finished run needs nobody
        raise
    with connection:
        board = Board(connection)
        info = board.run(run.run_id)
        if info is None or info.state == "cancelled":
            return False
        order, sinks = board.order(info), board.services(Role.SINK)
        if order is None or not sinks:
            return False
        state, _ = read_state(directory)
        is_old = order.number < state.order  # somebody put it back
        if is_old or asked != Resumption():
            changed = _changed(order.followed() if is_old else order, directory, state, asked).after(state.order)
            board.say(run.run_id, board.sealed(run.run_id, changed).fields)
        try:
            FleetQueue(connection).set_state(run.run_id, "running")
        except Lost:
            return False  # it ended meanwhile
    hosts = ", ".join(sorted({member.host or "?" for member in sinks.values()}))
    tell(f"run {run.run_id}: asked the sink on {hosts} to go on")
    tell(f"watch: {command_line('status', run.run_id, '--watch')}")
    return True


def _changed(order: Order, directory: RunDir, state: RunState, asked: Resumption) -> Order:
    """The order with the changes that are asked for; if steps or parameters change, for the chain as it is now."""
    require_reuse(directory, state, asked.settings.reuse)
    require_limit(directory, state, asked.settings.limit)
    require_accept(directory, state, asked.settings.accept)
    reuse, settings = relative_runs(asked.settings.reuse) or order.reuse, replace(asked.settings, reuse=())
    order = msgspec.structs.replace(order, reuse=reuse, options=replace(order.options, **settings.given))
    if not (asked.from_steps or asked.select or asked.parameters):
        return order
    claim, plan = compiled_now(directory, asked.parameters)
    chosen = selection_of(asked.select, plan, state)
    return msgspec.structs.replace(
        order,
        digest=claim.digest,
        files=claim.files,
        from_steps=(*asked.from_steps, *chosen.steps),
        parameters=dict(plan.parameters),
        marks=marks_of(plan),
    )


def _refuse(words: list[str]) -> None:
    """Explains the first word of the command line that `resume` does not take.

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
            f"No such option: {flag}{advice_on(flag)}" if flag.startswith("-") else f"Got unexpected extra argument ({word})"
        )
