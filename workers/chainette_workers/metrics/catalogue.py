"""Every metric of Chainette: its name, type and labels, the processes that have it, and its meaning.

`docs/metrics.md` shows this table. The number of label values is bounded: open and recently closed runs, nodes, engines,
reasons and stages, but never rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

__all__ = ["CATALOGUE", "Metric", "MetricType", "ProcessKind"]


class MetricType(StrEnum):
    """The types of metrics in OpenMetrics."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"
    INFO = "info"


class ProcessKind(StrEnum):
    """The kinds of processes that have a metric."""

    #: every process
    ALL = "all"
    #: processes that process units
    WORKER = "worker"
    #: processes that make results durable: `enqueue`, `sink`
    SINK = "sink"
    #: processes that watch the whole fleet: `enqueue`, `coordinator`; all of them report the same values
    FLEET = "fleet"


_UNITS = ("seconds", "bytes", "ratio")


@dataclass(frozen=True)
class Metric:
    """One line of the table."""

    #: The name as it is exposed, without the suffixes of a histogram.
    name: str
    kind: MetricType
    part: ProcessKind
    labels: tuple[str, ...]
    meaning: str
    #: The upper bounds of the buckets of a histogram.
    buckets: tuple[float, ...] = ()

    @property
    def unit(self) -> str:
        """The base unit at the end of the name; "" if there is none."""
        return next((unit for unit in _UNITS if self.name.removesuffix("_total").endswith(f"_{unit}")), "")


_STAGE = (0.001, 0.005, 0.02, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)
_FSYNC = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)


def _counter(part: ProcessKind, name: str, labels: str, meaning: str) -> Metric:
    return Metric(name, MetricType.COUNTER, part, tuple(labels.split()), meaning)


def _gauge(part: ProcessKind, name: str, labels: str, meaning: str) -> Metric:
    return Metric(name, MetricType.GAUGE, part, tuple(labels.split()), meaning)


_W, _S, _F = ProcessKind.WORKER, ProcessKind.SINK, ProcessKind.FLEET

