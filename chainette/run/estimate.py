"""The requests and the cost of a run: from a sample that was asked, from an earlier run, or at most."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping
from dataclasses import replace

import anyio.to_thread
import msgspec

from chainette.core.chain import Inputs
from chainette.core.plan import Plan
from chainette.engine.price import Cost, Rate
from chainette.hooks import Hooks
from chainette.io.inputs.readers import InputFile
from chainette.io.rundir.changes import changes_between
from chainette.io.rundir.open import read_state, recover
from chainette.io.rundir.paths import RunDir, publish
from chainette.io.rundir.plan_graph import graph_of
from chainette.io.rundir.run_state import RunState
from chainette.io.rundir.writer import RunWriter
from chainette.records import CHAIN_INPUT, Usage, declared_of
from chainette.run.options import RunOptions
from chainette.run.session import announce, check_drive, local_run, rates_of, roots_of
from chainette.run.start import begin, open_files
from chainette.utils.ids import new_run_id

__all__ = ["Estimate", "StepEstimate", "at_most", "from_state", "sample", "save"]


class StepEstimate(msgspec.Struct, frozen=True, kw_only=True):
    """The requests of a step to one engine."""

    step: str
    engine: str
    rows: float
    requests: float
    #: None if nobody has counted them.
    prompt_tokens: float | None
    completion_tokens: float
    usd: float
    gpu_hours: float
    #: Seconds with the engine full, if its answers take as long as those that are known; None if none are.
    seconds: float | None
    #: Why rows that are there are asked again; "" if none is.
    why: str = ""


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """A plan in numbers."""

    #: "sample", "earlier run" or "at most".
    basis: str
    records: int
    #: Records of the sample; its answers are in `DIR/.plan/sample`, and the run that follows takes them.
    sampled: int = 0
    #: The cost of the sample.
    sample_usd: float = 0.0
    steps: list[StepEstimate]
    #: Spent in the directory before.
    spent: Cost = Cost()
    asked: int = 0

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
    def seconds(self) -> float | None:
        """Of the engine that takes longest, since engines work side by side."""
        by_engine: dict[str, float] = {}
        for step in self.steps:
            if step.seconds is None:
                return None
            by_engine[step.engine] = by_engine.get(step.engine, 0.0) + step.seconds
        return max(by_engine.values(), default=0.0)


def at_most(plan: Plan, records: int) -> Estimate:
    """One request with the longest answer for each record and step; prompts are not counted, and functions may make more
    rows of one."""
    rates, steps = rates_of(plan), []
    for node in plan.steps:
        if (sampling := getattr(node.node, "sampling", None)) is None:
            continue
        asks = records * node.samples
        usage = Usage(asks, 0, asks * sampling.max_tokens)
        cost = rates.get(node.engine, Rate()).cost(usage)
        tokens = float(usage.completion_tokens)
        steps.append(
            StepEstimate(
                step=node.id,
                engine=node.engine,
                rows=records,
                requests=asks,
                prompt_tokens=None,
                completion_tokens=tokens,
                usd=cost.usd,
                gpu_hours=0.0,
                seconds=None,
            )
        )
    return Estimate(basis="at most", records=records, steps=steps)


def from_state(plan: Plan, state: RunState, records: int, capacities: Mapping[str, int] | None = None) -> Estimate:
    """The rest of a run of so many records, by the rows that are known. `capacities` are those of a sample's engines, whose
    directory is not the run's own; without them it is, and rows that have become stale are asked again."""
    changes = None if capacities is not None else changes_between(state.graph, graph_of(plan))
    stale = _with_followers(plan, changes.stale) if changes is not None else frozenset()
    why = ", ".join(changes.sentences) if changes is not None else ""
    rates, known = rates_of(plan), max(1, state.records)
    steps = []
    for step, engine, usage in state.bill.usages():
        counts = state.node(step)
        expected = counts.taken * records / known
        done = 0 if step in stale else counts.taken
        rows = max(0.0, expected - done)
        share = rows / max(1, counts.taken - counts.reused)
        width = (capacities or {}).get(engine) or plan.engines[engine].capacity if engine in plan.engines else None
        seconds = usage.seconds * share / width if width else None
        scaled = msgspec.structs.replace(usage, busy=(seconds or usage.busy * share) / (share or 1))
        cost = rates.get(engine, Rate()).cost(scaled)
        steps.append(
            StepEstimate(
                step=step,
                engine=engine,
                rows=rows,
                requests=usage.requests * share,
                prompt_tokens=usage.prompt_tokens * share,
                completion_tokens=usage.completion_tokens * share,
                usd=cost.usd * share,
                gpu_hours=cost.gpu_hours * share,
                seconds=seconds,
                why=why if step in stale else "",
            )
        )
    if capacities is not None:
        return Estimate(basis="sample", records=records, sampled=state.records, sample_usd=state.bill.cost().usd, steps=steps)
    spent, asked = state.bill.cost(), state.bill.usage().requests
    return Estimate(basis="earlier run", records=records, steps=steps, spent=spent, asked=asked)


def _with_followers(plan: Plan, stale: Collection[str]) -> frozenset[str]:
    from chainette.io.rundir.fork import affected_by

    names = [name for name in stale if name in plan.nodes or name == CHAIN_INPUT]
    return frozenset(map(declared_of, affected_by(plan, names))) if names else frozenset()


def save(directory: RunDir, estimate: Estimate) -> None:
    """Keeps an estimate, so that the end of the run can tell how far off it was."""
    publish(directory.estimate, msgspec.json.encode(estimate))


async def sample(
    plan: Plan, inputs: Inputs, directory: RunDir, options: RunOptions, number: int
) -> tuple[RunState, dict[str, int]]:
    """Asks records that are evenly spread over the input, under their true ids and through the whole chain; the state of
    their directory, and the capacities of the engines that were asked.

    Records that an earlier sample of the same chain asked are not asked again.
    """
    single = replace(plan, batch_size=1)  # so that root n is record n
    await check_drive(single, options)
    writer, source = await anyio.to_thread.run_sync(_open, directory, single, inputs, options)
    capacities: dict[str, int] = {}
    try:
        total = source.count() or number
        chosen = {place * total // number for place in range(min(number, total))}
        writer.rates, writer.limits = rates_of(single), options.budget
        await anyio.to_thread.run_sync(announce, writer, source, single)
        state = writer.state

        def is_done(root: int) -> bool:
            return root not in chosen or state.is_done(root)

        if not all(map(state.is_done, chosen)):
            roots = roots_of(single, source, options)
            hook = Hooks(options.hooks)
            async with local_run(single, roots, writer, is_done, options, hook, None, None, writer.budget, state.used) as local:
                await local.run()
                capacities = {name: (await local.engines.get(name)).capacity for name in local.engines.opened}
        await anyio.to_thread.run_sync(writer.pause, "it is the sample of a plan")
        return state, capacities
    finally:
        writer.close()


def _open(directory: RunDir, plan: Plan, inputs: Inputs, options: RunOptions) -> tuple[RunWriter, InputFile]:
    """The writer of a sample's directory, and the input; an earlier sample of another chain or input is thrown away."""
    if directory.exists():
        state, _ = read_state(directory)
        source = open_files(inputs, plan, options)
        unchanged = changes_between(state.graph, graph_of(plan)) is None and state.run.settings["batch_size"] == 1
        unchanged = unchanged and (*state.run.settings.get("columns", ()),) == options.columns
        if unchanged and source is not None and source.identity()["sample"] == state.input.get("sample"):
            return recover(directory, plan, state), source
        shutil.rmtree(directory.path)
    return begin(directory, new_run_id(), plan, inputs, options)
