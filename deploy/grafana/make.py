"""Writes the Grafana dashboards: `python deploy/grafana/make.py`. A test checks that the committed files are its output.

A row of panels answers one question.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["DASHBOARDS", "written"]

FOLDER = Path(__file__).with_name("dashboards")

SOURCE = {"type": "prometheus", "uid": "${datasource}"}

#: Columns of Grafana's grid.
_WIDTH = 24


@dataclass(frozen=True)
class Query:
    """One line of a panel."""

    expr: str
    legend: str = ""
    #: The current value instead of a line over time.
    instant: bool = False


@dataclass(frozen=True)
class Panel:
    """One panel."""

    title: str
    kind: str
    unit: str
    queries: Sequence[Query]
    says: str
    width: int = 8
    height: int = 8
    #: The maximum, if there is one: 1 for shares.
    top: float | None = None
    #: (value from which it applies, colour).
    marks: Sequence[tuple[float | None, str]] = ((None, "green"),)
    stacked: bool = False


@dataclass(frozen=True)
class Question:
    """A row of panels."""

    title: str
    panels: Sequence[Panel]


@dataclass(frozen=True)
class Variable:
    """A selection of a label's values at the top of the page."""

    name: str
    label: str
    query: str
    many: bool = False


@dataclass(frozen=True)
class Dashboard:
    """One page."""

    uid: str
    title: str
    says: str
    questions: Sequence[Question]
    variables: Sequence[Variable] = ()


def lines(title: str, unit: str, says: str, *queries: tuple[str, str], **keys: Any) -> Panel:
    """A panel of lines over time; queries are (expression, legend)."""
    return Panel(title, "timeseries", unit, [Query(*query) for query in queries], says, **keys)


def now(title: str, kind: str, unit: str, says: str, expr: str, legend: str = "", **keys: Any) -> Panel:
    """A panel of the current value."""
    return Panel(title, kind, unit, [Query(expr, legend, instant=True)], says, **keys)


_RATE = "[$__rate_interval]"

_GOOD_WHEN_FULL = ((None, "red"), (0.5, "yellow"), (0.9, "green"))
_BAD_WHEN_FULL = ((None, "green"), (0.7, "yellow"), (0.9, "red"))


def _of_run(metric: str) -> str:
    """A number of the whole fleet, by run: every process that reports it has the same value."""
    return f"max by (run) (chainette_{metric})"


