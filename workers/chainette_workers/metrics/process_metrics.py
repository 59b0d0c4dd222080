"""The metrics of one process for Prometheus.

Hooks count in a registry that belongs to the process. Every series exists from the start, at zero.
"""

from __future__ import annotations

import platform
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.metadata import version
from typing import Any

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from chainette.core.plan import Plan
from chainette.fleet.redis.fleet_view import Fleet
from chainette.hooks import Hook
from chainette.io.rundir.event_types import (
    EngineLoaded,
    EngineReleased,
    Event,
)
from chainette.records import PYTHON
from chainette_workers.metrics.catalogue import CATALOGUE, Metric, MetricType, ProcessKind
from chainette_workers.metrics.fleet_collector import FleetCollector
from chainette_workers.metrics.run_series import SeriesOfRuns

__all__ = ["Metrics"]

#: Any other escaping would replace the colon in vLLM's names with "_".
_OPEN_METRICS = "application/openmetrics-text; version=1.0.0; escaping=allow-utf-8"


class Metrics(Hook, Collector):
    """The metrics of a process of these kinds. Thread-safe."""

    def __init__(
        self,
        *parts: ProcessKind,
        engines: Iterable[str] = (),
        look: Callable[[], Fleet | None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.parts = frozenset(parts) | {ProcessKind.ALL}
        #: The engines that a worker serves.
        self.engines = frozenset(engines)
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        mine = [metric for metric in CATALOGUE if metric.part in self.parts - {ProcessKind.FLEET}]
        self._made = {metric.name: _make(metric, self._registry) for metric in mine}
        self._made["chainette_build_info"].info({"version": version("chainette"), "python": platform.python_version()})
        if ProcessKind.FLEET in self.parts:
            self._registry.register(FleetCollector(look, clock))
        self._runs = SeriesOfRuns(self, clock)
        self._busy = (
            {name: _Busy(self, name, clock) for name in self.engines - {PYTHON}} if ProcessKind.WORKER in self.parts else {}
        )
        self._loaded = _Loads(self, self._busy)

    def series(self, name: str, *labels: str) -> Any:
        """One series of a metric, which begins at zero."""
        return self._made[name].labels(*labels) if labels else self._made[name]

    def read(self, name: str, value: Callable[[], float]) -> None:
        """Makes a gauge call `value` at each scrape."""
        self._made[name].set_function(value)

    # -- events

    def of_run(self, run: str, plan: Plan) -> Hook:
        return self._runs.open(run, plan)

    def forget_run(self, run: str) -> None:
        self._runs.close(run)

    def on_event(self, event: Event) -> None:
        match event:
            case EngineLoaded():
                self._loaded.add(event)
            case EngineReleased():
                self._loaded.remove(event)

    def on_generating(self, engine: str, requests: int) -> None:
        if engine in self._busy:
            self._busy[engine].change(requests)

    def on_generated(self, engine: str, requests: int) -> None:
        if engine in self._busy:
            self._busy[engine].change(-requests)

    def on_lease_lost(self) -> None:
        self.series("chainette_leases_lost_total").inc()

    def on_workers_lost(self, workers: Sequence[str]) -> None:
        self.series("chainette_workers_lost_total").inc(len(workers))

    # -- exposition

    def text(self, accept: str) -> tuple[str, bytes]:
        """(content type, exposition), in OpenMetrics if the client accepts it, otherwise in the older format."""
        encode, kind = choose_encoder(_OPEN_METRICS if "application/openmetrics-text" in accept else "")
        return kind, encode(self)

    def collect(self) -> Iterator[Family]:
        """All metric families, including vLLM's if this process runs vLLM."""
        self._runs.drop_old()
        for busy in self._busy.values():
            busy.change(0)
        seen = set()
        for registry in (self._registry, *[REGISTRY][: "vllm" in sys.modules]):
            for family in registry.collect():
                if family.name not in seen:
                    seen.add(family.name)
                    family.samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
                    yield family

    def remove(self, name: str, *labels: str) -> None:
        """Removes one series."""
        self._made[name].remove(*labels)


class _Busy:
    """Counts the seconds during which an engine has at least one request."""

    def __init__(self, metrics: Metrics, engine: str, clock: Callable[[], float]) -> None:
        self._seconds = metrics.series("chainette_engine_busy_seconds_total", engine)
        self._inside = metrics.series("chainette_engine_requests_in_flight", engine)
        self._clock = clock
        self._lock = threading.Lock()
        self._requests = 0
        self._since = clock()

    def change(self, requests: int) -> None:
        """Adds to the requests in flight; 0 only updates the seconds."""
        with self._lock:
            now = self._clock()
            if self._requests:
                self._seconds.inc(now - self._since)
            self._since = now
            self._requests += requests
            self._inside.set(self._requests)


class _Loads:
    """Counts loads and swaps of a worker's engines."""

    def __init__(self, metrics: Metrics, engines: Iterable[str]) -> None:
        self._metrics = metrics
        self._released = ""
        for engine in engines:
            for name in ("loads_total", "load_seconds_total", "swaps_total", "loaded"):
                self._of(name, engine)

    def _of(self, name: str, engine: str) -> Any:
        return self._metrics.series(f"chainette_engine_{name}", engine)

    def add(self, event: EngineLoaded) -> None:
        self._of("loads_total", event.engine).inc()
        self._of("load_seconds_total", event.engine).inc(event.seconds)
        self._of("loaded", event.engine).set(1)
        if self._released not in ("", event.engine):
            self._of("swaps_total", event.engine).inc()
        self._released = ""

    def remove(self, event: EngineReleased) -> None:
        self._of("loaded", event.engine).set(0)
        self._released = event.engine


def _make(metric: Metric, registry: CollectorRegistry) -> Any:
    """The prometheus_client object of a metric; if it has labels, it has no series yet."""
    name, unit = metric.name.removesuffix("_total").removesuffix("_info"), metric.unit
    match metric.kind:
        case MetricType.COUNTER:
            return Counter(name, metric.meaning, metric.labels, registry=registry, unit=unit)
        case MetricType.GAUGE:
            return Gauge(name, metric.meaning, metric.labels, registry=registry, unit=unit)
        case MetricType.HISTOGRAM:
            return Histogram(name, metric.meaning, metric.labels, registry=registry, unit=unit, buckets=metric.buckets)
        case MetricType.INFO:
            return Info(name, metric.meaning, registry=registry)
