"""`chainette run`: a chain over an input, into a run directory."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from chainette.cli.common import guarded, warn
from chainette.cli.flags import (
    ChainRef,
    ChainRoot,
    Debug,
    EngineFile,
    Format,
    JsonLogs,
    MaxRejectRate,
    MetricsHost,
    MetricsPort,
    OverRedis,
    Patience,
    Quiet,
    Settings,
    Show,
    Stream,
    Window,
    Workers,
)
from chainette.cli.launch import Telling, launch, load_plan
from chainette.cli.way import drive_of
from chainette.io.rundir.paths import RunDir
from chainette.run import executor
from chainette.utils.ids import new_run_id

__all__ = ["MOST_STREAMED", "run"]

#: Rows that `--stream` shows at most.
MOST_STREAMED = 100


@guarded
def run(
    context: typer.Context,
    chain: ChainRef,
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUTS...",
            help="JSONL, CSV, TSV or Parquet: files, folders or 'patterns*', read one after another; - for standard input.",
        ),
    ],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="DIR", help="The run directory [default: runs/<run id>].")
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", metavar="N", min=1, help="Take the first N records.")] = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", metavar="N", min=1, help="Rows per unit of work [default: the chain's].")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Every request's sampling seed is derived from it.")] = 0,
    format: Annotated[Format, typer.Option("--format", help="How rows are written.")] = Format.JSONL,
    max_rows_per_file: Annotated[
        int, typer.Option("--max-rows-per-file", metavar="N", min=1, help="Rows per shard.")
    ] = 100_000,
    flattened: Annotated[
        bool, typer.Option("--flattened/--no-flattened", help="Also write one row per item across all steps.")
    ] = True,
    key: Annotated[
        str | None, typer.Option("--key", metavar="FIELD", help="Copy this input column into every shard, as _key.")
    ] = None,
    usage: Annotated[
        bool, typer.Option("--usage", help="Also write what each row's answers took: tokens, seconds queued, seconds in all.")
    ] = False,
    settings: Settings = None,
    engines: EngineFile = None,
    simulate: Annotated[bool, typer.Option("--simulate", help="Answers drawn from the schemas; no model is asked.")] = False,
    chain_root: ChainRoot = Path(),
    max_reject_rate: MaxRejectRate = None,
    engine_patience: Patience = 600.0,
    window: Window = None,
    workers: Workers = None,
    redis: OverRedis = None,
    metrics_host: MetricsHost = "127.0.0.1",
    metrics_port: MetricsPort = 0,
    quiet: Quiet = False,
    json_logs: JsonLogs = False,
    show: Show = False,
    stream: Stream = False,
    debug: Debug = False,
    stream_writer: Annotated[
        bool, typer.Option("--stream-writer", help="Always on: rows are written as they come. Accepted for old scripts.")
    ] = False,
) -> None:
    """Run CHAIN over INPUTS into a run directory.

    Ctrl-C leaves a directory that `chainette resume` goes on with. Exit codes: 0 done, 1 error, 2 usage,
    3 done with rejected rows, 130 interrupted.
    """
    del stream_writer
    enqueue, metrics = context.info_name == "enqueue", (metrics_host, metrics_port)
    telling = Telling(quiet, json_logs, show, debug, stream)
    drive = drive_of(workers, redis, metrics, enqueue=enqueue, watching=telling.watching)
    if stream and (limit is None or limit > MOST_STREAMED):
        raise typer.BadParameter(f"--stream is for looking at a few rows; add --limit 1, or at most {MOST_STREAMED}")

    run_id, here = new_run_id(), Path.cwd()
    directory = RunDir(output or Path("runs") / run_id)
    with telling.foreign_output():
        loaded, plan = load_plan(chain, chain_root, engines, settings, simulate=simulate, batch_size=batch_size)
    if not quiet:
        warn(plan.warnings)
    sources = [path if path == "-" or Path.cwd() == here else str(here / path) for path in inputs]  # the chain may have moved
    launch(
        directory,
        telling,
        lambda hooks: executor.run(
            loaded.chain,
            sources[0] if len(sources) == 1 else sources,
            directory,
            run_id=run_id,
            limit=limit,
            batch_size=batch_size,
            seed=seed,
            format=format.value,
            max_rows_per_file=max_rows_per_file,
            flattened=flattened,
            key=key,
            usage=usage,
            engines_file=str(engines) if engines else None,
            simulate=simulate,
            max_reject_rate=max_reject_rate,
            engine_patience=engine_patience,
            window=window,
            chain_ref=loaded.reference,
            chain_root=str(chain_root),
            chain_digest=loaded.digest,
            parameters=loaded.parameters,
            hooks=hooks,
            drive=drive,
        ),
        plan,
    )
