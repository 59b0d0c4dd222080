"""`chainette worker`: one process that serves engines until it is told to stop."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from chainette_workers.metrics.address import MetricsEndpoint
from chainette_workers.runtime import heed_signals
from chainette_workers.sink.worker_processes import Child, supervise
from chainette_workers.worker.configuration import WorkerConfig
from chainette_workers.worker.gpus import CUDA_DEVICES, chosen
from chainette_workers.worker.standalone import serve

from chainette.cli.command_errors import guarded
from chainette.cli.flags import ChainModules, ChainRoot, EngineFile, MetricsFlags, Offers, RedisUrl
from chainette.core.usercode.parameters import settings_of
from chainette.fleet.redis.connect import connect
from chainette.utils.ids import name_problem

__all__ = ["worker"]


Gpus = Annotated[
    str | None,
    typer.Option(
        "--gpu",
        metavar="N | N,M | all",
        help="GPUs to use (indexes into CUDA_VISIBLE_DEVICES if set); `0,1`: both for one model; `all`: a worker for each.",
    ),
]
RowsInFlight = Annotated[
    int | None,
    typer.Option(
        "--rows-in-flight",
        metavar="N",
        min=1,
        help="Rows inside an engine at once [default: twice its capacity, and at least two units].",
    ),
]


@guarded
def worker(
    engine: Annotated[
        list[str] | None,
        typer.Option("--engine", metavar="NAME", help="An engine to serve; repeatable. `python`: functions only."),
    ] = None,
    gpu: Gpus = None,
    redis: RedisUrl = None,
    chain_root: ChainRoot = Path(),
    modules: ChainModules = None,
    settings: Offers = None,
    engines: EngineFile = None,
    rows_in_flight: RowsInFlight = None,
    python: Annotated[bool, typer.Option("--python/--no-python", help="Also run functions (Apply) and joins.")] = True,
    drain_after: Annotated[
        float | None,
        typer.Option(
            "--drain-after",
            metavar="SECONDS",
            min=0,
            help="After SECONDS, finish the work in progress, take no more, and exit.",
        ),
    ] = None,
    *,
    metrics: MetricsFlags,
) -> None:
    """Serve engines to every run on a Redis that needs them, with the chains found below --chain-root.

    `chainette valkey` starts a Redis for this machine. If a chain's files, parameters or prompts differ from those that were
    enqueued, the worker says so and does not serve it. SIGTERM or Ctrl-C hands back unfinished work and exits; a second one
    exits at once.
    """
    _require_names(engine or ())
    gpus = [] if gpu is None else _gpus(gpu)
    config = WorkerConfig(
        redis,
        [name for name in engine or () if name != "python"],
        str(chain_root.resolve()),
        rows_in_flight,
        python or "python" in (engine or ()),
        gpus=1 if gpu == "all" else max(1, len(gpus)),
        engines_file=str(engines.resolve()) if engines else None,
        drain_after=drain_after,
        metrics=MetricsEndpoint(metrics.metrics_host, metrics.metrics_port),
        parameters=settings_of(settings or ()),
        modules=tuple(modules or ()),
    )
    stopping = threading.Event()
    heed_signals(stopping, signal.SIGTERM, signal.SIGINT)
    if gpu == "all":
        connect(redis).close()  # children that cannot reach it would be started again and again
        supervise([Child(config, environment={CUDA_DEVICES: name}) for name in gpus], stopping)
        return
    if gpus:
        os.environ[CUDA_DEVICES] = ",".join(gpus)  # before anything imports torch
    serve(config, stopping)


def _require_names(engines: Sequence[str]) -> None:
    """Raises typer.BadParameter unless at least one engine is named, each as engines may be named."""
    if not engines:
        raise typer.BadParameter("no --engine: name one to serve, or `--engine python` for functions only")
    for name in engines:
        if problem := name_problem(name):
            raise typer.BadParameter(f"--engine {name!r} {problem}")


def _gpus(wanted: str) -> list[str]:
    """The devices to use.

    Raises:
        typer.BadParameter: neither numbers nor "all".
        RunError: this machine has no GPUs, or not that many.
    """
    try:
        return chosen(wanted, os.environ.get(CUDA_DEVICES))
    except ValueError:
        raise typer.BadParameter(f"--gpu {wanted}: expected numbers like 0 or 0,1, or all") from None
