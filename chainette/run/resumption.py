"""Resumes a run in an existing directory, and recomputes some of its rows."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import anyio.to_thread
import msgspec

from chainette.core.chain import Chain
from chainette.core.plan import Plan
from chainette.core.plan_node import NodeKind
from chainette.core.usercode.confined import ChainClaim, require_recorded
from chainette.core.usercode.loading import LoadedChain, load_chain
from chainette.core.usercode.parameters import given, text_of
from chainette.engine.budget import engine_limits
from chainette.engine.config import EngineRegistry
from chainette.errors import DamagedRun, InputError, RunDirectoryError, RunDirectoryInUse, RunError
from chainette.io.rundir.chain_changes import FLATTENED
from chainette.io.rundir.dependents import starts_of
from chainette.io.rundir.directory_swap import remove_leftovers
from chainette.io.rundir.durable_rows import ShardReader
from chainette.io.rundir.event_log import EventLog
from chainette.io.rundir.folder_rows import require_content
from chainette.io.rundir.fork import Reopen, fork
from chainette.io.rundir.logged_paths import placed_input
from chainette.io.rundir.open import read_state, recover
from chainette.io.rundir.origin import require_no_links
from chainette.io.rundir.paths import RunDir
from chainette.io.rundir.result import RunResult
from chainette.io.rundir.run_state import RunState, Status
from chainette.io.rundir.writer import Reopened, tidy
from chainette.run.options import RunOptions
from chainette.run.planning import compile_plan, registry_of
from chainette.run.recorded_options import recorded_options, wanted_of
from chainette.run.resumed_input import lengthened_input, resumed_input
from chainette.run.retried_rejections import Rejections
from chainette.run.same_chain import require_unchanged, taken_back, tell_rescues, way_to_recompute
from chainette.run.selected_rows import REJECTED, require_nodes, selection_of
from chainette.run.session import check_drive, finish_run
from chainette.utils.plurals import counted

__all__ = ["compiled_now", "resume", "retry"]

_log = logging.getLogger("chainette")


async def resume(
    directory: RunDir, chain: Chain | Plan | None, options: RunOptions, from_steps: Sequence[str] = ()
) -> RunResult:
    """See `executor.resume`."""
    state, plan, options, _ = await anyio.to_thread.run_sync(_reopen, directory, chain, options)
    words = [*(f"{step}+" for step in from_steps), *options.select]
    chosen = await anyio.to_thread.run_sync(selection_of, words, plan, state)
    if words and options.more:
        raise InputError("--more appends to the run as it is, --select recomputes rows; give one after the other")
    if chosen.steps:
        nodes = await anyio.to_thread.run_sync(taken_back, directory, plan, state, chosen.steps)
        reopen = Reopen(nodes=nodes)
        if chosen.rejected:
            every = await anyio.to_thread.run_sync(Rejections().without_final, directory, plan, state)
            reopen = replace(reopen, rejection=every.includes)
        return await _open_again(directory, plan, state, options, reopen)
    if chosen.rejected:
        return await _retry(directory, plan, state, options, Rejections())
    if words:
        _log.warning("%s: nothing has changed since its rows were written, so none is recomputed", directory)
    require_unchanged(directory, state, plan)
    tell_rescues(directory, state, plan)
    if options.more:
        _require_at_its_end(directory, state)
    elif state.status is Status.FINISHED and (options.limit, options.accept) == (state.limit, wanted_of(state)):
        return await anyio.to_thread.run_sync(_finished, directory, state, options)
    await check_drive(plan, options, state.bill.rates)
    if state.status is not Status.FINISHED and (state.ended or state.roots.broken or state.shards.holes):
        state = await anyio.to_thread.run_sync(_mend, directory, plan, state)
    return await _continue(directory, plan, state, options)


def _mend(directory: RunDir, plan: Plan, state: RunState) -> RunState:
    """If a run was called finished too early, makes the roots pending again whose rows do not add up.

    Raises:
        DamagedRun: the disk has rows that the log does not mention.
        RunDirectoryError: rows that are needed again were deleted at that time.
    """
    folders = {file.rpartition("/")[0].removeprefix(".held/") for file in state.shards.holes}
    if doubtful := [node.id for node in plan.nodes.values() if node.folder in folders]:
        raise DamagedRun(
            f"{directory}: lines of the log are missing: {'; '.join(state.shards.holes.values())}. "
            f"{way_to_recompute(directory, starts_of(plan, doubtful))}"
        )
    fork(directory, plan, state, Reopen(roots=frozenset(state.roots.broken)))
    return read_state(directory)[0]


async def _continue(directory: RunDir, plan: Plan, state: RunState, options: RunOptions) -> RunResult:
    source, equal = await anyio.to_thread.run_sync(resumed_input, directory, state, options)
    if options.more or (options.limit != state.limit and "rest" in source.origin):
        source = await anyio.to_thread.run_sync(lengthened_input, source, directory, state, options)
    identity = placed_input(source.identity(), directory, options.chain_root)
    limit = options.limit if options.limit != state.limit else None
    accept = options.accept if options.accept != wanted_of(state) else None
    records = state.total if options.more else None
    reopened = Reopened(identity if identity != state.input else None, limit, records, accept)
    # units in a queue are of the file before it was touched, and end at the old limit; with `accept`, roots may wait in memory
    charged = options.budget == state.budget and engine_limits(plan.engines) == state.engine_budgets
    same = equal and not reopened.is_longer and charged and state.accepted is None
    attaches = options.drive is not None and options.drive.attaches and same
    writer = await anyio.to_thread.run_sync(partial(recover, directory, plan, state, new_epoch=not attaches))
    writer.reopened = reopened
    return await finish_run(plan, source, writer, options)


def _require_at_its_end(directory: RunDir, state: RunState) -> None:
    """Raises RunDirectoryError unless a run has taken its whole input, so that files can be appended to it."""
    if state.status is not Status.FINISHED or state.total is None:
        raise RunDirectoryError(
            f"{directory}: --more appends to a finished run, and this one is not: `chainette resume {directory}`"
        )
    if state.limit is not None:
        raise RunDirectoryError(
            f"{directory}: the run takes {counted(state.limit, 'record')} (--limit), so nothing can follow its input; "
            f"ask only for what is new in another directory: `chainette run CHAIN INPUTS --reuse {directory} -o NEW`"
        )


def _reopen(
    directory: RunDir, chain: Chain | Plan | None, options: RunOptions
) -> tuple[RunState, Plan, RunOptions, Chain | Plan]:
    state, _ = read_state(directory)
    options = recorded_options(directory, state, options)
    if chain is None:
        loaded = _load(directory, state, options)
        chain, options = loaded.chain, replace(options, chain_claim=loaded.claim, parameters=loaded.parameters)
    elif isinstance(chain, Plan):
        options = replace(options, parameters=chain.parameters)
    else:
        options = replace(options, parameters=state.parameters | {**options.parameters})
    plan = compile_plan(chain, options)
    _refuse_old_ids(directory, plan, state)
    return state, plan, options, chain


def compiled_now(directory: RunDir, parameters: Mapping[str, str]) -> tuple[ChainClaim, Plan]:
    """The files and the plan of a directory's chain as they are now."""
    _, plan, options, _ = _reopen(directory, None, RunOptions(parameters=parameters))
    assert options.chain_claim is not None
    return options.chain_claim, plan


