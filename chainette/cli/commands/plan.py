"""`chainette plan`: the requests and the cost of a run, before it begins."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Annotated

import anyio
import msgspec
import typer

from chainette.cli.command_errors import guarded, warn
from chainette.cli.flag_bundles import Task
from chainette.cli.flags import AsJson, Select
from chainette.cli.launch import load_plan
from chainette.cli.printing import command_line, print_json
from chainette.cli.screen.tables import console, new_table
from chainette.cli.signature import Hidden, Only
from chainette.core.run_settings import RunSettings
from chainette.core.usercode.parameters import text_of
from chainette.io.inputs.remote import copy_files, files_at
from chainette.io.rundir.open import read_created
from chainette.io.rundir.paths import RunDir
from chainette.run.estimate import Estimate, estimate, save
from chainette.run.options import RunOptions
from chainette.run.plan_sample import sample
from chainette.run.step_estimates import StepEstimate
from chainette.screen.numbers import amount, clock, dollars
from chainette.utils.plurals import counted
from chainette.utils.remote_files import is_url

__all__ = ["plan"]

_COLUMNS = ("step", "engine", "reused", "shared", "rows", "requests", "tokens in", "tokens out", "time", "cost")


@guarded
def plan(
    task: Annotated[Task, Hidden({"runs"})],
    sampled: Annotated[
        int,
        typer.Option("--sample", metavar="N", min=0, help="Ask N records, evenly spread, through the chain; 0 asks none."),
    ] = 0,
    select: Select = None,
    as_json: AsJson = False,
    *,
    settings: Annotated[
        RunSettings,
        Only({"limit", "seed", "engines_file", "simulate", "dedupe", "reuse", "no_reuse", "price", "key", "columns"}),
    ],
) -> None:
    """Estimate the requests of a run of CHAIN over INPUTS, and their cost.

    As far as answers are known, from the run in DIR, from --reuse and from a sample, rows are counted by sending the input
    through the chain without asking a model. Rows that depend on unknown answers are estimated, and marked by ~.
    If DIR has a run, it is the plan of a resume, with the changes since.

    With --sample, some records are asked, and the other numbers are estimated from their answers, which are kept in
    DIR/.plan/sample; `run -o DIR` uses them. Without a sample and an earlier run, the numbers are an upper bound.
    """
    if task.output is not None and (recorded := RunDir(task.output)).exists():
        settings = replace(settings, dedupe=bool(read_created(recorded).settings.get("dedupe")))
    loaded, compiled = load_plan(task.chain, task.chain_root, task.parameters, settings)
    words = {**asdict(settings), "chain_ref": loaded.reference, "chain_root": str(task.chain_root)}
    options = RunOptions(**words, chain_claim=loaded.claim, parameters=loaded.parameters)
    with tempfile.TemporaryDirectory(prefix="chainette-") as folder:
        inputs = _on_disk(task.inputs, Path(folder) / "inputs", settings.limit)
        directory = RunDir(task.output or folder)
        state, capacities = None, dict[str, int]()
        if sampled:
            run = partial(sample, compiled, inputs, RunDir(directory.sample), options, sampled)
            state, capacities = anyio.run(run)
        foresee = partial(estimate, select=tuple(select or ()), sampled=state, capacities=capacities)
        found = anyio.run(foresee, compiled, inputs, directory, options)
        if task.output is not None and found.requests and not (directory.exists() and sampled):
            save(directory, found)
    warn(compiled.warnings)
    if as_json:
        totals = {"usd": found.usd, "gpu_hours": found.gpu_hours, "requests": found.requests, "seconds": found.seconds}
        print_json([msgspec.to_builtins(found) | totals])
    else:
        _print(found, task.output)


def _on_disk(sources: list[str], folder: Path, limit: int | None) -> str | list[str]:
    """The inputs, with copies in place of URLs: their records are counted, and read several times."""
    if any(map(is_url, sources)):
        sources = [str(path) for path in copy_files(files_at(sources), folder, limit).paths]
    return sources[0] if len(sources) == 1 else sources


_BASIS = {
    "sample": "by a sample of {sampled:,} of {records}, which is kept and not asked again{sample}",
    "earlier run": "by the rows of an earlier run; {records}",
    "at most": "at most, for {records}: one request with the longest answer that max_tokens and the output model "
    "allow, thoughts aside, on every way and in every round. --sample 50 asks some and knows better",
}

_COUNTED = {
    "tokenizer": "counted by the tokenizer of the engine",
    "answers": "estimated: as long as those that were asked",
    "bytes": "estimated: a token for three bytes",
    "": "not counted",
}


def _print(found: Estimate, output: Path | None) -> None:
    screen = console()
    hidden = {name for name, rows in (("reused", found.reused), ("shared", found.shared)) if not round(rows)}
    columns = [name for name in _COLUMNS if name not in hidden]
    table = new_table(columns, numbers=columns[2:], cut=("step", "engine"))
    for step in found.steps:
        cells = _cells(step)
        table.add_row(*(cells[name] for name in columns))
    screen.print(table)
    screen.print()
    for line in _lines(found, output):
        screen.print(line, soft_wrap=True)


def _cells(step: StepEstimate) -> dict[str, str]:
    return {
        "step": step.step,
        "engine": step.engine,
        "reused": f"{step.reused:,}",
        "shared": f"{_about(step)}{step.shared:,.0f}",
        "rows": f"{_about(step)}{step.rows:,.0f}",
        "requests": f"{step.requests:,.0f}",
        "tokens in": "?" if step.prompt_tokens is None else f"{step.prompt_tokens:,.0f}",
        "tokens out": f"{step.completion_tokens:,.0f}",
        "time": "?" if step.seconds is None else clock(step.seconds),
        "cost": amount({"usd": step.usd, "gpu_hours": step.gpu_hours}) if _is_priced(step) else "?",
    }


def _about(step: StepEstimate) -> str:
    return "" if step.exact else "~"


def _lines(found: Estimate, output: Path | None) -> Iterator[str]:
    """The lines below the table."""
    if found.resumed:
        sets = [("--set", f"{name}={text_of(value)}") for name, value in found.parameters.items()]
        flags = [word for pair in (*sets, *(("--select", one) for one in found.select)) for word in pair]
        yield f"as it goes on: {command_line('resume', str(output), *flags)}"
    asked = f" ({dollars(found.sample_usd)})" if found.sample_usd else ""
    yield _BASIS[found.basis].format(sampled=found.sampled, records=counted(found.records, "record"), sample=asked)
    if guessed := [step.step for step in found.steps if _about(step)]:
        called = f", or from {', '.join(found.functions)}, which a plan does not call" if found.functions else ""
        steps = ", ".join(dict.fromkeys(guessed))
        yield f"~ rows of {steps} are estimated: they follow from answers that nobody has yet{called}"
    for method, words in _COUNTED.items():
        if named := [step.step for step in found.steps if step.requests and step.counted_by == method]:
            yield f"tokens in of {', '.join(dict.fromkeys(named))}: {words}"
    for step in found.steps:
        if step.why and round(step.rows):
            yield f"{step.step}: {counted(step.rows, 'row')} to ask{' again' * found.resumed}: {step.why}"
    for step in found.steps:
        if round(step.repeated):
            about = _about(step)
            repeated = f"{about}{step.repeated:,.0f} of {about}{counted(step.rows, 'row')}"
            yield f"{step.step}: {repeated} repeat the request of another row; --dedupe saves these requests"
    if found.simulated:
        yield f"answers of {', '.join(found.simulated)}: simulated, so tokens, time and cost are not those of a model"
    time = "" if found.seconds is None else f", {clock(found.seconds)}"
    yield f"in all: {counted(found.requests, 'request')}, {_total(found)}{time}"


def _total(found: Estimate) -> str:
    missing = next((step.engine for step in found.steps if not _is_priced(step)), "")
    if missing and not found.usd and not found.gpu_hours:
        return f"cost unknown (a price, say --price {missing}=in:0.15,out:0.6, tells it)"
    return amount({"usd": found.usd, "gpu_hours": found.gpu_hours})


def _is_priced(step: StepEstimate) -> bool:
    """Whether a cost is known; a step that asks for no row costs nothing."""
    return bool(step.usd or step.gpu_hours or not step.rows)
