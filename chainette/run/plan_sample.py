"""The sample of a plan: a run of some records, in a directory of its own."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import anyio.to_thread

from chainette.core.chain import Inputs
from chainette.core.plan import Plan
from chainette.engine.budget import engine_limits
from chainette.errors import InputError
from chainette.io.inputs.readers import InputFile
from chainette.io.rundir.chain_changes import changes_between
from chainette.io.rundir.graph_of_plan import graph_of
from chainette.io.rundir.open import read_state, recover
from chainette.io.rundir.paths import RunDir
from chainette.io.rundir.run_state import RunState
from chainette.io.rundir.writer import RunWriter
from chainette.run.options import RunOptions
from chainette.run.session import announce, check_drive, local_run, rates_of, roots_of
from chainette.run.start import begin, open_files
from chainette.utils.ids import new_run_id

__all__ = ["open_counted", "sample"]


def open_counted(inputs: Inputs, plan: Plan, options: RunOptions) -> InputFile:
    """The input of a plan.

    Raises:
        InputError: its records cannot be counted.
    """
    source = open_files(inputs, plan, options)
    if source is None:
        raise InputError(
            "a plan needs files whose records can be counted; write standard input or a data set of the hub to a file first"
        )
    return source


async def sample(
    plan: Plan, inputs: Inputs, directory: RunDir, options: RunOptions, number: int
) -> tuple[RunState, dict[str, int]]:
    """Runs records that are evenly spread over the input through the whole chain, under their true ids. Returns the state of
    their directory, and the capacities of the engines.

    Records that an earlier sample of the same chain asked are not asked again.
    """
    single = replace(plan, batch_size=1)  # so that root n is record n
    await check_drive(single, options)
    made = [folder for folder in (directory.path, *directory.path.parents) if not folder.exists()]
    writer, source = await anyio.to_thread.run_sync(_open, directory, single, inputs, options)
    capacities: dict[str, int] = {}
    try:
        total = source.count() or number
        chosen = {place * total // number for place in range(min(number, total))}
        writer.charge(rates_of(single), options.budget, engine_limits(single.engines))
        await anyio.to_thread.run_sync(announce, writer, source, single)
        state = writer.state

        def is_done(root: int) -> bool:
            return root not in chosen or state.roots.is_done(root)

        if not all(map(state.roots.is_done, chosen)):
            roots = roots_of(single, source, options)
            sources, pending = options.sources(directory.answers), partial(roots.pending, is_done)
            async with local_run(single, pending, writer, options, sources) as local:
                await local.run()
                capacities = {name: (await local.engines.get(name)).capacity for name in local.engines.opened}
        await anyio.to_thread.run_sync(writer.pause, "it is the sample of a plan")
        return state, capacities
    finally:
        writer.close()
        if made and not any(counts.taken for counts in writer.state.nodes.values()):
            await anyio.to_thread.run_sync(_remove, made)


def _remove(made: Sequence[Path]) -> None:
    """Removes the folders that a sample without any answer has made, innermost first."""
    shutil.rmtree(made[0])
    with suppress(OSError):  # somebody else uses them now
        for folder in made[1:]:
            folder.rmdir()


def _open(directory: RunDir, plan: Plan, inputs: Inputs, options: RunOptions) -> tuple[RunWriter, InputFile]:
    """The writer of a sample's directory, and the input; an earlier sample of another chain or input is thrown away."""
    source = open_counted(inputs, plan, options)
    if directory.exists():
        state, _ = read_state(directory)
        unchanged = changes_between(state.graph, graph_of(plan)) is None and state.run.settings["batch_size"] == 1
        unchanged = unchanged and (*state.run.settings.get("columns", ()),) == options.columns
        if unchanged and source.identity()["sample"] == state.input.get("sample"):
            return recover(directory, plan, state), source
        shutil.rmtree(directory.path)
    return begin(directory, new_run_id(), plan, inputs, options)
