"""Running a chain on this machine: `run`, `resume`, `run_iter`, and the seed's Executor and AsyncExecutor.

All of them are one path: compile, open a directory (or none), move units with `local.LocalRun`, close.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import anyio
import anyio.from_thread
import anyio.to_thread
from pydantic import BaseModel

from chainette.core.chain import Chain, Inputs
from chainette.core.compile import compile_chain
from chainette.core.loading import load_chain
from chainette.core.node import Node
from chainette.core.plan import NodeKind, Plan
from chainette.engine.config import EngineConfig, EngineRegistry, load_engines, using_registry
from chainette.engine.lifecycle import Engines
from chainette.errors import ChainChanged, ChainetteError, InputError, RunDirectoryError
from chainette.execute import execute_node
from chainette.hooks import Hook
from chainette.io.events import EngineLoaded, EngineReleased, Event, RunCreated, RunResumed, RunStarted
from chainette.io.fork import Reopen, affected_by, finish_swap, fork
from chainette.io.inputs import open_input
from chainette.io.readers import InputFile
from chainette.io.replay import RunState, Status
from chainette.io.result import RunResult
from chainette.io.roots import Roots
from chainette.io.rundir import RunDir
from chainette.io.session import changed_nodes, claim_directory, create, git_commit, graph_of, read_state, recover, versions
from chainette.io.shards import Format
from chainette.io.spool import spool
from chainette.io.validate import InputModel
from chainette.io.writer import RunWriter, Scratch, tidy
from chainette.local import Limits, LocalRun, Writer
from chainette.records import Row
from chainette.utils.debug import ChainDebugger
from chainette.utils.ids import new_run_id

__all__ = [
    "AsyncExecutor",
    "Executor",
    "RunOptions",
    "RunResult",
    "arun",
    "execute",
    "resume",
    "retry_rejected",
    "run",
    "run_iter",
]

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How to run; the command line's flags have the same names."""

    #: Every ask's sampling seed is derived from it.
    seed: int = 0
    #: Records to take from the start of the input.
    limit: int | None = None
    #: Rows per root; None takes the chain's.
    batch_size: int | None = None
    #: Format of the shards.
    format: Format = "jsonl"
    max_rows_per_file: int = 100_000
    #: Whether `flattened/` is written.
    flattened: bool = True
    #: An input column that every shard carries as `_key`.
    key: str | None = None
    #: Share of rejected rows of a step at which the run stops (looked at after 200 rows).
    max_reject_rate: float | None = None
    #: Live rows; None derives it from the engines.
    window: int | None = None
    #: Seconds that an engine may not answer before the run gives up.
    engine_patience: float = 600.0
    #: Every engine answers out of its schema.
    simulate: bool = False
    #: A YAML file whose engines replace those of the chain.
    engines_file: str | None = None
    #: How `resume` finds the chain again; set by the command line.
    chain_ref: str = ""
    chain_root: str = ""
    #: Goes on with a directory that holds a run.
    resume: bool = False
    hooks: tuple[Hook, ...] = ()

    def __post_init__(self) -> None:
        for name in ("limit", "batch_size", "max_rows_per_file", "window"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} is {value}; it must be 1 or more")
        if self.format not in ("jsonl", "parquet", "csv"):
            raise InputError(f"format is {self.format!r}; it must be jsonl, parquet or csv")
        if self.max_reject_rate is not None and not 0 < self.max_reject_rate <= 1:
            raise InputError(f"max_reject_rate is {self.max_reject_rate}; it must be above 0 and at most 1")

    @property
    def settings(self) -> dict[str, Any]:
        """What the log fixes for every later session of the directory."""
        names = ("seed", "limit", "format", "max_rows_per_file", "flattened", "key", "simulate", "engines_file")
        return {name: getattr(self, name) for name in names}

    @property
    def limits(self) -> Limits:
        return Limits(self.window, self.engine_patience, self.max_reject_rate)


class _Hooks(Hook):
    """Several hooks as one."""

    def __init__(self, hooks: Sequence[Hook]) -> None:
        self._hooks = hooks

    def on_event(self, event: Event) -> None:
        for hook in self._hooks:
            hook.on_event(event)

    def on_answers(self, step_id: str, requests: Any, completions: Any) -> None:
        for hook in self._hooks:
            hook.on_answers(step_id, requests, completions)


