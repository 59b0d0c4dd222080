"""`chainette coordinator` and `chainette sink`: the two halves of `enqueue` as services for many runs."""

from __future__ import annotations

import logging
import signal
import threading
from pathlib import Path

from chainette_workers.metrics.endpoint import Endpoint
from chainette_workers.runtime import heed_signals
from chainette_workers.service.coordinator_service import CoordinatorDuty
from chainette_workers.service.service import Duty, Places, serve
from chainette_workers.service.sink_service import SinkDuty

from chainette.cli.common import guarded
from chainette.cli.flags import ChainRoot, InputsRoot, MetricsHost, MetricsPort, Offers, RedisUrl, RunsRoot
from chainette.core.usercode.parameters import settings_of
from chainette.fleet.redis.connect import chosen_url, shown

__all__ = ["coordinator", "sink"]


@guarded
def coordinator(
    redis: RedisUrl = None,
    settings: Offers = None,
    chain_root: ChainRoot = Path(),
    inputs_root: InputsRoot = Path(),
    runs_root: RunsRoot = Path(),
    metrics_host: MetricsHost = "127.0.0.1",
    metrics_port: MetricsPort = 0,
) -> None:
    """Admit the rows of runs that were handed over (`enqueue --detach`), as a service.

    Reads inputs below --inputs-root, and what the sink wrote below --runs-root, which both must see. Killed at any
    point, the next one goes on; two of them share the runs. SIGTERM and Ctrl-C end it; a second one at once.
    """
    places = Places(chain_root.resolve(), inputs_root.resolve(), runs_root.resolve(), settings_of(settings or ()))
    _serve(redis, CoordinatorDuty(places), metrics_host, metrics_port)


@guarded
def sink(
    redis: RedisUrl = None,
    settings: Offers = None,
    chain_root: ChainRoot = Path(),
    inputs_root: InputsRoot = Path(),
    runs_root: RunsRoot = Path(),
    metrics_host: MetricsHost = "127.0.0.1",
    metrics_port: MetricsPort = 0,
) -> None:
    """Write the directories of runs that were handed over (`enqueue --detach`), as a service.

    They lie below --runs-root. Killed at any point, the next one goes on where their logs end. A run that cannot go on
    (its disk is full, its chain gone) is held, with the reason in `chainette status`. SIGTERM and Ctrl-C end it; a
    second one at once.
    """
    places = Places(chain_root.resolve(), inputs_root.resolve(), runs_root.resolve(), settings_of(settings or ()))
    _serve(redis, SinkDuty(places, shown(chosen_url(redis))), metrics_host, metrics_port)


def _serve(redis: str | None, duty: Duty, metrics_host: str, metrics_port: int) -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    stopping = threading.Event()
    heed_signals(stopping, signal.SIGTERM, signal.SIGINT)
    serve(redis, duty, stopping, metrics=Endpoint(metrics_host, metrics_port))
