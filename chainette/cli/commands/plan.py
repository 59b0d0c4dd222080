"""`chainette plan`: the requests and the cost of a run, before it begins."""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from functools import partial
from typing import Annotated

import anyio
import msgspec
import typer

from chainette.cli.bundles import Task
from chainette.cli.common import console, guarded, new_table, print_json, warn
from chainette.cli.flags import AsJson
from chainette.cli.launch import load_plan
from chainette.cli.signature import Hidden, Only
from chainette.core.run_settings import RunSettings
from chainette.errors import InputError
from chainette.io.rundir.open import read_state
from chainette.io.rundir.paths import RunDir
from chainette.run.estimate import Estimate, at_most, from_state, sample, save
from chainette.run.options import RunOptions
from chainette.run.start import open_files
from chainette.screen.numbers import amount, clock, dollars

__all__ = ["plan"]

_COLUMNS = ("step", "engine", "rows", "requests", "tokens in", "tokens out", "time", "cost")


@guarded
def plan(
    task: Annotated[Task, Hidden({"runs"})],
    sampled: Annotated[
        int,
        typer.Option("--sample", metavar="N", min=0, help="Ask N records, evenly spread, through the chain; 0 asks none."),
    ] = 0,
    as_json: AsJson = False,
    *,
    settings: Annotated[RunSettings, Only({"limit", "seed", "engines_file", "simulate", "price", "key", "columns"})],
) -> None:
    """Estimate the requests of a run of CHAIN over INPUTS, and their cost.

    With --sample, some records are really asked, and the numbers follow from their answers; `run -o DIR` takes these, which
    are kept in DIR/.plan/sample. Without, the numbers come from the run that is in DIR, with the steps that are asked again
    and why; if there is none, they are an upper bound: one request with the longest answer for each record and step.
    """
    loaded, compiled = load_plan(task.chain, task.chain_root, task.parameters, settings)
    words = {**asdict(settings), "chain_ref": loaded.reference, "chain_root": str(task.chain_root)}
    options = RunOptions(**words, chain_claim=loaded.claim, parameters=loaded.parameters)
    inputs = task.inputs[0] if len(task.inputs) == 1 else task.inputs
    source = open_files(inputs, compiled, options)
    records = source.count() if source is not None else None
    if records is None:
        raise InputError("a plan needs files whose records can be counted; write standard input to a file first")
    with tempfile.TemporaryDirectory(prefix="chainette-") as folder:
        directory = RunDir(task.output or folder)
        if sampled:
            run = partial(sample, compiled, inputs, RunDir(directory.sample), options, sampled)
            state, capacities = anyio.run(run)
            found = from_state(compiled, state, records, capacities)
        elif directory.exists():
            found = from_state(compiled, read_state(directory)[0], records)
        else:
            found = at_most(compiled, records)
        if task.output is not None and found.requests and not (directory.exists() and sampled):
            save(directory, found)
    warn(compiled.warnings)
    if as_json:
        totals = {"usd": found.usd, "gpu_hours": found.gpu_hours, "requests": found.requests, "seconds": found.seconds}
        print_json([msgspec.to_builtins(found) | totals])
    else:
        _print(found)


_BASIS = {
    "sample": "by a sample of {sampled:,} of {records:,} records, which is kept and not asked again ({sample})",
    "earlier run": "by the rows that are in the directory; {records:,} records",
    "at most": "at most, for {records:,} records: one request with the longest answer each; prompts are not counted. "
    "--sample 50 asks some and knows better",
}


def _print(found: Estimate) -> None:
    screen = console()
    table = new_table(_COLUMNS, numbers=_COLUMNS[2:], cut=("step", "engine"))
    for step in found.steps:
        prompts = "?" if step.prompt_tokens is None else f"{step.prompt_tokens:,.0f}"
        seconds = "?" if step.seconds is None else clock(step.seconds)
        unknown = step.rows and step.seconds is None and not step.usd
        cost = "?" if unknown else amount({"usd": step.usd, "gpu_hours": step.gpu_hours})
        cells = (f"{step.rows:,.0f}", f"{step.requests:,.0f}", prompts, f"{step.completion_tokens:,.0f}", seconds, cost)
        table.add_row(step.step, step.engine, *cells)
    screen.print(table)
    screen.print()
    words = _BASIS[found.basis].format(sampled=found.sampled, records=found.records, sample=dollars(found.sample_usd))
    screen.print(words, soft_wrap=True)
    for step in found.steps:
        if step.why and step.rows:
            screen.print(f"{step.step}: {step.rows:,.0f} rows are asked again: {step.why}", soft_wrap=True)
    time = "" if found.seconds is None else f", {clock(found.seconds)}"
    total = amount({"usd": found.usd, "gpu_hours": found.gpu_hours})
    screen.print(f"in all: {found.requests:,.0f} requests, {total}{time}", soft_wrap=True)
