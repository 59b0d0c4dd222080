"""The fleet's state as numbers, by metric: what one survey says, and how it went lately."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator

from chainette.fleet.protocol.keys import served
from chainette.fleet.redis.survey import RunSurvey, Survey
from chainette_workers.metrics.forecast import Forecast

__all__ = ["Overview"]

#: Metric, values of its labels, value.
Value = tuple[str, list[str], float]


class Overview:
    """Remembers how far each run was, to say when it will be done."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._forecasts: dict[str, Forecast] = {}

    def values(self, seen: Survey) -> Iterator[Value]:
        """Every number of the catalogue's fleet part but redis_up."""
        yield "chainette_redis_memory_used_bytes", [], seen.memory_used
        yield "chainette_redis_memory_max_bytes", [], seen.memory_max
        yield "chainette_runs", [], len(seen.runs)
        needed = {waiting.engine for run in seen.runs for waiting in run.waiting}
        serving = Counter(name for words in seen.processes.values() for name in served(words))
        for engine in sorted(needed | set(serving)):
            yield "chainette_workers", [engine], serving[engine]
        self._forecasts = {run.run: self._forecasts.get(run.run) or Forecast() for run in seen.runs}
        for run in seen.runs:
            yield from _queues(run)
            for name, value in self._of_run(run):
                yield f"chainette_{name}", [run.run], value

    def _of_run(self, run: RunSurvey) -> Iterator[tuple[str, float]]:
        forecast = self._forecasts[run.run]
        forecast.see(self._clock(), run.done)
        yield "window_rows", run.window
        yield "window_live_rows", run.live_rows
        yield "window_credit_rows", max(0, run.window - run.live_rows)
        yield "run_paused", run.state == "paused"
        yield "run_records", math.nan if run.expected is None else run.expected
        yield "run_records_done", run.done
        yield "run_progress_ratio", run.done / run.expected if run.expected else float(run.expected == 0)
        yield "run_eta_seconds", forecast.seconds(run.expected)
        yield "sink_lag_units", run.lag_units
        yield "sink_lag_rows", run.lag_rows
        yield "sink_lag_seconds", run.lag_seconds


def _queues(run: RunSurvey) -> Iterator[Value]:
    for waiting in run.waiting:
        labels = [run.run, waiting.step, waiting.engine]
        yield "chainette_queue_units", labels, waiting.units
        yield "chainette_queue_oldest_age_seconds", labels, waiting.age
        yield "chainette_queue_delayed_units", labels, waiting.delayed
