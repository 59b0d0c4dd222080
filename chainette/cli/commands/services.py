"""`chainette coordinator` and `chainette sink`: the two halves of `enqueue`, as services for many runs."""

from __future__ import annotations

import logging
import signal
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from chainette_workers.metrics.address import MetricsEndpoint
from chainette_workers.runtime import heed_signals
from chainette_workers.service.coordinator_service import CoordinatorDuty
from chainette_workers.service.service import Duty, Places, serve
from chainette_workers.service.sink_service import SinkDuty

from chainette.cli.command_errors import guarded
from chainette.cli.flags import ChainModules, ChainRoot, InputsRoot, MetricsFlags, Offers, RedisUrl, RunsRoot
from chainette.core.usercode.parameters import settings_of
from chainette.fleet.redis.connect import chosen_url, shown
from chainette.utils.terminal_text import SafeFormatter

__all__ = ["coordinator", "sink"]


@dataclass(frozen=True, kw_only=True)
class FolderFlags:
    """The folders a service takes relative paths to start from, and the parameters that it offers."""

    parameters: Offers = None
    chain_root: ChainRoot = Path()
    modules: ChainModules = None
    inputs_root: InputsRoot = Path()
    runs_root: RunsRoot = Path()

    @property
    def places(self) -> Places:
        chains, inputs, runs = (root.resolve() for root in (self.chain_root, self.inputs_root, self.runs_root))
        return Places(chains, inputs, runs, settings_of(self.parameters or ()), tuple(self.modules or ()))


@guarded
def coordinator(
    redis: RedisUrl = None,
    *,
    roots: FolderFlags,
    metrics: MetricsFlags,
    sd_all: Annotated[
        bool,
        typer.Option(
            "--sd-all", help="Let /sd name members at any address that Redis has, not only on this machine or sealed."
        ),
    ] = False,
) -> None:
    """Admit the rows of runs that were queued with `enqueue --detach`, as a service.

    It reads inputs below --inputs-root and the run directories the sink writes below --runs-root, so both need that
    folder. If it is killed, the next one continues; several share the runs. SIGTERM or Ctrl-C ends it, a second one at once.
    """
    _serve(redis, CoordinatorDuty(roots.places), metrics, anywhere=sd_all)


@guarded
def sink(redis: RedisUrl = None, *, roots: FolderFlags, metrics: MetricsFlags) -> None:
    """Write the directories of runs that were queued with `enqueue --detach`, as a service.

    They are below --runs-root. If it is killed, the next one continues where their logs end. A run that cannot continue (its
    disk is full, its chain is gone) is paused, with the reason in `chainette status`. SIGTERM or Ctrl-C ends it, a second
    one at once.
    """
    _serve(redis, SinkDuty(roots.places, shown(chosen_url(redis))), metrics)


def _serve(redis: str | None, duty: Duty, metrics: MetricsFlags, *, anywhere: bool = False) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(SafeFormatter("%(asctime)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    stopping = threading.Event()
    heed_signals(stopping, signal.SIGTERM, signal.SIGINT)
    serve(redis, duty, stopping, metrics=MetricsEndpoint(metrics.metrics_host, metrics.metrics_port, anywhere))
