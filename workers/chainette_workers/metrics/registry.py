"""The metrics of one process for Prometheus.

Hooks count into a registry that belongs to the process. Every series exists from the start, at zero. The series of a run
are dropped some time after the run is closed, which bounds their number.
"""

from __future__ import annotations

import platform
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.metadata import version
from itertools import product
from typing import Any

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from chainette.core.plan import Plan
from chainette.core.plan_node import NodeKind
from chainette.core.targets import ToWays
from chainette.engine.price import Rate
from chainette.fleet.redis.fleet_view import Fleet
from chainette.hooks import Hook, Stage
from chainette.io.rundir.event_types import (
    AnswersDiscarded,
    EngineLoaded,
    EngineProbed,
    EngineReleased,
    Event,
    UnitCommitted,
    UnitRetried,
)
from chainette.records import CHAIN_INPUT, PYTHON, Reason, declared_of
from chainette.run.session import rates_of
from chainette_workers.metrics.catalogue import CATALOGUE, Metric, MetricType, ProcessKind
from chainette_workers.metrics.fleet_collector import FleetCollector

__all__ = ["Metrics"]

#: Seconds that the series of a closed run stay, so that the last scrape sees its last rows; and the most such runs.
_LINGER, _MOST_CLOSED = 600.0, 32

#: Series of one run.
_MOST_OF_RUN = 50_000

#: The outcome of a row at an engine of an escalating step.
_OUTCOMES = ("out", "rejected", "escalated")
_OF_STEP = frozenset(Reason) - {Reason.INVALID_INPUT, Reason.APPLY_ERROR, Reason.NO_CASE, Reason.EXHAUSTED, Reason.TOO_FEW}
_OF_FUNCTION = frozenset({Reason.APPLY_ERROR, Reason.POISON, Reason.TOO_LARGE})
_OF_PICK = _OF_STEP | {Reason.APPLY_ERROR, Reason.TOO_FEW}
_OF_DECISION = _OF_FUNCTION | {Reason.TEMPLATE_ERROR, Reason.NO_CASE, Reason.EXHAUSTED}

#: Other escapings would turn the colon in vLLM's names into "_".
_OPEN_METRICS = "application/openmetrics-text; version=1.0.0; escaping=allow-utf-8"


