"""From a chain and its options to a run: a fresh directory, one that is resumed, or none at all."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread

from chainette.core.chain import Chain, Inputs
from chainette.core.compile import compile_chain
from chainette.core.loading import load_chain
from chainette.core.plan import NodeKind, Plan
from chainette.engine.config import EngineConfig, EngineRegistry, overlaid
from chainette.engine.lifecycle import Engines, create_engine
from chainette.errors import ChainChanged, ChainetteError, InputError, RunCancelled, RunDirectoryError
from chainette.hooks import Hook, Hooks
from chainette.io.events import EngineLoaded, EngineReleased, Event, RunCreated, RunResumed, RunStarted
from chainette.io.fork import Reopen, affected_by, finish_swap, fork, starts_of
from chainette.io.inputs import open_input
from chainette.io.readers import InputFile
from chainette.io.replay import RunState, Status
from chainette.io.result import RunResult
from chainette.io.roots import Roots
from chainette.io.rundir import RunDir
from chainette.io.session import (
    changed_nodes,
    claim_directory,
    create,
    git_commit,
    graph_of,
    read_state,
    recover,
    removed_nodes,
    versions,
)
from chainette.io.spool import spool
from chainette.io.validate import InputModel, object_names
from chainette.io.writer import RunWriter, Scratch, tidy
from chainette.local import LocalRun, Writer
from chainette.options import Drive, RunOptions
from chainette.records import Row
from chainette.utils.ids import new_run_id

__all__ = ["Deliver", "Observed", "Session", "compile_plan", "iterate", "observe", "resume", "retry", "start"]

#: Records of a JSONL input that are looked at for the key column.
_KEY_SAMPLE = 100

#: Takes the finished rows of one root; may wait.
Deliver = Callable[[list[Row]], Awaitable[None]]


@dataclass(frozen=True)
class Session:
    """An open directory whose units somebody else moves."""

    plan: Plan
    source: InputFile
    writer: RunWriter
    options: RunOptions
    hook: Hook

    def finish(self) -> None:
        """Says in the log that every row is in its place; once, however often it is called."""
        if self.writer.state.status is not Status.FINISHED:
            _tell(self.hook, self.writer.finish(self.source.digest()))


@dataclass(frozen=True)
class Observed:
    """A directory as it is at one moment, in other hands."""

    plan: Plan
    source: InputFile
    state: RunState
    options: RunOptions


async def start(
    chain: Chain, inputs: Inputs, output_dir: str | os.PathLike[str] | None, options: RunOptions, deliver: Deliver | None = None
) -> RunResult:
    """Runs a chain into a directory of its own, or goes on with it where `options.resume` says so."""
    run_id = options.run_id or new_run_id()
    directory = RunDir(output_dir or Path("runs") / run_id)
    if options.resume and directory.exists():
        return await resume(directory, chain, options)
    plan = compile_plan(chain, options)
    writer, source = await anyio.to_thread.run_sync(_begin, directory, run_id, plan, inputs, options)
    return await _drive(plan, source, writer, options, deliver)


async def iterate(
    chain: Chain,
    inputs: Inputs,
    output_dir: str | os.PathLike[str] | None,
    options: RunOptions,
    deliver: Deliver | None = None,
) -> None:
    """Delivers finished rows; writes nothing unless there is a directory."""
    if output_dir is not None:
        await start(chain, inputs, output_dir, options, deliver)
        return
    plan = compile_plan(chain, options)
    with tempfile.TemporaryDirectory(prefix="chainette-") as folder:
        source = await anyio.to_thread.run_sync(_open_or_spool, inputs, Path(folder), options)
        async with _local(plan, source, Scratch(plan), lambda _: False, options, Hooks(options.hooks), deliver) as local:
            await local.run()


def compile_plan(chain: Chain, options: RunOptions) -> Plan:
    """The chain as the options say: with engines of a file, simulated, in roots of another size."""
    return compile_chain(chain, registry=_registry(chain, options), simulate=options.simulate, batch_size=options.batch_size)


def _registry(chain: Chain, options: RunOptions) -> EngineRegistry:
    return overlaid(chain.registry, options.engines_file) if options.engines_file else chain.registry


def _begin(directory: RunDir, run_id: str, plan: Plan, inputs: Inputs, options: RunOptions) -> tuple[RunWriter, InputFile]:
    """Checks the input, then takes the directory, so that a mistyped path leaves nothing behind."""
    source = _open_file(inputs, options)
    log = claim_directory(directory)
    try:
        source = source or _open_or_spool(inputs, directory.inputs, options)
        created = RunCreated(
            run_id=run_id,
            chain=plan.chain,
            chain_ref=options.chain_ref,
            chain_root=options.chain_root,
            graph=graph_of(plan, keyed=options.key is not None),
            settings=options.settings | {"batch_size": plan.batch_size},
            input=source.identity(),
            versions=versions(),
            git=git_commit(Path(options.chain_root or ".")),
        )
        return create(directory, log, plan, created), source
    except BaseException:
        log.close()
        raise


def _open_file(inputs: Inputs, options: RunOptions) -> InputFile | None:
    """The input where it is a file of the user's."""
    if not isinstance(inputs, str | os.PathLike) or inputs == "-":
        return None
    return _with_key(open_input(Path(inputs), limit=options.limit), options.key)


