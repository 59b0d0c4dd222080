"""`chainette worker`: one process that serves engines, until it is told to stop."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Annotated

import typer
from chainette_workers.metrics.endpoint import Endpoint
from chainette_workers.runtime import heed_signals
from chainette_workers.sink.supervise import Child, supervise
from chainette_workers.worker.gpus import CUDA_DEVICES, chosen
from chainette_workers.worker.main import WorkerConfig, serve

from chainette.cli.common import guarded
from chainette.cli.flags import ChainRoot, EngineFile, MetricsHost, MetricsPort, Offers, RedisUrl
from chainette.core.usercode.parameters import settings_of
from chainette.fleet.redis.connect import connect
from chainette.utils.ids import name_problem

__all__ = ["worker"]


@guarded
def worker(
    engine: Annotated[
        list[str] | None,
        typer.Option("--engine", metavar="NAME", help="An engine to serve; repeatable. `python`: functions only."),
    ] = None,
    gpu: Annotated[
        str | None,
        typer.Option(
            "--gpu",
            metavar="N | N,M | all",
            help="GPUs to use, counted in CUDA_VISIBLE_DEVICES where set; `0,1`: both for one model; `all`: a worker for each.",
        ),
    ] = None,
    redis: RedisUrl = None,
    chain_root: ChainRoot = Path(),
    settings: Offers = None,
    engines: EngineFile = None,
    rows_in_flight: Annotated[
        int | None,
        typer.Option(
            "--rows-in-flight",
            metavar="N",
            min=1,
            help="Rows inside an engine at once [default: twice what it answers at once, and two units at least].",
        ),
    ] = None,
    python: Annotated[bool, typer.Option("--python/--no-python", help="Also run functions (Apply) and joins.")] = True,
    drain_after: Annotated[
        float | None,
        typer.Option(
            "--drain-after", metavar="SECONDS", min=0, help="Take nothing more after so long, finish what is in hand, and end."
        ),
    ] = None,
    metrics_host: MetricsHost = "127.0.0.1",
    metrics_port: MetricsPort = 0,
) -> None:
    """Serve engines: take units of every run on the Redis that needs them, with the chains found below --chain-root.

    A chain whose files, parameters or prompts differ from those that were enqueued is not served, and the worker says so.
    SIGTERM and Ctrl-C hand back what is unfinished; a second one ends the process at once.
    """
    if not engine:
        raise typer.BadParameter("--engine says what to serve; name one, or `--engine python` for functions only")
    for name in engine:
        if problem := name_problem(name):
            raise typer.BadParameter(f"--engine {name!r} {problem}")
    stopping = threading.Event()
    heed_signals(stopping, signal.SIGTERM, signal.SIGINT)
    names = [name for name in engine if name != "python"]
    root, file = str(chain_root.resolve()), str(engines.resolve()) if engines else None
    functions, endpoint = python or "python" in engine, Endpoint(metrics_host, metrics_port)
    gpus = [] if gpu is None else _gpus(gpu)
    together = 1 if gpu == "all" else max(1, len(gpus))
    config = WorkerConfig(
        redis,
        names,
        root,
        rows_in_flight,
        functions,
        gpus=together,
        engines_file=file,
        drain_after=drain_after,
        metrics=endpoint,
        parameters=settings_of(settings or ()),
    )
    if gpu == "all":
        connect(redis).close()  # children that cannot reach it would be started again and again
        supervise([Child(config, environment={CUDA_DEVICES: name}) for name in gpus], stopping)
        return
    if gpus:
        os.environ[CUDA_DEVICES] = ",".join(gpus)  # before anything imports torch
    serve(config, stopping)


def _gpus(wanted: str) -> list[str]:
    """Raises:
    typer.BadParameter: neither numbers nor "all".
    RunError: there are none, or not so many.
    """
    try:
        return chosen(wanted, os.environ.get(CUDA_DEVICES))
    except ValueError:
        raise typer.BadParameter(f"--gpu {wanted}: expected numbers like 0 or 0,1, or all") from None
