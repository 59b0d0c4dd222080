"""Turns a view of the fleet into values of its metrics, including the time left of each run."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from chainette.fleet.redis.fleet_view import Fleet, LiveRun, Queue
from chainette.io.rundir.progress import Progress

__all__ = ["Overview"]

#: (metric, values of its labels, value)
Value = tuple[str, list[str], float]


class Overview:
    """Remembers the progress of each run, to forecast its end."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._progress: dict[str, Progress] = {}

    def values(self, seen: Fleet) -> Iterator[Value]:
        """All metrics of the fleet in the catalogue, except redis_up."""
        yield "chainette_redis_memory_used_bytes", [], seen.memory_used
        yield "chainette_redis_memory_max_bytes", [], seen.memory_max
        runs = {run.info.run: run for run in seen.runs if run.info.epoch >= 0}
        yield "chainette_runs", [], len(runs)
        needed = {queue.engine for run in runs.values() for queue in run.queues}
        serving = Counter(name for member in seen.members.values() for name in member.engines)
        for engine in sorted(needed | set(serving)):
            yield "chainette_workers", [engine], serving[engine]
        self._progress = {name: self._progress.get(name) or Progress(Path(), self._clock) for name in runs}
        for name, run in runs.items():
            yield from _queues(name, run.queues)
            for metric, value in self._of_run(run):
                yield f"chainette_{metric}", [name], value

    def _of_run(self, run: LiveRun) -> Iterator[tuple[str, float]]:
        info, progress = run.info, self._progress[run.info.run]
        progress.look(run.state(), {})
        left = progress.total().left
        yield "window_rows", info.window
        yield "window_live_rows", info.live_rows
        yield "window_credit_rows", max(0, info.window - info.live_rows)
        yield "run_paused", info.state == "paused"
        yield "run_records", math.nan if run.expected is None else run.expected
        yield "run_records_done", run.done
        yield "run_progress_ratio", run.done / run.expected if run.expected else float(run.expected == 0)
        yield "run_eta_seconds", math.nan if left is None else left
        yield "sink_lag_units", run.results
        yield "sink_lag_rows", run.lag_rows
        yield "sink_lag_seconds", run.lag_seconds


def _queues(run: str, queues: Iterable[Queue]) -> Iterator[Value]:
    for queue in queues:
        labels = [run, queue.node, queue.engine]
        yield "chainette_queue_units", labels, queue.waiting
        yield "chainette_queue_oldest_age_seconds", labels, queue.age
        yield "chainette_queue_delayed_units", labels, queue.delayed
