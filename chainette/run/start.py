"""From a chain and its options to a run: in a fresh directory, or in none at all."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import anyio.to_thread

from chainette.core.chain import ArrowStream, Chain, Inputs
from chainette.core.plan import Plan
from chainette.engine.budget import budget_of, engine_limits
from chainette.errors import InputError
from chainette.io.inputs.data_frames import spool_frame
from chainette.io.inputs.growing_file import GrowingFile, RowSource
from chainette.io.inputs.hub import HubRows, is_hub
from chainette.io.inputs.locate import open_growing, open_input
from chainette.io.inputs.readers import InputFile
from chainette.io.inputs.remote import RemoteFile, RemoteInputs, copy_files
from chainette.io.inputs.remote_text import RemoteText
from chainette.io.inputs.renaming import Renaming
from chainette.io.inputs.spool import spool
from chainette.io.inputs.validate import InputModel, columns_of
from chainette.io.rundir.directory_swap import finish_swap
from chainette.io.rundir.event_types import RunCreated
from chainette.io.rundir.graph_of_plan import graph_of
from chainette.io.rundir.logged_paths import placed_below, placed_input, way_to
from chainette.io.rundir.open import claim_directory, create, git_commit, versions
from chainette.io.rundir.paths import RunDir
from chainette.io.rundir.result import RunResult
from chainette.io.rundir.scratch import Scratch
from chainette.io.rundir.writer import RunWriter
from chainette.io.tables.columns import require_one_type
from chainette.io.tables.schemas import Added
from chainette.run.options import RunOptions
from chainette.run.planning import compile_plan
from chainette.run.resumption import resume
from chainette.run.session import Deliver, check_drive, finish_run, local_run, rates_of, roots_of
from chainette.utils.ids import new_run_id
from chainette.utils.remote_files import is_url

__all__ = ["begin", "iterate", "open_files", "start"]

_log = logging.getLogger("chainette")


async def start(
    chain: Chain | Plan,
    inputs: Inputs,
    output_dir: str | os.PathLike[str] | None,
    options: RunOptions,
    deliver: Deliver | None = None,
) -> RunResult:
    """Runs a chain into a fresh directory, or resumes the one that is there if `options.resume` is set."""
    run_id = options.run_id or new_run_id()
    directory = RunDir(output_dir or Path("runs") / run_id)
    if options.select and not options.resume:
        raise InputError("select names rows of a run that is resumed; give resume=True too")
    if options.resume:
        await anyio.to_thread.run_sync(finish_swap, directory)
    if options.resume and directory.exists():
        paths = _paths(inputs)
        given = [paths] if isinstance(paths, str | os.PathLike) else paths or ()
        if elsewhere := [inputs] if is_hub(inputs) else _urls(inputs):
            return await resume(directory, chain, replace(options, inputs=elsewhere))
        return await resume(directory, chain, replace(options, inputs=given, source=None if paths else _source(inputs)))
    plan = _compiled(chain, options)
    if RunDir(directory.sample).exists():  # it was asked for a plan of this directory
        options = replace(options, reuse=(*options.reuse, str(directory.sample)))
    await check_drive(plan, options)
    writer, source = await anyio.to_thread.run_sync(begin, directory, run_id, plan, inputs, options)
    return await finish_run(plan, source, writer, options, deliver)


async def iterate(
    chain: Chain | Plan,
    inputs: Inputs,
    output_dir: str | os.PathLike[str] | None,
    options: RunOptions,
    deliver: Deliver | None = None,
) -> None:
    """Delivers finished rows; writes nothing unless there is a directory.

    Raises:
        InputError: a drive is to move the units, which delivers no rows.
    """
    if options.drive is not None:
        raise InputError(
            "run_iter and stream do their work in this process: leave out drive, "
            "or call chain.run(inputs, output_dir, drive=...) and read the rows of its result"
        )
    if output_dir is not None:
        await start(chain, inputs, output_dir, options, deliver)
        return
    plan = _compiled(chain, options)
    await check_drive(plan, options)
    with tempfile.TemporaryDirectory(prefix="chainette-") as folder:
        rows = await anyio.to_thread.run_sync(_pinned, inputs)
        source = await anyio.to_thread.run_sync(_open_or_spool, rows, Path(folder), plan, options)
        roots = roots_of(plan, source, options)
        budget = budget_of(options.budget, rates_of(plan), engine_limits(plan.engines))
        writer = Scratch(plan, options.wanted(plan), budget)
        try:
            sources, pending = options.sources(Path(folder) / "answers"), partial(roots.pending, writer.is_done)
            async with local_run(plan, pending, writer, options, sources, deliver) as local:
                await local.run()
        finally:
            source.close()


def _compiled(chain: Chain | Plan, options: RunOptions) -> Plan:
    """The plan; warnings about a chain nobody has compiled before go to the log of the process."""
    plan = compile_plan(chain, options)
    for problem in plan.warnings if isinstance(chain, Chain) else ():
        _log.warning("%s", problem)
    return plan


def begin(directory: RunDir, run_id: str, plan: Plan, inputs: Inputs, options: RunOptions) -> tuple[RunWriter, InputFile]:
    """Checks the input, then takes the directory, so that a mistyped path leaves nothing behind."""
    require_one_type({name: plan.types[name] for name in plan.columns}, options.format)
    source = open_files(inputs, plan, options)
    rows = _pinned(inputs)
    log = claim_directory(directory)
    try:
        source = source or _open_or_spool(rows, directory.inputs, plan, options)
        created = RunCreated(
            run_id=run_id,
            chain=plan.chain,
            chain_ref=options.chain_ref,
            chain_root=options.chain_root,
            graph=graph_of(plan, Added.of(options.recorded)),
            settings=_recorded_settings(options) | {"batch_size": plan.batch_size, "accept": options.wanted(plan)},
            input=placed_input(source.identity(), directory, options.chain_root),
            versions=versions(),
            git=git_commit(Path(options.chain_root or ".")),
            way_to_chain=way_to(options.chain_root, directory),
            way=options.way,
        )
        return create(directory, log, plan, created), source
    except BaseException:
        log.close()
        raise


def _recorded_settings(options: RunOptions) -> dict[str, Any]:
    """The settings, with the engine file as it is found again in a project that moved."""
    settings, file = options.recorded, options.engines_file
    below = placed_below(file, options.chain_root) if file and options.chain_root else None
    return settings | {"engines_file": below} if below else settings


def open_files(inputs: Inputs, plan: Plan, options: RunOptions) -> InputFile | None:
    """The input if it lies in files of the user's."""
    paths = _paths(inputs)
    return None if paths is None else _checked(open_input(paths, limit=options.limit), plan, options)