class Metrics(Hook, Collector):
    """The metrics of a process that plays these parts. Thread-safe."""

    def __init__(
        self,
        *parts: ProcessKind,
        engines: Iterable[str] = (),
        look: Callable[[], Fleet | None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.parts = frozenset(parts) | {ProcessKind.ALL}
        #: Those that a worker serves.
        self.engines = frozenset(engines)
        self._clock = clock
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        mine = [metric for metric in CATALOGUE if metric.part in self.parts - {ProcessKind.FLEET}]
        self._made = {metric.name: _make(metric, self._registry) for metric in mine}
        self._made["chainette_build_info"].info({"version": version("chainette"), "python": platform.python_version()})
        if ProcessKind.FLEET in self.parts:
            self._registry.register(FleetCollector(look, clock))
        self._runs: dict[str, _OfRun] = {}
        self._closed: dict[str, float] = {}
        self._busy = (
            {name: _Busy(self, name, clock) for name in self.engines - {PYTHON}} if ProcessKind.WORKER in self.parts else {}
        )
        self._loaded = _Loads(self, self._busy)

    def series(self, name: str, *labels: str) -> Any:
        """One series of a metric; it begins at zero."""
        return self._made[name].labels(*labels) if labels else self._made[name]

    def read(self, name: str, value: Callable[[], float]) -> None:
        """Makes a gauge call `value` at each scrape."""
        self._made[name].set_function(value)

    # -- events

    def of_run(self, run: str, plan: Plan) -> Hook:
        self._closed.pop(run, None)
        of_run = self._runs.setdefault(run, _OfRun(self, run))
        of_run.expect(plan)
        return of_run

    def forget_run(self, run: str) -> None:
        if run in self._runs:
            self._closed.setdefault(run, self._clock())
        self._drop_old()

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
        """(content type, exposition): OpenMetrics if the reader accepts it, else the older format."""
        encode, kind = choose_encoder(_OPEN_METRICS if "application/openmetrics-text" in accept else "")
        return kind, encode(self)

    def collect(self) -> Iterator[Family]:
        """All families; vLLM's own too if this process runs it."""
        self._drop_old()
        for busy in self._busy.values():
            busy.change(0)
        seen = set()
        for registry in (self._registry, *[REGISTRY][: "vllm" in sys.modules]):
            for family in registry.collect():
                if family.name not in seen:
                    seen.add(family.name)
                    family.samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
                    yield family

    def _drop_old(self) -> None:
        """Drops runs that were closed long ago, and the oldest closed ones if there are too many."""
        closed = sorted(self._closed.items(), key=lambda item: item[1])
        for number, (run, at) in enumerate(closed):
            if at <= self._clock() - _LINGER or number < len(closed) - _MOST_CLOSED:
                self._closed.pop(run, None)
                if (of_run := self._runs.pop(run, None)) is not None:
                    of_run.drop()

    def remove(self, name: str, *labels: str) -> None:
        """Removes one series."""
        self._made[name].remove(*labels)


class _OfRun(Hook):
    """The series of one run in a process."""

    def __init__(self, metrics: Metrics, run: str) -> None:
        self._metrics = metrics
        self._run = run
        self._series: dict[tuple[str, ...], Any] = {}
        #: Step -> its first engine; engine -> how it is charged.
        self._engines: dict[str, str] = {}
        self._rates: dict[str, Rate] = {}
        #: Node of a loop -> the number of its round.
        self._rounds: dict[str, str] = {}

    def _of(self, name: str, *labels: str) -> Any:
        key = (name, *labels)
        series = self._series.get(key)
        if series is None and len(self._series) >= _MOST_OF_RUN and {*labels} - {"other"}:
            return self._of(name, *("other" for _ in labels))
        if series is None:
            series = self._series[key] = self._metrics.series(name, self._run, *labels)
        return series

    def expect(self, plan: Plan) -> None:
        """Creates every series the plan can need, at zero."""
        if ProcessKind.SINK in self._metrics.parts:
            self._engines, self._rates = {node.id: node.engine for node in plan.nodes.values()}, rates_of(plan)
            self._expect_results(plan)
        if ProcessKind.WORKER in self._metrics.parts:
            self._of("chainette_commits_refused_total")
            for node in plan.depths:
                if plan.engine_of(node) in self._metrics.engines:
                    for stage in Stage:
                        self._of("chainette_unit_stage_seconds", declared_of(node), stage)

    def _expect_results(self, plan: Plan) -> None:
        for name in (
            "chainette_rows_finished_total",
            "chainette_messages_aside_total",
            "chainette_sink_written_bytes_total",
            "chainette_sink_fsync_seconds",
        ):
            self._of(name)
        for node in (CHAIN_INPUT, *_nodes(plan)):
            self._of("chainette_rows_done_total", node)
            for reason in sorted(_reasons(plan, node)):
                self._of("chainette_rows_rejected_total", node, reason)
        for node in _nodes(plan):
            self._of("chainette_rows_dropped_total", node)
            self._of("chainette_rows_reused_total", node)
            self._of("chainette_rows_shared_total", node)
            self._of("chainette_units_retried_total", node)
        for step in (name for name in _nodes(plan) if name in plan.nodes and plan.nodes[name].kind is NodeKind.STEP):
            for name in ("chainette_rows_retried_total", "chainette_prompt_tokens_total", "chainette_completion_tokens_total"):
                self._of(name, step)
            for name in ("chainette_cost_usd_total", "chainette_gpu_seconds_total"):
                self._of(name, step)
        for asked in (node for node in plan.steps if node.told_engine):
            for engine, outcome in product(asked.engines, _OUTCOMES):
                self._of("chainette_engine_rows_total", asked.id, engine, outcome)
        self._rounds = {node.id: node.round.path for node in plan.nodes.values() if node.round is not None}
        for decision in plan.nodes.values():
            for way, _ in decision.next.ways if isinstance(decision.next, ToWays) else ():
                self._of("chainette_decisions_total", declared_of(decision.id), way, self._rounds.get(decision.id, ""))
        for asked in (node for node in plan.steps if node.samples > 1):
            self._of("chainette_candidates_invalid_total", asked.id)

    def drop(self) -> None:
        """Removes its series from the metrics of the process."""
        for name, *labels in self._series:
            self._metrics.remove(name, self._run, *labels)
        self._series.clear()

    def on_event(self, event: Event) -> None:
        match event:
            case UnitCommitted():
                self._count(event)
            case AnswersDiscarded() | EngineProbed():
                self._charge(event)
            case UnitRetried():
                self._of("chainette_units_retried_total", declared_of(event.node)).inc()

    def _count(self, event: UnitCommitted) -> None:
        node, usage = declared_of(event.node), event.usage
        for reason, rows in event.reasons.items():
            self._of("chainette_rows_rejected_total", node, reason).inc(rows)
        self._of("chainette_sink_written_bytes_total").inc(sum(end - start for start, _, end, _ in event.off.values()))
        if node != CHAIN_INPUT:
            self._of("chainette_rows_done_total", node).inc(event.given)
            self._of("chainette_rows_dropped_total", node).inc(len(event.dropped))
            self._of("chainette_rows_reused_total", node).inc(event.reused)
            self._of("chainette_rows_shared_total", node).inc(event.shared)
        for way, rows in event.ways.items():
            self._of("chainette_decisions_total", node, way, self._rounds.get(event.node, "")).inc(rows)
        if event.invalid:
            self._of("chainette_candidates_invalid_total", node).inc(event.invalid)
        if event.engine:
            for outcome, rows in zip(_OUTCOMES, (event.given, event.rejected, event.escalated), strict=True):
                self._of("chainette_engine_rows_total", node, event.engine, outcome).inc(rows)
        if usage.requests:
            first_asks = event.taken + event.escalated - event.reused - event.shared
            self._of("chainette_rows_retried_total", node).inc(max(0, usage.requests - first_asks))
            self._of("chainette_prompt_tokens_total", node).inc(usage.prompt_tokens)
            self._of("chainette_completion_tokens_total", node).inc(usage.completion_tokens)
            self._charge(event)
        if event.root_done is not None:
            self._of("chainette_rows_finished_total").inc(event.root_done.finished)
            self._of("chainette_rows_done_total", CHAIN_INPUT).inc(event.root_done.records - event.root_done.bad)
            for fork, (taken, stopped) in event.root_done.forks.items():
                self._of("chainette_rows_done_total", declared_of(fork)).inc(taken - stopped)

    def _charge(self, event: UnitCommitted | AnswersDiscarded | EngineProbed) -> None:
        engine = event.engine or self._engines.get(event.node, "")
        cost = self._rates.get(engine, Rate()).cost(event.usage)
        self._of("chainette_cost_usd_total", declared_of(event.node)).inc(cost.usd)
        self._of("chainette_gpu_seconds_total", declared_of(event.node)).inc(3600 * cost.gpu_hours)

    def on_stage(self, node: str, stage: Stage, seconds: float) -> None:
        self._of("chainette_unit_stage_seconds", declared_of(node), stage).observe(seconds)

    def on_refused(self) -> None:
        self._of("chainette_commits_refused_total").inc()

    def on_aside(self, messages: int) -> None:
        self._of("chainette_messages_aside_total").inc(messages)

    def on_flush(self, seconds: float) -> None:
        self._of("chainette_sink_fsync_seconds").observe(seconds)

    def on_generating(self, engine: str, requests: int) -> None:
        self._metrics.on_generating(engine, requests)

    def on_generated(self, engine: str, requests: int) -> None:
        self._metrics.on_generated(engine, requests)


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
        """Adds to the requests in flight; 0 only brings the count of seconds up to date."""
        with self._lock:
            now = self._clock()
            if self._requests:
                self._seconds.inc(now - self._since)
            self._since = now
            self._requests += requests
            self._inside.set(self._requests)


class _Loads:
    """Loads and swaps of a worker's engines."""

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


def _nodes(plan: Plan) -> list[str]:
    """Nodes, and forks with joins: everything that has units."""
    forks = [fork.id for fork in plan.forks.values() if fork.joins]
    return [name for name in (*plan.nodes, *forks) if declared_of(name) == name]  # rounds of a loop count as one


def _reasons(plan: Plan, node: str) -> frozenset[Reason]:
    if node == CHAIN_INPUT:
        return frozenset({Reason.INVALID_INPUT})
    if node in plan.forks:
        return frozenset()
    match plan.nodes[node].kind:
        case NodeKind.STEP:
            return _OF_STEP if plan.nodes[node].samples == 1 else frozenset()
        case NodeKind.APPLY:
            return _OF_FUNCTION
        case NodeKind.DECISION:
            return _OF_DECISION
        case NodeKind.PICK:
            return _OF_PICK


def _make(metric: Metric, registry: CollectorRegistry) -> Any:
    """The metric for prometheus_client; one with labels has no series yet."""
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