FLEET = Dashboard(
    "chainette-fleet",
    "Chainette: fleet",
    "All runs and workers of one Redis.",
    [
        Question(
            "Will it finish tonight?",
            [
                now("Progress", "bargauge", "percentunit", "Records with all their rows on the disk.",
                    _of_run("run_progress_ratio"), "{{run}}", top=1),
                now("Time left", "stat", "s", "At the speed of the last five minutes; empty until something has moved.",
                    _of_run("run_eta_seconds"), "{{run}}"),
                lines("Rows finished", "rowsps", "Rows a second that reach the end of their chain.",
                      (f"sum by (run) (rate(chainette_rows_finished_total{_RATE}))", "{{run}}")),
            ],
        ),
        Question(
            "Which GPU is idle, and why?",
            [
                lines("Engine busy", "percentunit", "Share of the time with a request inside, by worker.",
                      (f"sum by (worker, engine) (rate(chainette_engine_busy_seconds_total{_RATE}))", "{{engine}} {{worker}}"),
                      top=1, marks=_GOOD_WHEN_FULL),
                lines("Requests inside engines", "short", "Continuous batching needs many; few of them mean a dry queue.",
                      ("sum by (worker, engine) (chainette_engine_requests_in_flight)", "{{engine}} {{worker}}")),
                lines("Units that wait, by engine", "short", "None: an idle engine has no work. Many: look at its workers.",
                      ("sum by (engine) (max by (run, step, engine) (chainette_queue_units))", "{{engine}}")),
                lines("Live workers", "short", "0 where a run needs an engine that nobody serves.",
                      ("max by (engine) (chainette_workers)", "{{engine}}")),
                lines("Rows in flight", "percentunit", "Share of a worker's limit.",
                      ("sum by (worker) (chainette_rows_in_flight) / sum by (worker) (chainette_rows_in_flight_max)",
                       "{{worker}}"),
                      top=1),
                lines("Where units spend their time", "s", "Seconds per second in each stage, all workers together.",
                      (f"sum by (stage) (rate(chainette_unit_stage_seconds_sum{_RATE}))", "{{stage}}"), stacked=True),
                now("Engines loaded", "stat", "short", "1 where the engine is in memory.",
                    "sum by (worker, engine) (chainette_engine_loaded)", "{{engine}} {{worker}}"),
                lines("Loads and swaps", "short", "Each swap costs a load; many mean that too few devices are shared.",
                      ("sum by (engine) (chainette_engine_loads_total)", "{{engine}} loads"),
                      ("sum by (engine) (chainette_engine_swaps_total)", "{{engine}} swaps")),
                lines("Seconds spent loading", "s", "Time that those loads cost.",
                      ("sum by (engine) (chainette_engine_load_seconds_total)", "{{engine}}")),
            ],
        ),
        Question(
            "What holds it up?",
            [
                lines("Window credit", "short", "Rows that may still be admitted; at 0 the input waits for the disk.",
                      (_of_run("window_credit_rows"), "{{run}}")),
                lines("Sink lag", "s", "Age of the oldest result that is not on the disk.",
                      (_of_run("sink_lag_seconds"), "{{run}}")),
                lines("Units put off", "short", "They wait for an engine that did not answer.",
                      ("sum by (engine) (max by (run, step, engine) (chainette_queue_delayed_units))", "{{engine}}")),
                now("Paused", "stat", "bool_yes_no", "Held until `chainette unpause`.", _of_run("run_paused"), "{{run}}",
                    marks=((None, "green"), (1, "yellow"))),
                now("Redis memory", "stat", "bytes", "Used; flat over a run.",
                    "max(chainette_redis_memory_used_bytes)", width=4),
                now("Redis limit", "stat", "bytes", "maxmemory; 0 is no limit.",
                    "max(chainette_redis_memory_max_bytes)", width=4),
                lines("Lost", "short", "Dead workers, leases that ended under their worker, commits that came too late.",
                      ("sum(chainette_workers_lost_total)", "workers"), ("sum(chainette_leases_lost_total)", "leases"),
                      ("sum(chainette_commits_refused_total)", "commits")),
            ],
        ),
        Question(
            "What do the processes need?",
            [
                lines("Memory", "bytes", "Resident memory of each process.",
                      ("sum by (worker) (process_resident_memory_bytes)", "{{worker}}")),
                lines("CPU", "percentunit", "Of one core.",
                      (f"sum by (worker) (rate(process_cpu_seconds_total{_RATE}))", "{{worker}}")),
                lines("Units in hand", "short", "Units that each worker holds.",
                      ("sum by (worker) (chainette_units_in_flight)", "{{worker}}")),
            ],
        ),
    ],
)  # fmt: skip

_RUN = 'run="$run"'
_STEP = 'run="$run", step=~"$step"'
_REJECTED = f"sum by (step) (increase(chainette_rows_rejected_total{{{_STEP}}}[$__range]))"
_DONE = f"sum by (step) (increase(chainette_rows_done_total{{{_STEP}}}[$__range]))"


def _max(metric: str) -> str:
    return f"max(chainette_{metric}{{{_RUN}}})"


def _stage(quantile: float, stage: str) -> str:
    buckets = f'chainette_unit_stage_seconds_bucket{{{_STEP}, stage="{stage}"}}{_RATE}'
    return f"histogram_quantile({quantile}, sum by (step, le) (rate({buckets})))"