def _paths(inputs: Inputs) -> str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None:
    """The paths that `inputs` is made of; None if it holds rows or a URL.

    Raises:
        InputError: standard input among files.
    """
    if isinstance(inputs, str | os.PathLike):
        return None if inputs == "-" or is_url(inputs) or is_hub(inputs) else inputs
    if not isinstance(inputs, Sequence) or not inputs or not all(isinstance(item, str | os.PathLike) for item in inputs):
        return None
    paths = cast("Sequence[str | os.PathLike[str]]", inputs)
    if "-" in paths:
        raise InputError("- (standard input) cannot be read together with files; pipe them in too, or write it to a file first")
    if any(map(is_hub, paths)):
        raise InputError("a data set of the hub (hf:) cannot be read together with other inputs; run it alone")
    return None if any(map(is_url, paths)) else paths


def _pinned(inputs: Inputs) -> Inputs | HubRows | RemoteInputs:
    """The inputs; a data set of the hub at its present commit, and the files that are at URLs now."""
    if is_hub(inputs):
        return HubRows.pinned(inputs)
    return RemoteInputs.of(urls) if (urls := _urls(inputs)) else inputs


def _open_or_spool(inputs: Inputs | HubRows | RemoteInputs, folder: Path, plan: Plan, options: RunOptions) -> InputFile:
    """The input; others go to a file in `folder`: whole, or, if they may never end or come from the hub, as they are read."""
    if isinstance(inputs, HubRows):
        return _checked(open_growing(GrowingFile(folder / "0.jsonl", inputs), limit=options.limit), plan, options)
    if isinstance(inputs, RemoteInputs):
        return _checked(_copied(inputs, folder, plan, options), plan, options)
    found = open_files(inputs, plan, options)
    if found is not None:
        return found
    if options.wanted(plan) is not None and _may_never_end(inputs):
        path = folder / ("0" if _is_stdin(inputs) else "0.jsonl")
        return _checked(open_growing(GrowingFile(path, _source(inputs)), limit=options.limit), plan, options)
    return _checked(open_input(_spooled(inputs, folder), limit=options.limit), plan, options)