class AsyncExecutor:
    """Runs a chain from a coroutine."""

    def __init__(self, chain: Chain, **options: Any) -> None:
        self.chain = chain
        self.options = RunOptions(**options)

    async def run(self, inputs: Inputs, output_dir: str | os.PathLike[str] | None = None) -> RunResult:
        """Runs every row into a run directory; see `Chain.run`."""
        options = self.options
        run_id = new_run_id()
        directory = RunDir(output_dir or Path("runs") / run_id)
        if options.resume and directory.exists():
            return await _resume(directory, self.chain, options)
        plan = _compile(self.chain, options)
        writer, source = await anyio.to_thread.run_sync(_begin, directory, run_id, plan, inputs, options)
        return await _drive(plan, source, writer, options)


class Executor:
    """Runs a chain from ordinary code, also where an event loop runs already."""

    def __init__(self, chain: Chain, **options: Any) -> None:
        self.chain = chain
        self.options = options

    def run(self, inputs: Inputs, output_dir: str | os.PathLike[str] | None = None) -> RunResult:
        """Runs every row into a run directory; see `Chain.run`."""
        return _block(AsyncExecutor(self.chain, **self.options).run, inputs, output_dir)

    def run_iter(self, inputs: Inputs, output_dir: str | os.PathLike[str] | None = None) -> Iterator[list[Row]]:
        """Yields finished rows root by root; see `Chain.run_iter`."""
        return _iterate(self.chain, inputs, output_dir, RunOptions(**self.options))


def run(chain: Chain, inputs: Inputs, output_dir: str | os.PathLike[str] | None = None, **options: Any) -> RunResult:
    """See `Chain.run`."""
    return Executor(chain, **options).run(inputs, output_dir)


async def arun(chain: Chain, inputs: Inputs, output_dir: str | os.PathLike[str] | None = None, **options: Any) -> RunResult:
    """See `Chain.arun`."""
    return await AsyncExecutor(chain, **options).run(inputs, output_dir)


def run_iter(
    chain: Chain, inputs: Inputs, output_dir: str | os.PathLike[str] | None = None, **options: Any
) -> Iterator[list[Row]]:
    """See `Chain.run_iter`."""
    return Executor(chain, **options).run_iter(inputs, output_dir)


def resume(
    directory: str | os.PathLike[str], chain: Chain | None = None, *, from_step: str | None = None, **options: Any
) -> RunResult:
    """Goes on with the run of a directory from what is durable; nothing durable is asked for again.

    The chain is loaded as the log says unless it is given. With `from_step` that step and everything
    that depends on it is computed anew. `options` may name hooks, window, engine_patience and
    max_reject_rate; the rest is fixed by the log.

    Raises:
        RunDirectoryError: there is no run, or it was made by a chain that lives in Python only.
        ChainChanged: a step is not what it was when its rows were written.
        InputError: the input is not the one that the run began with.
    """
    return _block(_resume, RunDir(directory), chain, RunOptions(**options), from_step)


def retry_rejected(
    directory: str | os.PathLike[str],
    chain: Chain | None = None,
    *,
    steps: Sequence[str] = (),
    reasons: Sequence[str] = (),
    engine: str | None = None,
    **options: Any,
) -> RunResult:
    """Computes rejected rows again, from the step that rejected them on; other rows stay as they are.

    `steps` and `reasons` narrow down which ones; `engine` asks another engine of the chain.

    Raises:
        RunDirectoryError: nothing matches, or rows that are needed again were not kept.
    """
    return _block(
        _retry_rejected, RunDir(directory), chain, RunOptions(**options), frozenset(steps), frozenset(reasons), engine
    )


def execute(
    node: Node,
    inputs: Sequence[BaseModel],
    histories: Sequence[Row] | None = None,
    writer: RunWriter | None = None,
    debug: bool = False,
    batch_size: int | None = None,
) -> tuple[list[Any], list[Row]]:
    """See `Node.execute`."""
    hook = ChainDebugger(lambda text: sys.stderr.write(f"{text}\n")) if debug else None
    return _block(execute_node, node, inputs, histories, writer, hook, batch_size)


# -- a fresh directory


def _compile(chain: Chain, options: RunOptions) -> Plan:
    registry = chain.registry
    if options.engines_file:
        registry = EngineRegistry(chain.registry)
        with using_registry(registry):
            load_engines(options.engines_file, replace=True)
    return compile_chain(chain, registry=registry, simulate=options.simulate, batch_size=options.batch_size)


def _begin(directory: RunDir, run_id: str, plan: Plan, inputs: Inputs, options: RunOptions) -> tuple[RunWriter, InputFile]:
    """Checks the input, then takes the directory, so that a mistyped path leaves nothing behind."""
    path = Path(inputs) if isinstance(inputs, str | os.PathLike) and inputs != "-" else None
    source = open_input(path, limit=options.limit) if path else None
    log = claim_directory(directory)
    try:
        if source is None:
            stream = sys.stdin.buffer if inputs == "-" else inputs
            spooled = spool(stream, directory.inputs / "0")  # type: ignore[arg-type]
            source = open_input(spooled, limit=options.limit)
        _check_key(source, options.key)
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