RUN = Dashboard(
    "chainette-run",
    "Chainette: run",
    "One run, step by step.",
    [
        Question(
            "Will it finish tonight?",
            [
                now("Progress", "gauge", "percentunit", "Records with all their rows on the disk.", _max("run_progress_ratio"),
                    top=1, width=4),
                now("Time left", "stat", "s", "At the speed of the last five minutes; empty until something has moved.",
                    _max("run_eta_seconds"), width=4),
                lines("Records", "short", "Done, and in all.",
                      (_max("run_records_done"), "done"), (_max("run_records"), "in all")),
                lines("Rows finished", "rowsps", "Rows a second that reach the end of the chain.",
                      (f"sum(rate(chainette_rows_finished_total{{{_RUN}}}{_RATE}))", "finished")),
            ],
        ),
        Question(
            "Which step is the bottleneck?",
            [
                lines("Units that wait", "short", "The step at which they pile up is the slow one.",
                      (f"max by (step, engine) (chainette_queue_units{{{_STEP}}})", "{{step}} ({{engine}})")),
                lines("Age of the oldest unit", "s", "How long a step's queue makes a unit wait.",
                      (f"max by (step) (chainette_queue_oldest_age_seconds{{{_STEP}}})", "{{step}}")),
                lines("Rows done", "rowsps", "Rows a second that each step brings to the disk.",
                      (f"sum by (step) (rate(chainette_rows_done_total{{{_STEP}}}{_RATE}))", "{{step}}")),
                lines("Generating, median and 95 %", "s", "Seconds that a unit spends in the engine, or in the function.",
                      (_stage(0.5, "generate"), "{{step}} median"), (_stage(0.95, "generate"), "{{step}} 95 %")),
                lines("Waiting, 95 %", "s", "Seconds from queued to claimed.", (_stage(0.95, "wait"), "{{step}}")),
                lines("Where units spend their time", "s", "Seconds per second in each stage.",
                      (f"sum by (stage) (rate(chainette_unit_stage_seconds_sum{{{_STEP}}}{_RATE}))", "{{stage}}"),
                      stacked=True),
                lines("Tokens out", "short", "Tokens a second that each step gets.",
                      (f"sum by (step) (rate(chainette_completion_tokens_total{{{_STEP}}}{_RATE}))", "{{step}}"), width=12),
                lines("Tokens in", "short", "Tokens a second that each step sends.",
                      (f"sum by (step) (rate(chainette_prompt_tokens_total{{{_STEP}}}{_RATE}))", "{{step}}"), width=12),
            ],
        ),
        Question(
            "What does it cost?",
            [
                lines("Dollars", "currencyUSD", "By the prices of the engines, since the process that writes the run began.",
                      (f"sum by (step) (chainette_cost_usd_total{{{_STEP}}})", "{{step}}"), stacked=True, width=12),
                lines("GPU time", "s", "Seconds in which engines had requests of the step, times their GPUs.",
                      (f"sum by (step) (chainette_gpu_seconds_total{{{_STEP}}})", "{{step}}"), stacked=True, width=12),
            ],
        ),
        Question(
            "What is being rejected?",
            [
                now("Rejected, by step and reason", "bargauge", "short", "Rows since the process that writes them began.",
                    f"sum by (step, reason) (chainette_rows_rejected_total{{{_STEP}}}) > 0", "{{step}} {{reason}}"),
                lines("Share rejected", "percentunit", "Of the rows that a step is done with, in the time that is shown.",
                      (f"{_REJECTED} / ({_REJECTED} + {_DONE})", "{{step}}"), marks=_BAD_WHEN_FULL),
                lines("Asked again", "short", "Questions a second that are asked again, because the answer was bad.",
                      (f"sum by (step) (rate(chainette_rows_retried_total{{{_STEP}}}{_RATE}))", "{{step}}")),
                lines("Dropped", "rowsps", "Rows per second that functions dropped.",
                      (f"sum by (step) (rate(chainette_rows_dropped_total{{{_STEP}}}{_RATE}))", "{{step}}"), width=12),
                lines("Units put off", "short", "Because their engine did not answer.",
                      (f"sum by (step) (increase(chainette_units_retried_total{{{_STEP}}}{_RATE}))", "{{step}}"), width=12),
            ],
        ),
        Question(
            "Is the sink behind?",
            [
                lines("Lag in rows", "short", "Rows whose results are not on the disk.", (_max("sink_lag_rows"), "rows"),
                      (_max("sink_lag_units"), "results")),
                lines("Lag in seconds", "s", "Age of the oldest of those results.", (_max("sink_lag_seconds"), "lag")),
                lines("Window", "short", "Live rows, and how many may be; where the two meet, the input waits.",
                      (_max("window_live_rows"), "live"), (_max("window_rows"), "window")),
                lines("Sync of a group, 95 %", "s", "Seconds that the disk takes.",
                      (f"histogram_quantile(0.95, sum by (le) (rate(chainette_sink_fsync_seconds_bucket{{{_RUN}}}{_RATE})))",
                       "sync"), width=12),
                lines("Written", "Bps", "Bytes of rows a second.",
                      (f"sum(rate(chainette_sink_written_bytes_total{{{_RUN}}}{_RATE}))", "written"), width=12),
            ],
        ),
    ],
    [
        Variable("run", "Run", "label_values(chainette_run_records_done, run)"),
        Variable("step", "Step", 'label_values(chainette_queue_units{run="$run"}, step)', many=True),
    ],
)  # fmt: skip