def _urls(inputs: Inputs) -> Sequence[str | os.PathLike[str]]:
    """The inputs, if at least one of them is a URL."""
    sources = [inputs] if isinstance(inputs, str) else inputs
    return sources if isinstance(sources, Sequence) and any(map(is_url, sources)) else ()


def _copied(inputs: RemoteInputs, folder: Path, plan: Plan, options: RunOptions) -> InputFile:
    """Files at URLs, copied to `folder`: all of them, or, if the run stops early, as much as it needs."""
    files, stops = inputs.files, options.limit is not None or options.wanted(plan) is not None
    if stops and len(files) == 1 and isinstance(file := files[0], RemoteFile):
        path = folder / f"0-{file.text_name}"
        for left in (path, path.with_name(f"{path.name}.open")):  # by an attempt that never became a run
            left.unlink(missing_ok=True)
        text = RemoteText(file.url, inputs.urls[0])
        return open_growing(GrowingFile(path, text), limit=options.limit)
    copies = copy_files(files, folder, options.limit)
    found = open_input(copies.paths, limit=options.limit)
    found.origin = {"urls": inputs.urls} | ({"rest": copies.rest} if copies.rest else {})
    return found


def _may_never_end(inputs: Inputs) -> bool:
    return _is_stdin(inputs) or not isinstance(inputs, Sequence | ArrowStream)


def _is_stdin(inputs: Inputs) -> bool:
    return isinstance(inputs, str) and inputs == "-"  # a frame compares its cells


def _source(inputs: Inputs) -> RowSource | None:
    """Standard input, or rows; None if their records are in a file already."""
    if _is_stdin(inputs):
        return sys.stdin.buffer
    return None if isinstance(inputs, ArrowStream) else cast("RowSource", inputs)


def _spooled(inputs: Any, folder: Path) -> Path | Sequence[str | os.PathLike[str]]:
    if isinstance(inputs, str):
        return spool(sys.stdin.buffer, folder / "0")
    if isinstance(inputs, ArrowStream):
        return spool_frame(inputs, folder / "0.parquet")
    return spool(inputs, folder / "0.jsonl")


def _checked(source: InputFile, plan: Plan, options: RunOptions) -> InputFile:
    """The input, if it has the columns the run needs.

    Raises:
        InputError: it has not.
    """
    InputModel(plan.input_model, renaming=Renaming(options.filled_from)).require_columns(source)
    return _with_key(source, options.key)


def _with_key(source: InputFile, key: str | None) -> InputFile:
    """The input, if it has the key column; of JSONL the first records are looked at.

    Raises:
        InputError: it has not.
    """
    if key is None:
        return source
    columns = columns_of(source)
    if columns and key not in columns:
        raise InputError(f"--key {key!r}: the input has no such column; it has {', '.join(columns)}")
    return source
