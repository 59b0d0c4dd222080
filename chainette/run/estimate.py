"""The requests and the cost of a run before it begins: rows by a walk over the input (`forecast.py`), the rest by the known
numbers of its steps (`step_estimates.py`)."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import anyio.to_thread
import msgspec

from chainette.core.chain import Inputs
from chainette.core.plan import Plan
from chainette.core.plan_node import NodeKind
from chainette.engine.base import Engine
from chainette.engine.config import EngineConfig
from chainette.engine.lifecycle import create_engine
from chainette.engine.model_files import files_of
from chainette.engine.price import Cost
from chainette.io.inputs.readers import InputFile
from chainette.io.inputs.same_input import require_same_beginning
from chainette.io.rundir.graph_of_plan import graph_of
from chainette.io.rundir.open import read_state
from chainette.io.rundir.paths import RunDir, publish
from chainette.io.rundir.run_state import RunState
from chainette.run.answer_sources import AnswerSources
from chainette.run.forecast import Forecast, Walk
from chainette.run.kept_rows import KeptRows, LoggedUnits
from chainette.run.options import RunOptions
from chainette.run.plan_sample import open_counted
from chainette.run.recorded_options import reused_by
from chainette.run.same_chain import changed_parameters
from chainette.run.session import open_answers, roots_of
from chainette.run.step_estimates import EarlierRuns, StepEstimate, StepEstimates
from chainette.run.stored_answers import require_runs

__all__ = ["Estimate", "estimate", "save"]


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """A plan in numbers."""

    #: "sample", "earlier run" or "at most".
    basis: str
    records: int
    #: Of the plan.
    fingerprint: str
    #: Records of the sample; its answers are in `DIR/.plan/sample`, and the run that follows takes them.
    sampled: int = 0
    #: The cost of the sample.
    sample_usd: float = 0.0
    steps: list[StepEstimate]
    #: Spent in the directory before.
    spent: Cost = Cost()
    asked: int = 0
    #: Whether it is the plan of a resume; and the rows that are computed again, as `resume --select` takes them.
    resumed: bool = False
    select: list[str] = []
    #: Parameters to resume with (`--set`), since the run has other values.
    parameters: dict[str, Any] = {}
    #: Engines whose answers are simulated.
    simulated: list[str] = []
    #: Functions that would have to be called, so that the rows after them are not known.
    functions: list[str] = []

    @property
    def usd(self) -> float:
        return sum(step.usd for step in self.steps)

    @property
    def gpu_hours(self) -> float:
        return sum(step.gpu_hours for step in self.steps)

    @property
    def requests(self) -> float:
        return sum(step.requests for step in self.steps)

    @property
    def reused(self) -> int:
        return sum(step.reused for step in self.steps)

    @property
    def shared(self) -> float:
        return sum(step.shared for step in self.steps)

    @property
    def seconds(self) -> float | None:
        """Of the engine that takes longest, since engines work side by side."""
        by_engine: dict[str, float] = {}
        for step in self.steps:
            if step.seconds is None:
                return None
            by_engine[step.engine] = by_engine.get(step.engine, 0.0) + step.seconds
        return max(by_engine.values(), default=0.0)


async def estimate(
    plan: Plan,
    inputs: Inputs,
    directory: RunDir,
    options: RunOptions,
    *,
    select: Sequence[str] = (),
    sampled: RunState | None = None,
    capacities: Mapping[str, int] | None = None,
) -> Estimate:
    """The requests of a run of a plan into a directory, or, if a run is there, of a resume with `select`.

    `sampled` is the state of a sample in the directory, and `capacities` those of its engines.

    Raises:
        InputError: the records of the input cannot be counted, it is not that of the run, or `select` names no rows.
        RunDirectoryError: an earlier run is not there.
        ChainChanged: `select` leaves out steps that have changed.
    """
    state, units = None, LoggedUnits()
    if directory.exists():
        state, _ = await anyio.to_thread.run_sync(partial(read_state, directory, heard=units.note))
        plan, options = _as_recorded(directory, state, plan, options)
    own = str(directory.sample)
    reuse = [reused for reused in options.reuse if reused != own]
    own_sample = None  # its rows cost nothing in the run itself
    if directory.sample.exists():
        options = replace(options, reuse=(*reuse, own))
        own_sample = (await anyio.to_thread.run_sync(read_state, RunDir(own)))[0] if sampled is None else None
    resumed = await anyio.to_thread.run_sync(KeptRows.of, directory, plan, state, units, select)
    await anyio.to_thread.run_sync(require_runs, options.reuse)
    source = await anyio.to_thread.run_sync(_opened, inputs, plan, options, directory, state)
    earlier = [(await anyio.to_thread.run_sync(read_state, RunDir(reused)))[0] for reused in reuse]
    graph = graph_of(plan)
    known = EarlierRuns.of([one for one in (sampled, state, *earlier, own_sample) if one is not None], graph)
    engines = await anyio.to_thread.run_sync(_unopened, plan, known.states)
    shares = state is not None and not select and any(node.dedupe for node in plan.nodes.values())
    with tempfile.TemporaryDirectory(prefix="chainette-") as folder, closing(source):
        sources = options.sources(Path(folder), str(directory) if shares else "")
        found = await _walked(plan, engines, source, options, resumed, sources)
    counting = StepEstimates(plan, graph, found, known, engines, capacities or {})
    missed = partial(_why_missed, EarlierRuns.of(earlier, graph), found)
    steps = [step async for step in counting.each(resumed.why if state is not None else missed)]
    is_known = any(known.billed(step.step) for step in steps)
    return Estimate(
        basis="sample" if sampled is not None else "earlier run" if is_known else "at most",
        records=found.records if state is None else source.count() or state.records,
        fingerprint=plan.fingerprint,
        sampled=0 if sampled is None else sampled.records,
        sample_usd=0.0 if sampled is None else sampled.bill.cost().usd,
        steps=steps,
        spent=Cost() if state is None else state.bill.cost(),
        asked=0 if state is None else state.answered.requests,
        resumed=state is not None,
        select=[*resumed.select],
        parameters={} if state is None else changed_parameters(state, plan),
        simulated=[name for name, engine in engines.items() if engine.describe().get("simulated")],
        functions=[node.id for node in plan.steps if node.kind is NodeKind.APPLY and found.waiting[node.id]],
    )


def _as_recorded(directory: RunDir, state: RunState, plan: Plan, options: RunOptions) -> tuple[Plan, RunOptions]:
    """The plan and the options as a resume of the directory has them."""
    settings = state.run.settings
    fixed: dict[str, Any] = {name: settings[name] for name in ("seed", "key") if name in settings}
    fixed["columns"] = tuple(settings.get("columns") or ())
    if not options.reuse:
        fixed |= {"reuse": reused_by(directory, state), "no_reuse": tuple(settings.get("no_reuse") or ())}
    limit = state.limit  # it can be raised, but not introduced
    if limit is not None and options.limit is not None:
        limit = max(limit, options.limit)
    return replace(plan, batch_size=settings["batch_size"]), replace(options, **fixed, limit=limit)


async def _walked(
    plan: Plan,
    engines: Mapping[str, Engine],
    source: InputFile,
    options: RunOptions,
    resumed: KeptRows,
    sources: AnswerSources | None,
) -> Forecast:
    """The rows that each step takes, found without asking anybody."""
    roots = roots_of(plan, source, options, resumed.state.roots.starts if resumed.state is not None else ((0, 0),))
    async with open_answers(sources) as stored:
        walk = Walk(plan, engines, options.seed, stored)
        return await walk.through(roots.pending(resumed.is_done), resumed.durable)


def _opened(inputs: Inputs, plan: Plan, options: RunOptions, directory: RunDir, state: RunState | None) -> InputFile:
    """The input; of a resume, the one that the run began with."""
    source = open_counted(inputs, plan, options)
    if state is not None and not state.input.get("growing"):  # of that, the run reads its own copy
        require_same_beginning(source, state.input, state.read, str(directory))
    return source


def _unopened(plan: Plan, states: Sequence[RunState]) -> dict[str, Engine]:
    """The engines of a plan, with the identity they have once they are open: of their files, and the revisions that
    hubs and servers gave earlier runs."""
    made = {}
    for name, config in plan.engines.items():
        made[name] = engine = create_engine(config)
        engine.identity = {**_revisions(config, states), **files_of(config)}
    return made


def _revisions(config: EngineConfig, states: Sequence[RunState]) -> Mapping[str, str]:
    of = ("backend", "model", "revision")
    wanted = config.describe()
    for state in states:
        for name, described in state.graph.engines.items():
            if all(described.get(key) == wanted.get(key) for key in of) and (loaded := state.engines.loaded_from(name)):
                return loaded
    return {}


def _why_missed(earlier: EarlierRuns, found: Forecast, step: str) -> str:
    """Why rows are asked although earlier runs may have answers."""
    if not earlier.states:
        return ""
    changes = earlier.changes[0]
    if changes is not None and (words := changes.by_node.get(step)):
        return ", ".join(words)
    if changes is not None and step in changes.stale:
        return "follows a step that changed"
    return "no earlier run has an equal request" if found.waiting[step] else ""


def save(directory: RunDir, estimate: Estimate) -> None:
    """Keeps an estimate, so that the summary of the run can compare it with the result."""
    publish(directory.estimate, msgspec.json.encode(estimate))