DASHBOARDS = (FLEET, RUN)


def written(dashboard: Dashboard) -> str:
    """The dashboard as Grafana imports it."""
    plain = {
        "uid": dashboard.uid,
        "title": dashboard.title,
        "description": dashboard.says,
        "tags": ["chainette"],
        "schemaVersion": 41,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "links": [_link()],
        "templating": {"list": [_source(), *(_variable(variable) for variable in dashboard.variables)]},
        "panels": list(_panels(dashboard)),
    }
    return json.dumps(plain, indent=2) + "\n"


def _link() -> dict[str, Any]:
    return {
        "type": "dashboards", "title": "Chainette", "tags": ["chainette"], "asDropdown": True, "includeVars": True,
        "keepTime": True, "icon": "external link", "targetBlank": False, "tooltip": "", "url": "",
    }  # fmt: skip


def _source() -> dict[str, Any]:
    return {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"}


def _variable(variable: Variable) -> dict[str, Any]:
    return {
        "name": variable.name, "label": variable.label, "type": "query", "datasource": SOURCE, "query": variable.query,
        "refresh": 2, "sort": 2, "includeAll": variable.many, "multi": variable.many,
        **({"allValue": ".*", "current": {"text": ["All"], "value": ["$__all"]}} if variable.many else {}),
    }  # fmt: skip


def _panels(dashboard: Dashboard) -> Iterator[dict[str, Any]]:
    number, y = 1, 0
    for question in dashboard.questions:
        yield {
            "id": number, "type": "row", "title": question.title, "collapsed": False, "panels": [],
            "gridPos": {"x": 0, "y": y, "w": _WIDTH, "h": 1},
        }  # fmt: skip
        number, y, x = number + 1, y + 1, 0
        for panel in question.panels:
            if x + panel.width > _WIDTH:
                x, y = 0, y + panel.height
            yield _panel(panel, number, x, y)
            number, x = number + 1, x + panel.width
        y += question.panels[-1].height


def _panel(panel: Panel, number: int, x: int, y: int) -> dict[str, Any]:
    steps = [{"value": value, "color": color} for value, color in panel.marks]
    defaults: dict[str, Any] = {"unit": panel.unit, "min": 0, "thresholds": {"mode": "absolute", "steps": steps}}
    if panel.top is not None:
        defaults["max"] = panel.top
    if panel.kind == "timeseries":
        defaults["custom"] = {"fillOpacity": 30 if panel.stacked else 5, "showPoints": "never", "lineWidth": 1}
        defaults["custom"] |= {"stacking": {"mode": "normal", "group": "A"}} if panel.stacked else {}
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.says,
        "datasource": SOURCE,
        "gridPos": {"x": x, "y": y, "w": panel.width, "h": panel.height},
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": _OPTIONS[panel.kind],
        "targets": [_target(query, "ABCDEF"[index]) for index, query in enumerate(panel.queries)],
    }


_LAST = {"reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False}}

_OPTIONS: dict[str, dict[str, Any]] = {
    "timeseries": {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
        "tooltip": {"mode": "multi", "sort": "desc"},
    },
    "stat": _LAST | {"colorMode": "value", "graphMode": "none", "textMode": "auto"},
    "gauge": _LAST,
    "bargauge": _LAST | {"displayMode": "basic", "orientation": "horizontal"},
}


def _target(query: Query, letter: str) -> dict[str, Any]:
    return {
        "refId": letter, "datasource": SOURCE, "expr": query.expr, "legendFormat": query.legend or "__auto",
        "instant": query.instant, "range": not query.instant,
    }  # fmt: skip


def main() -> None:
    """Writes every dashboard."""
    for dashboard in DASHBOARDS:
        (FOLDER / f"{dashboard.uid}.json").write_text(written(dashboard))


if __name__ == "__main__":
    main()