def _check_key(source: InputFile, key: str | None) -> None:
    columns = source.columns()
    if key is not None and columns is not None and key not in columns:
        raise InputError(f"--key {key!r}: the input has no such column; it has {', '.join(columns)}")


# -- an older directory


async def _resume(directory: RunDir, chain: Chain | None, options: RunOptions, from_step: str | None = None) -> RunResult:
    state, plan, options = await anyio.to_thread.run_sync(_reopen, directory, chain, options)
    changed = changed_nodes(state, plan)
    if from_step is not None:
        await anyio.to_thread.run_sync(_fork_from, directory, plan, state, from_step, changed)
        state, _ = await anyio.to_thread.run_sync(read_state, directory)
    elif changed:
        raise ChainChanged(
            f"{directory}: the chain has changed since its rows were written: {', '.join(changed)}. "
            f"To compute these steps and all that follow anew: `chainette resume {directory} --from {changed[0]}`"
        )
    elif state.status is Status.FINISHED:
        await anyio.to_thread.run_sync(tidy, directory, state)
        return RunResult(directory, state, plan)
    return await _continue(directory, plan, state, options)


async def _continue(directory: RunDir, plan: Plan, state: RunState, options: RunOptions) -> RunResult:
    source = await anyio.to_thread.run_sync(_same_input, directory, state, options)
    writer = await anyio.to_thread.run_sync(recover, directory, plan)
    return await _drive(plan, source, writer, options)


def _reopen(directory: RunDir, chain: Chain | None, options: RunOptions) -> tuple[RunState, Plan, RunOptions]:
    finish_swap(directory)
    state, _ = read_state(directory)
    options = _recorded(state, options)
    return state, _compile(chain or _load(directory, state), options), options


def _fork_from(directory: RunDir, plan: Plan, state: RunState, step: str, changed: Sequence[str]) -> None:
    """Takes back the rows of a step and of everything that depends on it."""
    if step not in plan.nodes:
        raise RunDirectoryError(f"the chain has no step {step!r}; it has {', '.join(plan.nodes)}")
    affected = affected_by(plan, step)
    missed = [node for node in changed if node not in affected]
    if missed:
        raise ChainChanged(
            f"{directory}: {', '.join(missed)} changed too and does not depend on {step!r}; use `--from {missed[0]}`"
        )
    _same_input(directory, state, RunOptions(limit=state.run.settings["limit"]))
    fork(directory, plan, state, Reopen(nodes=affected))


async def _retry_rejected(
    directory: RunDir,
    chain: Chain | None,
    options: RunOptions,
    steps: frozenset[str],
    reasons: frozenset[str],
    engine: str | None,
) -> RunResult:
    state, plan, options = await anyio.to_thread.run_sync(_reopen, directory, chain, options)
    changed = changed_nodes(state, plan)
    if changed:
        raise ChainChanged(
            f"{directory}: the chain has changed ({', '.join(changed)}); use `chainette resume {directory} --from {changed[0]}`"
        )

    def matches(step: str, reason: str) -> bool:
        return (not steps or step in steps) and (not reasons or reason in reasons)

    if not any(
        matches(step, reason) for step, counts in state.nodes.items() if step in plan.nodes for reason in counts.reasons
    ):
        raise RunDirectoryError(f"{directory} has no rejected rows that match; `chainette rejected {directory}` lists them")
    if engine is not None:
        plan = _with_engine(plan, (chain or _load(directory, state)).registry, engine, steps)
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


def _same_input(directory: RunDir, state: RunState, options: RunOptions) -> InputFile:
    """The input of the run.

    Raises:
        InputError: it is gone, or it has changed.
    """
    recorded = state.run.input
    source = open_input(Path(recorded["path"]), limit=options.limit)
    found = source.identity()
    if found["size"] != recorded["size"] or found["sample"] != recorded["sample"]:
        raise InputError(
            f"{recorded['path']} has changed since the run in {directory} began "
            f"({recorded['size']:,} bytes then, {found['size']:,} now); put the old file back, or begin a new run"
        )
    return source


# -- the run itself


