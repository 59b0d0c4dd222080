"""The series of runs: created at zero, counted, capped for each run, and dropped some time after the run is closed."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import TYPE_CHECKING, Any

from chainette.core.plan import Plan
from chainette.core.plan_node import NodeKind
from chainette.core.targets import ToWays
from chainette.engine.price import Rate
from chainette.hooks import Hook, Stage
from chainette.io.rundir.event_types import AnswersDiscarded, EngineProbed, Event, UnitCommitted, UnitRetried
from chainette.records import CHAIN_INPUT, Reason, declared_of
from chainette.run.session import rates_of
from chainette_workers.metrics.catalogue import ProcessKind

if TYPE_CHECKING:
    from chainette_workers.metrics.process_metrics import Metrics

__all__ = ["SeriesOfRuns"]

#: The seconds for which the series of a closed run stay, so that a scrape sees its last rows, and the most such runs.
_LINGER, _MOST_CLOSED = 600.0, 32

#: The most series of one run.
_MOST_OF_RUN = 50_000

#: The outcomes of a row at an engine of an escalating step.
_OUTCOMES = ("out", "rejected", "escalated")
_OF_STEP = frozenset(Reason) - {Reason.INVALID_INPUT, Reason.APPLY_ERROR, Reason.NO_CASE, Reason.EXHAUSTED, Reason.TOO_FEW}
_OF_FUNCTION = frozenset({Reason.APPLY_ERROR, Reason.POISON, Reason.TOO_LARGE})
_OF_PICK = _OF_STEP | {Reason.APPLY_ERROR, Reason.TOO_FEW}
_OF_DECISION = _OF_FUNCTION | {Reason.TEMPLATE_ERROR, Reason.NO_CASE, Reason.EXHAUSTED}


class SeriesOfRuns:
    """The runs of a process that have series. Those of a closed run are removed after a while, which bounds their number."""

    def __init__(self, metrics: Metrics, clock: Callable[[], float]) -> None:
        self._metrics, self._clock = metrics, clock
        self._runs: dict[str, _OfRun] = {}
        #: Closed run -> when it was closed.
        self._closed: dict[str, float] = {}

    def open(self, run: str, plan: Plan) -> Hook:
        """The hook that counts a run; its series exist from now on."""
        self._closed.pop(run, None)
        of_run = self._runs.setdefault(run, _OfRun(self._metrics, run))
        of_run.expect(plan)
        return of_run

    def close(self, run: str) -> None:
        """Nothing more is counted of a run."""
        if run in self._runs:
            self._closed.setdefault(run, self._clock())
        self.drop_old()

    def drop_old(self) -> None:
        """Removes runs that were closed long ago, and the oldest closed runs if there are too many."""
        closed = sorted(self._closed.items(), key=lambda item: item[1])
        for number, (run, at) in enumerate(closed):
            if at <= self._clock() - _LINGER or number < len(closed) - _MOST_CLOSED:
                self._closed.pop(run, None)
                if (of_run := self._runs.pop(run, None)) is not None:
                    of_run.drop()


class _OfRun(Hook):
    """The series of one run in a process."""

    def __init__(self, metrics: Metrics, run: str) -> None:
        self._metrics = metrics
        self._run = run
        self._series: dict[tuple[str, ...], Any] = {}
        #: Step -> its first engine; engine -> its price.
        self._engines: dict[str, str] = {}
        self._rates: dict[str, Rate] = {}
        #: Node in a loop -> the number of its round.
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
        """Creates every series that the plan may need, at zero."""
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
        """Removes the series of the run from the metrics of the process."""
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


def _nodes(plan: Plan) -> list[str]:
    """The names of everything that has units: nodes, and forks with joins."""
    forks = [fork.id for fork in plan.forks.values() if fork.joins]
    return [name for name in (*plan.nodes, *forks) if declared_of(name) == name]  # the rounds of a loop count as one


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
