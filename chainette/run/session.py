"""An open run directory, whose units this process or a `Drive` moves to the end."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread

from chainette.core.plan import Plan
from chainette.engine.budget import engine_limits, require_prices
from chainette.engine.config import EngineConfig
from chainette.engine.lifecycle import Engines, create_engine
from chainette.engine.preflight import require_openable
from chainette.engine.price import Rate
from chainette.errors import BudgetSpent, ChainetteError, InputError, RunCancelled, RunStopped
from chainette.hooks import Hook, Hooks
from chainette.io.inputs.readers import InputFile
from chainette.io.inputs.renaming import Renaming
from chainette.io.inputs.roots import Root, Roots
from chainette.io.inputs.validate import InputModel
from chainette.io.rundir.accepted_rows import has_enough, may_begin
from chainette.io.rundir.event_types import EngineLoaded, EngineReleased, Event, RunResumed, RunStarted
from chainette.io.rundir.graph_of_plan import graph_of
from chainette.io.rundir.result import RunResult
from chainette.io.rundir.run_state import Status
from chainette.io.rundir.writer import RunWriter
from chainette.records import Row
from chainette.run.answer_sources import AnswerSources
from chainette.run.options import Drive, RunOptions
from chainette.run.stored_answers import StoredAnswers, index_own, require_runs
from chainette.run.window import window_for
from chainette.screen.display_choice import shown
from chainette.utils.plurals import counted

if TYPE_CHECKING:
    from chainette.run.local_sink import Writer
    from chainette.run.scheduler import LocalRun

__all__ = [
    "Deliver",
    "Session",
    "announce",
    "check_drive",
    "finish_run",
    "local_run",
    "open_answers",
    "rates_of",
    "require_engines",
    "roots_of",
]

_log = logging.getLogger("chainette")

#: Takes the finished rows of one root; may wait.
Deliver = Callable[[list[Row]], Awaitable[None]]


@dataclass(frozen=True)
class Session:
    """An open directory of a run a `Drive` moves."""

    plan: Plan
    source: InputFile
    writer: RunWriter
    options: RunOptions
    hook: Hook

    @property
    def sources(self) -> AnswerSources | None:
        """The earlier runs it takes answers from, and its own earlier sessions if rows share answers."""
        directory = self.writer.directory
        shares = self.writer.epoch > 0 and any(node.dedupe for node in self.plan.nodes.values())
        return self.options.sources(directory.answers, str(directory) if shares else "")

    @property
    def has_enough(self) -> bool:
        """Whether all wanted rows are accepted, so that no more input is needed."""
        return has_enough(self.writer.accepted)

    def admits(self, root: int) -> bool:
        """Whether a root may begin (`AcceptedRows.admits`)."""
        return may_begin(self.writer.accepted, root, self.plan.batch_size, window_for(0, self.options.window))

    def _wants_source(self) -> str:
        accepted, directory = self.writer.accepted, self.writer.directory
        assert accepted is not None
        return (
            f"{directory}: {accepted.certain:,} of {counted(accepted.wanted, 'row')} accepted, and all rows that were read "
            f"from its source are used up. Give the source again, from its first row: "
            f"`... | chainette resume {directory} --input -`, or chain.run(rows, {str(directory)!r}, resume=True)"
        )

    def finish(self) -> None:
        """Says in the log that every row is in its place; once, however often it is called.

        Raises:
            NotFinished: by the log, rows are missing.
            RunStopped: rows are missing, and this session does not have the source that can give them.
        """
        state = self.writer.state
        if state.status is not Status.FINISHED:
            if self.has_enough:
                _tell(self.hook, self.writer.finish("", None))
                return
            if self.source.is_cut:
                raise RunStopped(self._wants_source())
            records = self.source.total()
            _tell(self.hook, self.writer.finish(self.source.digest(state.read), records))


async def check_drive(plan: Plan, options: RunOptions, rates: Mapping[str, Rate] = MappingProxyType({})) -> None:
    """Checks before anything is written or taken back who moves the units (the drive, or the engines of this process), and
    whether answers of earlier runs can be taken and the budget be kept. `rates` are those of the log.

    Raises:
        EnginesCannotOpen: an engine lacks something on this machine.
        InputError: answers cannot be taken as the options say; or the budget is in dollars or GPU-hours, and an engine
            has no price.
    """
    if options.budget or engine_limits(plan.engines):
        names = {name for node in plan.steps for name in node.engines}
        asked = {name: config for name, config in plan.engines.items() if name in names}
        require_prices(options.budget, asked, {**rates, **rates_of(plan)})
    await anyio.to_thread.run_sync(_require_reusable, plan, options)
    await anyio.to_thread.run_sync(options.drive.check if options.drive is not None else require_engines, plan)


def _require_reusable(plan: Plan, options: RunOptions) -> None:
    if options.no_reuse and not options.reuse:
        raise InputError("--no-reuse leaves out steps of --reuse, which is not given; name an earlier run with --reuse DIR")
    for step in options.no_reuse:
        if step not in {node.id for node in plan.steps}:
            raise InputError(
                f"--no-reuse {step}: the chain has no such step; it has {', '.join(node.id for node in plan.steps)}"
            )
    require_runs(options.reuse)


def require_engines(plan: Plan) -> None:
    """Checks every engine a node of the plan asks; see `require_openable`."""
    asked = {node.engine for node in plan.stations.values()}
    require_openable(config for name, config in plan.engines.items() if name in asked)


async def finish_run(
    plan: Plan, source: InputFile, writer: RunWriter, options: RunOptions, deliver: Deliver | None = None
) -> RunResult:
    """Moves a directory's run to its end, or to a point where it can be resumed; shows it if nobody takes its rows."""
    with shown(writer.directory) if options.progress and deliver is None else nullcontext(()) as bars:
        return await _finish_run(plan, source, writer, replace(options, hooks=(*options.hooks, *bars)), deliver)