def _open_or_spool(inputs: Inputs, folder: Path, options: RunOptions) -> InputFile:
    """The input; standard input and rows of Python's go to a file in `folder` first."""
    found = _open_file(inputs, options)
    if found is not None:
        return found
    rows: Any = sys.stdin.buffer if inputs == "-" else inputs
    return _with_key(open_input(spool(rows, folder / "0"), limit=options.limit), options.key)


def _with_key(source: InputFile, key: str | None) -> InputFile:
    """The input, if it has the key column; of JSONL the first records are looked at.

    Raises:
        InputError: it has not.
    """
    if key is None:
        return source
    columns = source.columns()
    if columns is None:
        records = [record.data for record in islice(source.records(), _KEY_SAMPLE) if isinstance(record.data, bytes)]
        columns = sorted({name for data in records for name in object_names(data)})
    if columns and key not in columns:
        raise InputError(f"--key {key!r}: the input has no such column; it has {', '.join(columns)}")
    return source


async def resume(directory: RunDir, chain: Chain | None, options: RunOptions, from_steps: Sequence[str] = ()) -> RunResult:
    """See `executor.resume`."""
    state, plan, options = await anyio.to_thread.run_sync(_reopen, directory, chain, options)
    if from_steps:
        await anyio.to_thread.run_sync(_fork_from, directory, plan, state, from_steps)
        state, _ = await anyio.to_thread.run_sync(read_state, directory)
        return await _continue(directory, plan, state, options)
    _require_unchanged(directory, state, plan)
    if state.status is Status.FINISHED:
        await anyio.to_thread.run_sync(tidy, directory, state)
        return RunResult(directory, state, plan)
    return await _continue(directory, plan, state, options)


async def _continue(directory: RunDir, plan: Plan, state: RunState, options: RunOptions) -> RunResult:
    source = await anyio.to_thread.run_sync(_same_input, directory, state, options)
    attaches = options.drive is not None and options.drive.attaches
    writer = await anyio.to_thread.run_sync(partial(recover, directory, plan, new_epoch=not attaches))
    return await _drive(plan, source, writer, options)


def _reopen(directory: RunDir, chain: Chain | None, options: RunOptions) -> tuple[RunState, Plan, RunOptions]:
    finish_swap(directory)
    state, _ = read_state(directory)
    options = _recorded(state, options)
    return state, compile_plan(chain or _load(directory, state), options), options


def _require_unchanged(directory: RunDir, state: RunState, plan: Plan) -> None:
    """Raises ChainChanged unless every row of the directory is what the plan would make."""
    _require_same_chain(directory, state, plan)
    changed, removed = changed_nodes(state, plan), removed_nodes(state, plan)
    if changed or removed:
        found = ", ".join([*changed, *(f"{node} is gone (its rows would be dropped)" for node in removed)])
        starts = starts_of(plan, changed) or list(plan.nodes)[-1:]
        raise ChainChanged(
            f"{directory}: the chain has changed since its rows were written: {found}. "
            f"To compute {' and '.join(starts)} and all that follow anew: `chainette resume {directory} {_from(starts)}`"
        )


