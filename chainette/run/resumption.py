"""A run directory that is there already: going on with it, computing some of it anew, looking at it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import anyio.to_thread

from chainette.core.chain import Chain
from chainette.core.plan import Plan
from chainette.core.plan_node import NodeKind
from chainette.core.run_settings import FLAGS, RECORDED, RESUMABLE, RunSettings
from chainette.core.usercode.confined import ChainClaim, require_recorded
from chainette.core.usercode.loading import LoadedChain, load_chain
from chainette.core.usercode.parameters import given, set_flags, text_of
from chainette.engine.budget import engine_limits, merged
from chainette.engine.config import EngineRegistry
from chainette.errors import ChainChanged, DamagedRun, InputError, RunDirectoryError, RunDirectoryInUse, RunError
from chainette.io.inputs.growing_file import GrowingFile, RowSource
from chainette.io.inputs.hub import HubRows, is_hub
from chainette.io.inputs.locate import open_growing, open_input
from chainette.io.inputs.readers import InputFile
from chainette.io.inputs.same_input import require_same_input
from chainette.io.rundir.changes import FLATTENED, rescues_between
from chainette.io.rundir.dependents import affected_by, lost_nodes, starts_of
from chainette.io.rundir.directory_swap import remove_leftovers
from chainette.io.rundir.fork import Reopen, fork
from chainette.io.rundir.log import EventLog
from chainette.io.rundir.logged_paths import chain_root_of, input_paths, placed_input
from chainette.io.rundir.open import again_in_python, read_state, recover
from chainette.io.rundir.origin import require_no_links
from chainette.io.rundir.paths import RunDir
from chainette.io.rundir.plan_graph import graph_of
from chainette.io.rundir.readback import ShardReader
from chainette.io.rundir.reading import require_content
from chainette.io.rundir.result import RunResult
from chainette.io.rundir.run_state import RunState, Status
from chainette.io.rundir.writer import Reopened, tidy
from chainette.records import CHAIN_INPUT, Read, Reason
from chainette.run.options import RunOptions
from chainette.run.planning import compile_plan, registry_of
from chainette.run.selection import changes_since, require_nodes, selection_of, stale_starts
from chainette.run.session import check_drive, finish_run

__all__ = [
    "Observed",
    "Rejections",
    "changed_parameters",
    "compiled_now",
    "observe",
    "require_accept",
    "require_limit",
    "resume",
    "retry",
    "reused_by",
    "taken_back",
]

_log = logging.getLogger("chainette")


@dataclass(frozen=True)
class Observed:
    """A directory as it is at one moment, in other hands."""

    plan: Plan
    source: InputFile
    state: RunState
    options: RunOptions


async def resume(
    directory: RunDir, chain: Chain | Plan | None, options: RunOptions, from_steps: Sequence[str] = ()
) -> RunResult:
    """See `executor.resume`."""
    state, plan, options, _ = await anyio.to_thread.run_sync(_reopen, directory, chain, options)
    words = [*(f"{step}+" for step in from_steps), *options.select]
    chosen = await anyio.to_thread.run_sync(selection_of, words, plan, state)
    if words and options.more:
        raise InputError("--more appends to the run as it is, --select computes rows anew; give one after the other")
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
        _log.warning("%s: nothing has changed since its rows were written, so none is computed anew", directory)
    _require_unchanged(directory, state, plan)
    _tell_rescues(directory, state, plan)
    if options.more:
        _require_at_its_end(directory, state)
    elif state.status is Status.FINISHED and (options.limit, options.accept) == (state.limit, wanted_of(state)):
        await anyio.to_thread.run_sync(require_content, directory, state)
        await anyio.to_thread.run_sync(_tidy, directory, state)
        if options.drive is not None:
            with suppress(RunError):  # a finished run needs nobody
                await anyio.to_thread.run_sync(options.drive.clean, state.run.run_id)
        return RunResult(directory, state)
    await check_drive(plan, options, state.bill.rates)
    if state.status is not Status.FINISHED and (state.ended or state.broken or state.holes):
        state = await anyio.to_thread.run_sync(_mend, directory, plan, state)
    return await _continue(directory, plan, state, options)


def _mend(directory: RunDir, plan: Plan, state: RunState) -> RunState:
    """Makes roots pending again whose rows do not add up, in a run that called itself finished too early.

    Raises:
        DamagedRun: the disk has rows that the log does not speak of.
        RunDirectoryError: rows that are needed again were deleted when it did.
    """
    folders = {file.rpartition("/")[0].removeprefix(".held/") for file in state.holes}
    if doubtful := [node.id for node in plan.nodes.values() if node.folder in folders]:
        raise DamagedRun(
            f"{directory}: lines of the log are missing: {'; '.join(state.holes.values())}. "
            f"{_what_is_done(starts_of(plan, doubtful))}: `chainette resume {directory} {_from(starts_of(plan, doubtful))}`"
        )
    fork(directory, plan, state, Reopen(roots=frozenset(state.broken)))
    return read_state(directory)[0]


async def _continue(directory: RunDir, plan: Plan, state: RunState, options: RunOptions) -> RunResult:
    source, equal = await anyio.to_thread.run_sync(_same_input, directory, state, options)
    if options.more:
        known = options.inputs or input_paths(state.input, directory, Path(options.chain_root))
        source = await anyio.to_thread.run_sync(open_input, [*known, *options.more])
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
            f"{directory}: the run takes the first {state.limit:,} records (--limit), so nothing can follow its input; "
            f"ask only for what is new in another directory: `chainette run CHAIN INPUTS --reuse {directory} -o NEW`"
        )


def _reopen(
    directory: RunDir, chain: Chain | Plan | None, options: RunOptions
) -> tuple[RunState, Plan, RunOptions, Chain | Plan]:
    state, _ = read_state(directory)
    options = _recorded(directory, state, options)
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


def _tidy(directory: RunDir, state: RunState) -> None:
    require_no_links(directory)
    with suppress(RunDirectoryInUse), closing(EventLog(directory.log)):  # else somebody forks it now
        remove_leftovers(directory)
    tidy(directory, state)


def _require_unchanged(directory: RunDir, state: RunState, plan: Plan) -> None:
    """Raises ChainChanged unless the plan would make every row and file of the directory as they are."""
    _require_same_chain(directory, state, plan)
    _require_engine_column(directory, state, plan)
    changes = changes_since(state, plan)
    if changes is None:
        return
    starts = stale_starts(plan, state, changes)
    raise ChainChanged(
        f"{directory}: the chain has changed since its rows were written: {', '.join(changes.sentences)}. "
        f"{_what_is_done(starts)}: `chainette resume {directory} {_sets(state, plan)}{_from(starts)}`"
        f"{again_in_python(directory, state.run, starts)}"
    )


def _require_engine_column(directory: RunDir, state: RunState, plan: Plan) -> None:
    """Raises ChainChanged if a step has `escalate` now, and shards whose fixed columns lack `_engine`."""
    recorded = state.graph.by_id
    added = [node.id for node in plan.nodes.values() if node.told_engine and node.id in recorded]
    lacking = [node for node in added if not recorded[node].escalate and state.node(node).taken]
    if lacking and (kind := state.run.settings["format"]) != "jsonl":
        steps = " and ".join(lacking)
        raise ChainChanged(
            f"{directory}: {steps} has `escalate` now, but its {kind} shards have no column `_engine`; a run in jsonl takes "
            f"it. To compute {steps} anew: `chainette resume {directory} {_sets(state, plan)}{_from(lacking)}`"
        )


def _tell_rescues(directory: RunDir, state: RunState, plan: Plan) -> None:
    """Says which rows a raised setting concerns."""
    for node, words in rescues_between(state.graph, graph_of(plan)):
        rejected = state.nodes[node].rejected if node in state.nodes else 0
        waiting = f"; {rejected:,} rejected rows wait for `chainette rejected {directory} --retry`" if rejected else ""
        _log.warning("%s: rows still to be asked use it%s", words, waiting)


def _what_is_done(starts: Sequence[str]) -> str:
    if starts == [CHAIN_INPUT]:
        return "To read the input and compute every row anew"
    if starts == [FLATTENED]:
        return "To keep every row, and put flattened together as the chain is now"
    return f"To compute {' and '.join(starts)} and all that follow anew"


def _require_same_chain(directory: RunDir, state: RunState, plan: Plan) -> None:
    """Raises ChainChanged if the plan has none of the nodes the directory was made with."""
    recorded = [node.id for node in state.graph.nodes]
    if not plan.nodes.keys() & {*recorded}:
        raise ChainChanged(
            f"{directory} is of another chain: it has rows of {state.run.chain!r} ({', '.join(recorded)}), the chain now is "
            f"{plan.chain!r} ({', '.join(plan.nodes)}); put the old chain back, or name another directory for a new run"
        )


def _sets(state: RunState, plan: Plan) -> str:
    """The --set flags of parameters that differ from those in the log."""
    changed = changed_parameters(state, plan)
    return f"{set_flags(changed)} " if changed else ""


def changed_parameters(state: RunState, plan: Plan) -> dict[str, Any]:
    """The parameters that differ from those in the log."""
    return {name: value for name, value in plan.parameters.items() if state.parameters.get(name) != value}


def _from(steps: Iterable[str]) -> str:
    return " ".join(f"--from {step}" for step in steps)


def taken_back(directory: RunDir, plan: Plan, state: RunState, steps: Sequence[str]) -> frozenset[str]:
    """The nodes of some steps, and everything that depends on them.

    Raises:
        ChainChanged: rows of other nodes are stale too.
    """
    if not steps:
        _require_unchanged(directory, state, plan)
        return frozenset()
    _require_same_chain(directory, state, plan)
    affected = affected_by(plan, steps)
    changes = changes_since(state, plan)
    missed = [node for node in (changes.stale if changes else ()) if node not in affected and node != FLATTENED]
    if missed:
        raise ChainChanged(
            f"{directory}: {', '.join(missed)} changed too and does not depend on {', '.join(steps)}; "
            f"use `{_sets(state, plan)}{_from(starts_of(plan, [*steps, *missed, *lost_nodes(plan, state)]))}`"
        )
    return affected


async def _open_again(directory: RunDir, plan: Plan, state: RunState, options: RunOptions, reopen: Reopen) -> RunResult:
    """Takes results back, and goes on."""
    if state.status is not Status.FINISHED or reopen.nodes != {FLATTENED}:  # else nothing is asked
        await check_drive(plan, options, state.bill.rates)
    await anyio.to_thread.run_sync(_same_input, directory, state, options)
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
    asked = plan
    if engine is not None:
        assert isinstance(found, Chain)
        asked = _with_engine(plan, registry_of(found, options.engines_file), engine, steps)
    return await _retry(directory, plan, state, options, Rejections(steps, reasons), asked)


async def _retry(
    directory: RunDir, plan: Plan, state: RunState, options: RunOptions, chosen: Rejections, asked: Plan | None = None
) -> RunResult:
    """Opens rejected rows again. `asked`: the plan with another engine, for this session."""
    _require_unchanged(directory, state, plan)
    require_nodes(plan, sorted(chosen.steps))
    chosen = await anyio.to_thread.run_sync(chosen.without_final, directory, plan, state)
    chosen.require_some(directory, plan, state)
    reuse = _still_there(options.reuse)
    options = replace(options, reuse=reuse, no_reuse=options.no_reuse if reuse else ())
    return await _open_again(directory, asked or plan, state, options, Reopen(rejection=chosen.includes))


@dataclass(frozen=True)
class Rejections:
    """Rejections that are taken back: those of some steps and with some reasons, or all."""

    steps: frozenset[str] = frozenset()
    reasons: frozenset[str] = frozenset()
    #: Loops for whose exhausted rows the plan has no further round, and no end.
    final: frozenset[str] = frozenset()

    def without_final(self, directory: RunDir, plan: Plan, state: RunState) -> Rejections:
        """Without exhausted rows that would only be rejected again."""
        exhausted = {step for step, counts in state.nodes.items() if counts.reasons.get(Reason.EXHAUSTED)}
        if not exhausted:
            return self
        rows = (row for row in RunResult(directory, state).rows("rejected") if row["reason"] == Reason.EXHAUSTED)
        going_on = {row["step_id"] for row in rows if plan.goes_on(row["step_id"], str(row["_round"]))}
        return replace(self, final=frozenset(exhausted - going_on))

    def includes(self, step: str, reason: str) -> bool:
        return self._matches(step, reason) and not (reason == Reason.EXHAUSTED and step in self.final)

    def _matches(self, step: str, reason: str) -> bool:
        return (not self.steps or step in self.steps) and (not self.reasons or reason in self.reasons)

    def require_some(self, directory: RunDir, plan: Plan, state: RunState) -> None:
        """Raises RunDirectoryError if a run has no such rejections."""
        counted = {step: counts.reasons for step, counts in state.nodes.items() if step in plan.nodes}
        if any(self.includes(step, reason) for step, reasons in counted.items() for reason in reasons):
            return
        if not any(counted.values()) and state.node(CHAIN_INPUT).rejected:
            raise RunDirectoryError(f"{directory}: only lines of the input were rejected; mend them there and begin a new run")
        if not any(counted.values()):
            raise RunDirectoryError(f"{directory} has no rejected rows")
        if left := sorted(loop for loop in self.final if self._matches(loop, Reason.EXHAUSTED)):
            raise RunDirectoryError(
                f"{directory} has no rejected rows that match, except those that are exhausted, for which no round is left; "
                f"raise max_rounds of {' and '.join(left)}, or set on_exhausted='keep'"
            )
        raise RunDirectoryError(f"{directory} has no rejected rows that match; `chainette rejected {directory}` lists them")


def _still_there(directories: Sequence[str]) -> tuple[str, ...]:
    """The earlier runs that are still where they were; rejected rows can be asked for without the others."""
    found = tuple(directory for directory in directories if RunDir(directory).exists())
    for lost in (directory for directory in directories if directory not in found):
        _log.warning("--reuse %s: there is no run in it any more; nothing is taken from it", lost)
    return found


def _with_engine(plan: Plan, registry: EngineRegistry, engine: str, steps: frozenset[str]) -> Plan:
    """The plan with another engine behind its steps, for one session."""
    nodes = {
        node.id: replace(node, engine=engine, escalate=())
        if node.kind is NodeKind.STEP and (not steps or node.node.id in steps)
        else node
        for node in plan.nodes.values()
    }
    return replace(plan, nodes=nodes, engines={**plan.engines, engine: registry.get(engine)})


def _recorded(directory: RunDir, state: RunState, options: RunOptions) -> RunOptions:
    """The options of this session with everything the log fixes.

    Raises:
        RunDirectoryError: a setting differs from the recorded one; the limit may be raised.
    """
    run = state.run
    fixed = {name: value for name, value in run.settings.items() if name in FLAGS}
    root = str(chain_root_of(run, directory)) if run.chain_root else ""
    if fixed.get("engines_file"):
        fixed["engines_file"] = str(Path(root) / fixed["engines_file"])
    fixed["limit"] = require_limit(directory, state, options.limit)
    fixed["reuse"] = require_reuse(directory, state, options.reuse)
    fixed["accept"] = require_accept(directory, state, options.accept)
    recorded = RunSettings(**fixed)
    for name in options.given.keys() & RECORDED - RESUMABLE - {"engines_file"}:
        if (value := getattr(options, name)) != (known := getattr(recorded, name)):
            raise RunDirectoryError(
                f"{directory}: {name} is fixed by the log of the run: it is {known!r} there and cannot become {value!r}; "
                f"begin a new run to change it"
            )
    options = replace(options, budget=merged(state.budget, options.budget))
    fixed |= {name: getattr(recorded, name) for name in RECORDED - RESUMABLE - fixed.keys()}
    return replace(options, **fixed, chain_ref=run.chain_ref, chain_root=root)


def require_reuse(directory: RunDir, state: RunState, wanted: Sequence[str]) -> Sequence[str]:
    """The earlier runs of a session: those that are wanted, in place of the recorded ones; a sample of its plan stays.

    Raises:
        RunDirectoryError: the run began without any.
    """
    known = reused_by(directory, state)
    if wanted and not known:
        raise RunDirectoryError(f"{directory}: the run takes no answers from others; begin a new run with --reuse to do so")
    return (*wanted, *({str(directory.sample)} & {*known} - {*wanted})) if wanted else known


def reused_by(directory: RunDir, state: RunState) -> tuple[str, ...]:
    """The earlier runs a run takes answers from; the sample of its own plan moves with it."""
    recorded, own = state.run.settings.get("reuse") or (), directory.sample
    lost = {path for path in recorded if Path(path).parts[-2:] == own.parts[-2:] and not RunDir(path).exists()}
    return tuple(str(own) if path in lost and RunDir(own).exists() else path for path in recorded)


def require_limit(directory: RunDir, state: RunState, wanted: int | None) -> int | None:
    """The limit of a session: the recorded one, or the higher one that is wanted.

    Raises:
        RunDirectoryError: it is lower.
    """
    if wanted is None or wanted == state.limit:
        return state.limit
    if state.limit is None:
        raise RunDirectoryError(f"{directory}: the run takes the whole input; a limit of {wanted} cannot be set afterwards")
    if wanted < state.limit:
        raise RunDirectoryError(
            f"{directory}: the run takes {state.limit:,} records, and their results stay; a limit can be raised, "
            f"not lowered to {wanted:,}"
        )
    return wanted


def wanted_of(state: RunState) -> int | None:
    """The number of rows a run accepts; None if it takes all."""
    return None if state.accepted is None else state.accepted.wanted


def require_accept(directory: RunDir, state: RunState, wanted: int | None) -> int | None:
    """The number of rows a session accepts: the recorded one, or the higher one that is wanted.

    Raises:
        RunDirectoryError: it is lower.
    """
    known = wanted_of(state)
    if wanted is None or wanted == known:
        return known
    if known is None:
        raise RunDirectoryError(
            f"{directory}: the run takes all rows; it cannot stop after {wanted:,} now. Begin a new run with --accept"
        )
    if wanted < known:
        raise RunDirectoryError(
            f"{directory}: the run accepts {known:,} rows, and those that are written stay; the number can be raised, "
            f"not lowered to {wanted:,}. The first {wanted:,} rows of flattened are the ones that you want"
        )
    return wanted


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


def observe(directory: RunDir, plan: Plan, inputs: Path | Sequence[Path], read: Read | None = None) -> Observed:
    """Everything needed to admit the rows of a run whose directory somebody else writes. `read` is how far the input was
    read for roots that may not be durable yet.

    Raises:
        RunDirectoryError: there is no run.
        ChainChanged: the chain is not the one that the directory is written with.
        InputError: the input is gone, or it is not the one that the run began with.
    """
    state, _ = read_state(directory)
    options = replace(_recorded(directory, state, RunOptions()), parameters=state.parameters)
    _require_unchanged(directory, state, plan)
    if read is not None:
        state.apply_read(read)
    source, _ = _same_input(directory, state, options, inputs)
    return Observed(plan, source, state, options)


def _same_input(
    directory: RunDir, state: RunState, options: RunOptions, path: Path | Sequence[Path] | None = None
) -> tuple[InputFile, bool]:
    """The input of the run, and whether its sizes and times are those recorded. It is at `path`, else at the path of the
    options or the log.

    Raises:
        InputError: it is gone, or it has changed.
    """
    paths = [path] if isinstance(path, Path) else path or options.inputs
    known = input_paths(state.input, directory, Path(options.chain_root))
    if state.input.get("growing"):
        source = open_growing(GrowingFile(known[0], _again(directory, state, options)), limit=options.limit)
        return source, require_same_input(source, state.input, state.read, str(directory))
    try:
        source = open_input(paths or known, limit=options.limit)
    except InputError as error:
        if paths or all(place.exists() for place in known):
            raise
        raise InputError(f"{error}; if the input has moved: `chainette resume {directory} --input PATH`") from error
    return source, require_same_input(source, state.input, state.read, str(directory))


def _again(directory: RunDir, state: RunState, options: RunOptions) -> RowSource | None:
    """The source of a growing input, from its first row: as it was given, or the data set of the hub the log names."""
    name = state.input.get("hub")
    if name is None:
        return options.source
    rows = HubRows.of(name)
    for other in map(str, options.inputs):
        if not is_hub(other) or not rows.is_of(other):
            raise InputError(f"{directory}: the run reads {name}, not {other}; begin a new run for it")
    return rows