async def _finish_run(
    plan: Plan, source: InputFile, writer: RunWriter, options: RunOptions, deliver: Deliver | None
) -> RunResult:
    hook = Hooks(options.hooks)
    writer.charge(rates_of(plan), options.budget, engine_limits(plan.engines))
    session = Session(plan, source, writer, options, hook)
    try:
        await anyio.to_thread.run_sync(index_own, session.sources)
        if options.drive is not None:
            await _in_thread(options.drive, session)
        else:
            _tell(hook, await anyio.to_thread.run_sync(announce, writer, source, plan))
            roots = roots_of(plan, source, options, writer.state.roots.starts)
            pending = partial(roots.pending, writer.state.roots.is_done)
            async with local_run(plan, pending, writer, options, session.sources, deliver) as local:
                await local.run()
        await anyio.to_thread.run_sync(session.finish)
        return RunResult(writer.directory, writer.state)
    except BaseException as error:
        with anyio.CancelScope(shield=True):
            _tell(hook, await anyio.to_thread.run_sync(_try_to_pause, writer, error))
        if not options.chain_ref and writer.state.status is Status.PAUSED:  # the command line says it in its own way
            again = f"chain.run(inputs, {str(writer.directory)!r}, resume=True)"
            _log.warning("%s: the run has stopped. Go on in Python, where its chain is: %s", writer.directory, again)
        raise
    finally:
        source.close()
        writer.close()


def rates_of(plan: Plan) -> dict[str, Rate]:
    """How the engines of a plan are charged, as far as they have a price or GPUs."""
    return {name: rate for name, config in plan.engines.items() if (rate := Rate.of(config)) != Rate()}


@asynccontextmanager
async def open_answers(sources: AnswerSources | None) -> AsyncIterator[StoredAnswers | None]:
    """The answers of earlier runs, if there are any to take from; raises as `StoredAnswers.open`."""
    if sources is None:
        yield None
        return
    stored = await anyio.to_thread.run_sync(StoredAnswers.open, sources)
    try:
        yield stored
    finally:
        stored.close()


async def _in_thread(drive: Drive, session: Session) -> None:
    """Waits for the drive's end even if cancelled: it looks for that itself, and has workers to end.

    Ctrl-C cancels the task but not its scope, so it would neither stay in this wait nor reach the thread; a task group turns it
    into a cancelled scope.
    """
    failed: list[Exception] = []

    async def move() -> None:
        try:
            await anyio.to_thread.run_sync(drive, session)
        except Exception as error:
            failed.append(error)

    async with anyio.create_task_group() as group:
        group.start_soon(move)
    if failed:
        raise failed[0]


def _reason(error: BaseException) -> str:
    if isinstance(error, ChainetteError):
        return str(error)
    return f"failed: {type(error).__name__}: {error}" if isinstance(error, Exception) else "interrupted"


def announce(writer: RunWriter, source: InputFile, plan: Plan) -> list[Event]:
    expected = source.count()
    if writer.epoch == 0:
        return writer.record([RunStarted(expected=expected, **writer.charged)])
    graph = graph_of(plan, writer.added)
    changed = graph if graph != writer.state.graph else None
    found = writer.reopened
    resumed = RunResumed(
        fingerprint=plan.fingerprint,
        expected=expected,
        graph=changed,
        input=found.input,
        limit=found.limit,
        records=found.records,
        **writer.charged,
        accept=found.accept,
    )
    return writer.record([resumed])


def _try_to_pause(writer: RunWriter, error: BaseException) -> list[Event]:
    try:
        if isinstance(error, RunCancelled):
            return writer.cancel()
        return writer.pause(_reason(error), error.flags if isinstance(error, BudgetSpent) else ())
    except ChainetteError:  # the disk that stopped the run does not take the note either
        return []


def _tell(hook: Hook, events: Iterable[Event]) -> None:
    for event in events:
        hook.on_event(event)


def roots_of(plan: Plan, source: InputFile, options: RunOptions, starts: Sequence[tuple[int, int]] = ((0, 0),)) -> Roots:
    """The roots of an input; `starts` as `RunState` has them."""
    return Roots(source, InputModel(plan.input_model, options.key, Renaming(options.filled_from)), plan.batch_size, starts)


@asynccontextmanager
async def local_run(
    plan: Plan,
    pending: Callable[[], Iterator[Root]],
    writer: Writer,
    options: RunOptions,
    sources: AnswerSources | None,
    deliver: Deliver | None = None,
) -> AsyncIterator[LocalRun]:
    """A LocalRun with its engines, and with the answers of earlier runs; on the way out engines are closed and finished work
    is made durable."""
    from chainette.run.scheduler import LocalRun

    def loaded(config: EngineConfig, engine: Any, seconds: float) -> None:
        local.post(EngineLoaded.of(config, engine, seconds))

    def released(config: EngineConfig) -> None:
        local.post(EngineReleased(engine=config.name))

    create = partial(create_engine, patience=options.engine_patience)
    engines = Engines(plan.engines, on_loaded=loaded, on_released=released, create=create)
    async with open_answers(sources) as stored:
        hook, limits = Hooks(options.hooks), options.limits
        local = LocalRun(plan, pending, writer, engines, options.seed, limits, hook, deliver, stored)
        try:
            async with engines:
                yield local
        finally:
            with anyio.CancelScope(shield=True):
                await local.sink.flush()