def _require_same_chain(directory: RunDir, state: RunState, plan: Plan) -> None:
    """Raises ChainChanged where the plan has none of the nodes that the directory was made with."""
    recorded = removed_nodes(state, plan)
    if len(recorded) == len(state.graph["nodes"]):
        raise ChainChanged(
            f"{directory} is of another chain: it has rows of {state.run.chain!r} ({', '.join(recorded)}), the chain now is "
            f"{plan.chain!r} ({', '.join(plan.nodes)}); put the old chain back, or name another directory for a new run"
        )


def _require_nodes(plan: Plan, names: Iterable[str]) -> None:
    for name in names:
        if name not in plan.nodes:
            raise RunDirectoryError(f"the chain has no step {name!r}; it has {', '.join(plan.nodes)}")


def _from(steps: Iterable[str]) -> str:
    return " ".join(f"--from {step}" for step in steps)


def _fork_from(directory: RunDir, plan: Plan, state: RunState, steps: Sequence[str]) -> None:
    """Takes back the rows of steps and of everything that depends on them."""
    _require_same_chain(directory, state, plan)
    _require_nodes(plan, steps)
    affected = affected_by(plan, steps)
    missed = [node for node in changed_nodes(state, plan) if node not in affected]
    if missed:
        raise ChainChanged(
            f"{directory}: {', '.join(missed)} changed too and does not depend on {', '.join(steps)}; "
            f"use `{_from(starts_of(plan, [*steps, *missed]))}`"
        )
    _same_input(directory, state, RunOptions(limit=state.run.settings["limit"]))
    fork(directory, plan, state, Reopen(nodes=affected))


async def retry(
    directory: RunDir,
    chain: Chain | None,
    options: RunOptions,
    steps: frozenset[str],
    reasons: frozenset[str],
    engine: str | None,
) -> RunResult:
    """See `executor.retry_rejected`."""
    state, plan, options = await anyio.to_thread.run_sync(_reopen, directory, chain, options)
    _require_unchanged(directory, state, plan)
    _require_nodes(plan, sorted(steps))

    def matches(step: str, reason: str) -> bool:
        return (not steps or step in steps) and (not reasons or reason in reasons)

    if not any(
        matches(step, reason) for step, counts in state.nodes.items() if step in plan.nodes for reason in counts.reasons
    ):
        raise RunDirectoryError(f"{directory} has no rejected rows that match; `chainette rejected {directory}` lists them")
    if engine is not None:
        plan = _with_engine(plan, _registry(chain or _load(directory, state), options), engine, steps)
    _same_input(directory, state, options)
    await anyio.to_thread.run_sync(fork, directory, plan, state, Reopen(rejection=matches))
    state, _ = await anyio.to_thread.run_sync(read_state, directory)
    return await _continue(directory, plan, state, options)


def _with_engine(plan: Plan, registry: EngineRegistry, engine: str, steps: frozenset[str]) -> Plan:
    """The plan with another engine behind its steps, for one session."""
    nodes = {
        node.id: replace(node, engine=engine) if node.kind is NodeKind.STEP and (not steps or node.id in steps) else node
        for node in plan.nodes.values()
    }
    return replace(plan, nodes=nodes, engines={**plan.engines, engine: registry.get(engine)})


def _recorded(state: RunState, options: RunOptions) -> RunOptions:
    """The options of this session with everything that the log fixes."""
    fields = RunOptions.__dataclass_fields__
    fixed = {name: value for name, value in state.run.settings.items() if name in fields}
    return replace(options, **fixed, chain_ref=state.run.chain_ref, chain_root=state.run.chain_root)


def _load(directory: RunDir, state: RunState) -> Chain:
    run = state.run
    if not run.chain_ref:
        raise RunDirectoryError(
            f"{directory} comes from a chain built in Python; resume there: chain.run(inputs, {str(directory)!r}, resume=True)"
        )
    return load_chain(run.chain_ref, Path(run.chain_root)).chain