def _refuse_old_ids(directory: RunDir, plan: Plan, state: RunState) -> None:
    """Raises RunDirectoryError if expanded rows are named `7.0`: their children would be named otherwise."""
    old = next((row_id for row_id in ShardReader(directory, plan, state).first_ids() if "." in row_id), None)
    if old is not None:
        raise RunDirectoryError(
            f"{directory} was written by an older Chainette: it names rows like {old}, which is now {old.replace('.', '~')}. "
            f"Its files can still be read, but it cannot be resumed; begin a new run in another directory"
        )


def _finished(directory: RunDir, state: RunState, options: RunOptions) -> RunResult:
    """The result of a run that has nothing left to do, with the leftovers of a crash removed."""
    require_content(directory, state)
    require_no_links(directory)
    with suppress(RunDirectoryInUse), closing(EventLog(directory.log)):  # else somebody forks it now
        remove_leftovers(directory)
    tidy(directory, state)
    if options.drive is not None:
        with suppress(RunError):  # a finished run needs nobody
            options.drive.clean(state.run.run_id)
    return RunResult(directory, state)


async def _open_again(directory: RunDir, plan: Plan, state: RunState, options: RunOptions, reopen: Reopen) -> RunResult:
    """Takes results back, and goes on."""
    if state.status is not Status.FINISHED or reopen.nodes != {FLATTENED}:  # else nothing is asked
        await check_drive(plan, options, state.bill.rates)
    await anyio.to_thread.run_sync(resumed_input, directory, state, options)
    await anyio.to_thread.run_sync(fork, directory, plan, state, reopen)
    state, _ = await anyio.to_thread.run_sync(read_state, directory)
    return await _continue(directory, plan, state, options)