CATALOGUE: tuple[Metric, ...] = (
    Metric("chainette_build_info", MetricType.INFO, ProcessKind.ALL, ("version", "python"), "Versions; always 1."),
    # -- results of a run, counted once, when they are durable
    _counter(_S, "chainette_rows_done_total", "run step", "Output rows that are on the disk; at chain_input, good records."),
    _counter(_S, "chainette_rows_rejected_total", "run step reason", "Rejected rows, by reason."),
    _counter(_S, "chainette_rows_dropped_total", "run step", "Rows that a function dropped."),
    _counter(_S, "chainette_rows_reused_total", "run step", "Rows taken from an earlier run, at no cost."),
    _counter(_S, "chainette_rows_shared_total", "run step", "Rows that took the answer of another row with the same request."),
    _counter(_S, "chainette_rows_retried_total", "run step", "Requests repeated because the answer was invalid."),
    _counter(_S, "chainette_rows_finished_total", "run", "Rows at the end of the chain."),
    _counter(_S, "chainette_units_retried_total", "run step", "Units put off because their engine did not answer."),
    _counter(_S, "chainette_prompt_tokens_total", "run step", "Tokens in prompts."),
    _counter(_S, "chainette_completion_tokens_total", "run step", "Tokens in answers."),
    _counter(_S, "chainette_cost_usd_total", "run step", "Dollars at the engines' prices, including discarded answers."),
    _counter(_S, "chainette_gpu_seconds_total", "run step", "Seconds in which engines had requests, times their GPUs."),
    _counter(
        _S, "chainette_engine_rows_total", "run step engine outcome", "Rows asked of an engine of an escalating step."
    ),
    _counter(
        _S, "chainette_decisions_total", "run step way round", "Rows by the way of a route, or by the end of a loop's round."
    ),
    _counter(_S, "chainette_candidates_invalid_total", "run step", "Candidates of a step with n= that have no valid answer."),
    _counter(_S, "chainette_messages_aside_total", "run", "Invalid messages from Redis, which were put aside."),
    _counter(_S, "chainette_sink_written_bytes_total", "run", "Bytes of rows written to shards."),
    Metric(
        "chainette_sink_fsync_seconds",
        MetricType.HISTOGRAM,
        _S,
        ("run",),
        "Seconds to sync a group of results to the disk.",
        _FSYNC,
    ),
    # -- workers
    Metric(
        "chainette_unit_stage_seconds",
        MetricType.HISTOGRAM,
        _W,
        ("run", "step", "stage"),
        "Seconds that a unit spent in a stage: wait (queued), render, generate (or the function), validate, commit.",
        _STAGE,
    ),
    _gauge(_W, "chainette_units_in_flight", "", "Units that the worker holds."),
    _gauge(_W, "chainette_rows_in_flight", "", "Rows in these units."),
    _gauge(_W, "chainette_rows_in_flight_max", "", "Rows that the worker may hold."),
    _counter(_W, "chainette_engine_busy_seconds_total", "engine", "Seconds with requests inside; the rate is the busy share."),
    _gauge(_W, "chainette_engine_requests_in_flight", "engine", "Requests in the engine."),
    _gauge(_W, "chainette_engine_loaded", "engine", "1 while the engine is loaded."),
    _counter(_W, "chainette_engine_loads_total", "engine", "Times that the engine was loaded."),
    _counter(_W, "chainette_engine_load_seconds_total", "engine", "Seconds spent on loading the engine, in total."),
    _counter(_W, "chainette_engine_swaps_total", "engine", "Loads for which the worker released another engine."),
    _counter(_W, "chainette_commits_refused_total", "run", "Commits refused because another worker has taken over the unit."),
    _counter(_W, "chainette_leases_lost_total", "", "Times that the worker found its own lease expired."),
    _counter(_W, "chainette_workers_lost_total", "", "Dead workers whose units this worker gave back to the queue."),
    # -- the fleet, according to Redis
    _gauge(_F, "chainette_redis_up", "", "1 if Redis answers; if it does not, all other metrics of the fleet are missing."),
    _gauge(_F, "chainette_redis_memory_used_bytes", "", "Memory that Redis uses."),
    _gauge(_F, "chainette_redis_memory_max_bytes", "", "maxmemory of Redis; 0 means no limit."),
    _gauge(_F, "chainette_runs", "", "Runs that are not closed."),
    _gauge(_F, "chainette_workers", "engine", "Live workers that serve an engine; 0 if a run needs it and nobody serves it."),
    _gauge(_F, "chainette_queue_units", "run step engine", "Units that wait for a worker."),
    _gauge(_F, "chainette_queue_oldest_age_seconds", "run step engine", "Seconds that the oldest of these units has waited."),
    _gauge(_F, "chainette_queue_delayed_units", "run step engine", "Units put off because the engine did not answer."),
    _gauge(_F, "chainette_window_rows", "run", "Rows that may be live at once."),
    _gauge(_F, "chainette_window_live_rows", "run", "Rows between admission and the disk."),
    _gauge(_F, "chainette_window_credit_rows", "run", "Rows that may still be admitted; at 0 the input waits."),
    _gauge(_F, "chainette_run_paused", "run", "1 while the run is paused."),
    _gauge(_F, "chainette_run_records", "run", "Records of the input; NaN until it is known."),
    _gauge(_F, "chainette_run_records_done", "run", "Records with all their rows on the disk."),
    _gauge(_F, "chainette_run_progress_ratio", "run", "Share of records done, 0 to 1."),
    _gauge(_F, "chainette_run_eta_seconds", "run", "Seconds to the end, as `status` shows them; NaN if unknown."),
    _gauge(_F, "chainette_sink_lag_units", "run", "Results that are not on the disk yet."),
    _gauge(_F, "chainette_sink_lag_rows", "run", "Rows that went into those results."),
    _gauge(_F, "chainette_sink_lag_seconds", "run", "Age of the oldest of those results."),
)  # fmt: skip