async def _drive(
    plan: Plan, source: InputFile, writer: RunWriter, options: RunOptions, deliver: Callable[[list[Row]], Any] | None = None
) -> RunResult:
    """Moves a directory's run to its end, or to a point where it can be resumed."""
    hook = _Hooks(options.hooks)
    try:
        _tell(hook, await anyio.to_thread.run_sync(_announce, writer, source, plan))
        async with _local(plan, source, writer, writer.state.is_done, options, hook, deliver) as local:
            await local.run()
        digest = await anyio.to_thread.run_sync(source.digest)
        _tell(hook, await anyio.to_thread.run_sync(writer.finish, digest))
        return RunResult(writer.directory, writer.state, plan)
    except BaseException as error:
        with anyio.CancelScope(shield=True):
            _tell(hook, await anyio.to_thread.run_sync(_try_to_pause, writer, _reason(error)))
        raise
    finally:
        writer.close()


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


def _try_to_pause(writer: RunWriter, reason: str) -> list[Event]:
    try:
        return writer.pause(reason)
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
    deliver: Callable[[list[Row]], Any] | None,
) -> AsyncIterator[LocalRun]:
    """A LocalRun with its engines; on the way out engines are closed and finished work is made durable."""
    roots = Roots(source, InputModel(plan.input_model, options.key), plan.batch_size)

    def loaded(config: EngineConfig, engine: Any, seconds: float) -> None:
        local.post(
            EngineLoaded(
                engine=config.name,
                backend=config.backend,
                model=config.model,
                seconds=round(seconds, 3),
                deterministic=engine.deterministic,
                details=engine.describe(),
            )
        )

    def released(config: EngineConfig) -> None:
        local.post(EngineReleased(engine=config.name))

    engines = Engines(plan.engines, on_loaded=loaded, on_released=released)
    local = LocalRun(plan, lambda: roots.pending(is_done), writer, engines, options.seed, options.limits, hook, deliver)
    try:
        async with engines:
            yield local
    finally:
        with anyio.CancelScope(shield=True):
            rest = local.take_inbox()
            if rest and not local.torn:
                _tell(hook, (await anyio.to_thread.run_sync(writer.commit, rest)).events)


# -- blocking callers


def _block(call: Callable[..., Coroutine[Any, Any, T]], *arguments: Any) -> T:
    """Runs a coroutine to its end, in a thread of its own where this one has an event loop already."""
    import asyncio

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return anyio.run(call, *arguments)
    with anyio.from_thread.start_blocking_portal() as portal:
        future = portal.start_task_soon(call, *arguments)
        try:
            return future.result()
        except BaseException:  # Ctrl-C reaches this thread only
            future.cancel()
            raise


def _iterate(
    chain: Chain, inputs: Inputs, output_dir: str | os.PathLike[str] | None, options: RunOptions
) -> Iterator[list[Row]]:
    """A run in a thread, which waits where the caller does not take its rows."""
    ready: queue.Queue[list[Row] | None] = queue.Queue(maxsize=2)
    closed = threading.Event()

    async def deliver(rows: list[Row]) -> None:
        await anyio.to_thread.run_sync(_put, ready, rows, closed)

    async def work() -> None:
        try:
            await _iterated(chain, inputs, output_dir, options, deliver)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(_put, ready, None, closed)

    with anyio.from_thread.start_blocking_portal() as portal:
        running = portal.start_task_soon(work)
        try:
            while (rows := ready.get()) is not None:
                yield rows
            running.result()
        finally:
            closed.set()
            running.cancel()


def _put(ready: queue.Queue[Any], item: Any, closed: threading.Event) -> None:
    """Waits until the caller takes an item, or has closed the iterator."""
    while not closed.is_set():
        try:
            ready.put(item, timeout=0.1)
            return
        except queue.Full:
            continue


async def _iterated(
    chain: Chain,
    inputs: Inputs,
    output_dir: str | os.PathLike[str] | None,
    options: RunOptions,
    deliver: Callable[[list[Row]], Any],
) -> None:
    plan = _compile(chain, options)
    if output_dir is not None:
        writer, source = await anyio.to_thread.run_sync(_begin, RunDir(output_dir), new_run_id(), plan, inputs, options)
        await _drive(plan, source, writer, options, deliver)
        return
    import tempfile

    with tempfile.TemporaryDirectory(prefix="chainette-") as folder:
        spooled = isinstance(inputs, str | os.PathLike) and inputs != "-"
        path = Path(str(inputs)) if spooled else spool(sys.stdin.buffer if inputs == "-" else inputs, Path(folder) / "0")  # type: ignore[arg-type]
        source = open_input(path, limit=options.limit)
        async with _local(plan, source, Scratch(plan), lambda _: False, options, _Hooks(options.hooks), deliver) as local:
            await local.run()