async def retry(
    directory: RunDir,
    chain: Chain | None,
    options: RunOptions,
    steps: frozenset[str],
    reasons: frozenset[str],
    engine: str | None,
) -> RunResult:
    """See `executor.retry_rejected`."""
    state, plan, options, found = await anyio.to_thread.run_sync(_reopen, directory, chain, options)
    asked = None
    if engine is not None:
        assert isinstance(found, Chain)
        asked = _with_engine(plan, registry_of(found, options.engines_file), engine, steps)
    return await _retry(directory, plan, state, options, Rejections(steps, reasons), asked)


async def _retry(
    directory: RunDir, plan: Plan, state: RunState, options: RunOptions, chosen: Rejections, asked: Plan | None = None
) -> RunResult:
    """Opens rejected rows again. `asked`: the plan with another engine, for this session."""
    require_unchanged(directory, state, plan, chosen.asked_alone(directory, state))
    require_nodes(plan, sorted(chosen.steps))
    chosen = await anyio.to_thread.run_sync(chosen.without_final, directory, plan, state)
    chosen.require_some(directory, plan, state)
    reuse = _still_there(options.reuse)
    options = replace(options, reuse=reuse, no_reuse=options.no_reuse if reuse else ())
    reopen = Reopen(rejection=chosen.includes, tells_engine=asked is not None)
    if reopen.tells_engine and (kind := state.run.settings["format"]) != "jsonl":
        _log.warning("%s: its %s shards have no column _engine, so rows do not tell which engine answered", directory, kind)
    await anyio.to_thread.run_sync(_drop_other_plan, directory)
    return await _open_again(directory, asked or plan, state, options, reopen)


def _drop_other_plan(directory: RunDir) -> None:
    """Drops a plan of anything else than a retry, so that the end of one is not compared with it."""
    if directory.estimate.exists() and REJECTED not in msgspec.json.decode(directory.estimate.read_bytes())["select"]:
        directory.estimate.unlink()


def _still_there(directories: Sequence[str]) -> tuple[str, ...]:
    """The earlier runs that are still where they were; rejected rows can be asked for without the others."""
    found = tuple(directory for directory in directories if RunDir(directory).exists())
    for lost in (directory for directory in directories if directory not in found):
        _log.warning("--reuse %s: there is no longer a run in it; nothing is taken from it", lost)
    return found


def _with_engine(plan: Plan, registry: EngineRegistry, engine: str, steps: frozenset[str]) -> Plan:
    """The plan with another engine for its steps, for one session."""
    nodes = {
        node.id: replace(node, engine=engine, escalate=(), instead_of=node.engine)
        if node.kind is NodeKind.STEP and (not steps or node.node.id in steps)
        else node
        for node in plan.nodes.values()
    }
    return replace(plan, nodes=nodes, engines={**plan.engines, engine: registry.get(engine)})


def _load(directory: RunDir, state: RunState, options: RunOptions) -> LoadedChain:
    """The chain with the parameters of the log, except those that this session changes."""
    run = state.run
    if not run.chain_ref:
        raise RunDirectoryError(
            f"{directory} comes from a chain built in Python; resume there, with the same parameters if a function makes it: "
            f"chain.run(inputs, {str(directory)!r}, resume=True)"
        )
    texts = {name: text_of(value) for name, value in options.parameters.items()}
    require_recorded(run.chain_ref, run.settings.get("engines_file"), Path(options.chain_root))
    return load_chain(run.chain_ref, Path(options.chain_root), given(texts, state.parameters))