def observe(directory: RunDir, chain: Chain, inputs: Path) -> Observed:
    """What is needed to admit the rows of a run whose directory somebody else writes. Reads only.

    Raises:
        RunDirectoryError: there is no run.
        ChainChanged: the chain is not the one that the directory is written with.
        InputError: the input is gone, or it is not the one that the run began with.
    """
    state, _ = read_state(directory)
    options = _recorded(state, RunOptions())
    plan = compile_plan(chain, options)
    _require_unchanged(directory, state, plan)
    return Observed(plan, _same_input(directory, state, options, inputs), state, options)


def _same_input(directory: RunDir, state: RunState, options: RunOptions, path: Path | None = None) -> InputFile:
    """The input of the run, at its path or at another one.

    Raises:
        InputError: it is gone, or it has changed.
    """
    recorded = state.run.input
    source = open_input(path or Path(recorded["path"]), limit=options.limit)
    found = source.identity()
    if found["size"] != recorded["size"] or found["sample"] != recorded["sample"]:
        raise InputError(
            f"{recorded['path']} has changed since the run in {directory} began "
            f"({recorded['size']:,} bytes then, {found['size']:,} now); put the old file back, or begin a new run"
        )
    return source


async def _drive(
    plan: Plan, source: InputFile, writer: RunWriter, options: RunOptions, deliver: Deliver | None = None
) -> RunResult:
    """Moves a directory's run to its end, or to a point where it can be resumed."""
    hook = Hooks(options.hooks)
    session = Session(plan, source, writer, options, hook)
    try:
        if options.drive is not None:
            await _in_thread(options.drive, session)
        else:
            _tell(hook, await anyio.to_thread.run_sync(_announce, writer, source, plan))
            async with _local(plan, source, writer, writer.state.is_done, options, hook, deliver) as local:
                await local.run()
        await anyio.to_thread.run_sync(session.finish)
        return RunResult(writer.directory, writer.state, plan)
    except BaseException as error:
        with anyio.CancelScope(shield=True):
            _tell(hook, await anyio.to_thread.run_sync(_try_to_pause, writer, error))
        raise
    finally:
        writer.close()


async def _in_thread(drive: Drive, session: Session) -> None:
    """Waits for the drive's end also where it is cancelled: it looks for that itself, and has workers to end.

    Ctrl-C cancels the task and not its scope, which neither holds the wait nor reaches the thread; a task group turns
    the one into the other.
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


def _announce(writer: RunWriter, source: InputFile, plan: Plan) -> list[Event]:
    expected = source.count()
    if writer.epoch == 0:
        return writer.record([RunStarted(expected=expected)])
    graph = graph_of(plan, keyed=writer.keyed)
    changed = graph if graph != writer.state.graph else None
    return writer.record([RunResumed(fingerprint=plan.fingerprint, expected=expected, graph=changed)])


def _try_to_pause(writer: RunWriter, error: BaseException) -> list[Event]:
    try:
        return writer.cancel() if isinstance(error, RunCancelled) else writer.pause(_reason(error))
    except ChainetteError:  # the disk that stopped the run does not take the note either
        return []


def _tell(hook: Hook, events: Iterable[Event]) -> None:
    for event in events:
        hook.on_event(event)


@asynccontextmanager
async def _local(
    plan: Plan,
    source: InputFile,
    writer: Writer,
    is_done: Callable[[int], bool],
    options: RunOptions,
    hook: Hook,
    deliver: Deliver | None,
) -> AsyncIterator[LocalRun]:
    """A LocalRun with its engines; on the way out engines are closed and finished work is made durable."""
    roots = Roots(source, InputModel(plan.input_model, options.key), plan.batch_size)

    def loaded(config: EngineConfig, engine: Any, seconds: float) -> None:
        local.post(EngineLoaded.of(config, engine, seconds))

    def released(config: EngineConfig) -> None:
        local.post(EngineReleased(engine=config.name))

    create = partial(create_engine, patience=options.engine_patience)
    engines = Engines(plan.engines, on_loaded=loaded, on_released=released, create=create)
    local = LocalRun(plan, lambda: roots.pending(is_done), writer, engines, options.seed, options.limits, hook, deliver)
    try:
        async with engines:
            yield local
    finally:
        with anyio.CancelScope(shield=True):
            rest = local.take_inbox()
            if rest and not local.torn:
                _tell(hook, (await anyio.to_thread.run_sync(writer.commit, rest)).events)
