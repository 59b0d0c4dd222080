"""A process's metrics: every series from the start, the right numbers, and none for ever."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import msgspec
import pytest
from chainette_workers.metrics.catalogue import CATALOGUE, MetricType, ProcessKind
from chainette_workers.metrics.process_metrics import Metrics
from chainette_workers.sink.status_fields import outline_of
from prometheus_client import CollectorRegistry, Counter, Gauge, ProcessCollector
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from chainette import Chain, Loop, Route, apply
from chainette.core.compile import compile_chain
from chainette.core.plan import Plan
from chainette.fleet.protocol.member_fields import Member
from chainette.fleet.redis.fleet_view import Fleet, LiveRun, Queue
from chainette.hooks import Hook, Hooks, Stage
from chainette.io.rundir.event_types import EngineLoaded, EngineReleased, RootDone, UnitCommitted, UnitRetried
from chainette.io.rundir.progress import Progress
from chainette.records import CHAIN_INPUT, Usage
from tests.support.chains import Word, everything
from tests.support.cli import REPOSITORY
from tests.support.fleet import record, straight

OPEN_METRICS = "application/openmetrics-text; version=1.0.0"

Series = dict[tuple[str, ...], float]

ORDER = {metric.name: metric.labels for metric in CATALOGUE}


class Clock:
    """Time that moves when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="module")
def plan() -> Plan:
    return compile_chain(everything())


FIELDS = {"window": "100", "live_rows": "40", "cursor": "3", "batch_size": "10", "expected": "80", "records_before": "0"}


def fleet(**changes: str) -> Fleet:
    members = {"w1": Member(names="first,python"), "w2": Member(names="first"), "enqueue-run-a": Member(kind="enqueue")}
    queues = (Queue("extract", "first", 4, 2.5, 1), Queue("hidden", "second"))
    run = LiveRun(record("run-a", **(FIELDS | changes)), members, queues, 2, 7, 0.25, 1)
    return Fleet((run,), members, 1000, 0)


def everything_of(clock: Clock, look: Fleet | None = None) -> Metrics:
    """A process that is worker, sink and coordinator at once."""
    parts = (ProcessKind.WORKER, ProcessKind.SINK, ProcessKind.FLEET)
    return Metrics(*parts, engines=("first", "second", "python"), look=lambda: look, clock=clock)


def series(metrics: Metrics, name: str) -> Series:
    """Values of a metric by the values of its labels, in the order of the catalogue."""
    order = ORDER.get(name.removesuffix("_count").removesuffix("_sum"))
    samples = [sample for family in metrics.collect() for sample in family.samples if sample.name == name]
    return {tuple(sample.labels[label] for label in order or sample.labels): sample.value for sample in samples}


def one(metrics: Metrics, name: str, *labels: str) -> float:
    return series(metrics, name)[labels]


# -- the metrics


def exposed(name: str, kind: MetricType) -> str:
    return f"{name}_count" if kind is MetricType.HISTOGRAM else name


def test_every_metric_of_the_catalogue_is_there_at_zero_once_a_run_is_known(clock: Clock, plan: Plan) -> None:
    metrics = everything_of(clock, fleet())
    metrics.of_run("run-a", plan)
    metrics.of_run("run-b", deciding())
    for metric in CATALOGUE:
        found = series(metrics, exposed(metric.name, metric.kind))
        assert found, metric.name
        if metric.part in (ProcessKind.WORKER, ProcessKind.SINK):
            assert set(found.values()) == {0.0}, metric.name


def test_every_node_reason_and_stage_of_a_run_has_its_series(clock: Clock, plan: Plan) -> None:
    metrics = everything_of(clock)
    metrics.of_run("run-a", plan)
    nodes = {*plan.nodes, *(fork.id for fork in plan.forks.values() if fork.joins)}
    assert {step for _, step in series(metrics, "chainette_rows_done_total")} == {*nodes, CHAIN_INPUT}
    reasons = series(metrics, "chainette_rows_rejected_total")
    assert ("run-a", "extract", "not_json") in reasons and ("run-a", "extract", "poison") in reasons
    assert ("run-a", CHAIN_INPUT, "invalid_input") in reasons and ("run-a", "extract", "apply_error") not in reasons
    stages = series(metrics, "chainette_unit_stage_seconds_count")
    assert set(stages) == {("run-a", queue, stage) for queue in (*nodes, "closing@2") for stage in Stage}
    answered = series(metrics, "chainette_engine_rows_total")
    assert set(answered) == {("run-a", "closing", e, o) for e in ("first", "second") for o in ("out", "rejected", "escalated")}


def test_decisions_are_counted_by_way_and_round(clock: Clock) -> None:
    metrics = everything_of(clock)
    hook = metrics.of_run("run-a", deciding())
    hook.on_event(UnitCommitted(node="big", root=0, unit="", ways={"": 2, "then": 3}))
    hook.on_event(UnitCommitted(node="revise#2", root=0, unit="", ways={"again": 1, "ended": 4}))
    found = {labels[1:]: number for labels, number in series(metrics, "chainette_decisions_total").items()}
    loop = {("revise", way, str(number)): 0.0 for number in (1, 2, 3) for way in ("ended", "again" if number < 3 else "kept")}
    counted = {("revise", "again", "2"): 1.0, ("revise", "ended", "2"): 4.0}
    assert found == {("big", "", ""): 2.0, ("big", "then", ""): 3.0} | loop | counted


def deciding() -> Plan:
    """A chain with a route and a loop."""

    def same(item: Word) -> Word:
        return item

    route = Route("big", when="{{ word == 'big' }}", then=[apply(same)])
    loop = Loop("revise", steps=[apply(same, id="again")], until="{{ round == 2 }}", max_rounds=3, on_exhausted="keep")
    return compile_chain(Chain(name="c", steps=[route, loop], input_model=Word))


def test_a_worker_has_only_the_series_of_its_engines(clock: Clock, plan: Plan) -> None:
    metrics = Metrics(ProcessKind.WORKER, engines=("first",), clock=clock)
    metrics.of_run("run-a", plan)
    steps = {step for _, step, _ in series(metrics, "chainette_unit_stage_seconds_count")}
    assert steps == {node.id for node in plan.nodes.values() if node.engine == "first"}
    assert series(metrics, "chainette_rows_done_total") == {} == series(metrics, "chainette_redis_up")


def test_names_follow_the_conventions() -> None:
    labels = {"run", "step", "engine", "reason", "outcome", "stage", "version", "python", "way", "round"}
    for metric in CATALOGUE:
        name = metric.name
        assert re.fullmatch(r"chainette_[a-z]+(_[a-z]+)*", name), name
        assert (metric.kind is MetricType.COUNTER) == name.endswith("_total"), name
        assert not re.search(r"_(ms|milliseconds|minutes|mb|kb|percent|count|sum|bucket|created)(_|$)", name), name
        assert metric.kind is not MetricType.HISTOGRAM or name.endswith("_seconds"), name
        assert set(metric.labels) <= labels, name
        assert metric.meaning.endswith("."), name
    assert len({metric.name for metric in CATALOGUE}) == len(CATALOGUE)


def test_the_page_shows_the_catalogue() -> None:
    page = Path(REPOSITORY, "docs", "metrics.md").read_text()
    rows = re.findall(r"^\| `(chainette_\w+)` \| (\w+) \| (.*?) \| (\w+) \| (.*) \|$", page, re.MULTILINE)
    said = {(name, kind, labels, part, meaning) for name, kind, labels, part, meaning in rows}
    meant = {
        (metric.name, metric.kind.value, ", ".join(metric.labels) or "-", metric.part.value, metric.meaning)
        for metric in CATALOGUE
    }
    assert said == meant and len(rows) == len(CATALOGUE)


def test_the_answer_is_open_metrics(clock: Clock, plan: Plan) -> None:
    metrics = everything_of(clock, fleet())
    metrics.of_run("run-a", plan).on_event(COMMIT)
    metrics.of_run("run-b", deciding())
    kind, text = metrics.text(f"{OPEN_METRICS};q=0.5,text/plain;version=0.0.4;q=0.2,*/*;q=0.1")
    assert kind.startswith(OPEN_METRICS) and text.endswith(b"# EOF\n")
    parsed = text_string_to_metric_families(text.decode())  # type: ignore[no-untyped-call]
    read = {sample.name for family in parsed for sample in family.samples}
    assert {exposed(metric.name, metric.kind) for metric in CATALOGUE} <= read
    assert b"# UNIT chainette_unit_stage_seconds seconds" in text


def test_no_created_series_double_the_others(clock: Clock, plan: Plan) -> None:
    metrics = everything_of(clock, fleet())
    metrics.of_run("run-a", plan)
    assert b"_created" not in metrics.text(OPEN_METRICS)[1]


def test_a_reader_that_knows_the_old_format_only_gets_it(clock: Clock) -> None:
    kind, text = everything_of(clock).text("text/plain")
    assert kind.startswith("text/plain") and b"# EOF" not in text


# -- results


COMMIT = UnitCommitted(
    node="extract",
    root=0,
    off={"extract/0": (10, 1, 110, 9), "rejected/0": (0, 0, 50, 1)},
    taken=10,
    given=8,
    rejected=2,
    reasons={"not_json": 2},
    usage=Usage(requests=13, prompt_tokens=70, completion_tokens=30),
    root_done=RootDone(records=12, bad=2, finished=7, forks={"a+b": (8, 3)}),
)


def test_a_commit_counts_its_rows_tokens_and_bytes(clock: Clock, plan: Plan) -> None:
    metrics = everything_of(clock)
    hook = metrics.of_run("run-a", plan)
    hook.on_event(COMMIT)
    hook.on_event(COMMIT)
    assert one(metrics, "chainette_rows_done_total", "run-a", "extract") == 16
    assert one(metrics, "chainette_rows_done_total", "run-a", CHAIN_INPUT) == 20
    assert one(metrics, "chainette_rows_done_total", "run-a", "a+b") == 10
    assert one(metrics, "chainette_rows_rejected_total", "run-a", "extract", "not_json") == 4
    assert one(metrics, "chainette_rows_retried_total", "run-a", "extract") == 6
    assert one(metrics, "chainette_prompt_tokens_total", "run-a", "extract") == 140
    assert one(metrics, "chainette_completion_tokens_total", "run-a", "extract") == 60
    assert one(metrics, "chainette_rows_finished_total", "run-a") == 14
    assert one(metrics, "chainette_sink_written_bytes_total", "run-a") == 300


def test_bad_lines_are_rejected_rows_of_the_input(clock: Clock, plan: Plan) -> None:
    metrics = everything_of(clock)
    hook = metrics.of_run("run-a", plan)
    hook.on_event(UnitCommitted(node=CHAIN_INPUT, root=0, rejected=3, reasons={"invalid_input": 3}))
    assert one(metrics, "chainette_rows_rejected_total", "run-a", CHAIN_INPUT, "invalid_input") == 3
    assert one(metrics, "chainette_rows_done_total", "run-a", CHAIN_INPUT) == 0


def test_two_runs_are_counted_separately(clock: Clock, plan: Plan) -> None:
    metrics = everything_of(clock)
    one_run, other = metrics.of_run("run-a", plan), metrics.of_run("run-b", plan)
    one_run.on_event(COMMIT)
    other.on_event(UnitRetried(node="extract", root=0, unit="", message="", delay=1))
    assert one(metrics, "chainette_rows_done_total", "run-b", "extract") == 0
    assert one(metrics, "chainette_units_retried_total", "run-b", "extract") == 1
    assert one(metrics, "chainette_units_retried_total", "run-a", "extract") == 0


def test_a_run_that_is_known_already_keeps_its_numbers(clock: Clock, plan: Plan) -> None:
    metrics = everything_of(clock)
    metrics.of_run("run-a", plan).on_event(COMMIT)
    metrics.of_run("run-a", plan).on_event(COMMIT)
    assert one(metrics, "chainette_rows_done_total", "run-a", "extract") == 16


# -- work


def test_stages_and_flushes_are_distributions(clock: Clock, plan: Plan) -> None:
    metrics = everything_of(clock)
    hook = metrics.of_run("run-a", plan)
    hook.on_stage("extract", Stage.GENERATE, 0.3)
    hook.on_stage("extract", Stage.GENERATE, 2.0)
    hook.on_flush(0.004)
    assert one(metrics, "chainette_unit_stage_seconds_count", "run-a", "extract", "generate") == 2
    assert one(metrics, "chainette_unit_stage_seconds_sum", "run-a", "extract", "generate") == 2.3
    assert one(metrics, "chainette_sink_fsync_seconds_count", "run-a") == 1


def test_an_engine_is_busy_while_it_has_any_request(clock: Clock, plan: Plan) -> None:
    metrics = everything_of(clock)
    hook = metrics.of_run("run-a", plan)
    hook.on_generating("first", 8)
    clock.now += 2
    hook.on_generating("first", 4)
    clock.now += 3
    assert one(metrics, "chainette_engine_busy_seconds_total", "first") == 5  # scraped in the middle
    assert one(metrics, "chainette_engine_requests_in_flight", "first") == 12
    hook.on_generated("first", 8)
    clock.now += 1
    hook.on_generated("first", 4)
    clock.now += 10
    assert one(metrics, "chainette_engine_busy_seconds_total", "first") == 6
    assert one(metrics, "chainette_engine_requests_in_flight", "first") == 0
    assert one(metrics, "chainette_engine_busy_seconds_total", "second") == 0


def loaded(engine: str) -> EngineLoaded:
    return EngineLoaded(engine=engine, backend="simulated", model="m", seconds=1.5)


def test_loads_and_swaps_are_told_apart(clock: Clock) -> None:
    metrics = everything_of(clock)
    metrics.on_event(loaded("first"))
    assert one(metrics, "chainette_engine_loaded", "first") == 1
    metrics.on_event(EngineReleased(engine="first"))
    metrics.on_event(loaded("second"))
    metrics.on_event(EngineReleased(engine="second"))
    metrics.on_event(loaded("second"))  # it was let go and taken again: nothing made room for another
    assert one(metrics, "chainette_engine_loads_total", "second") == 2
    assert one(metrics, "chainette_engine_load_seconds_total", "second") == 3
    assert series(metrics, "chainette_engine_swaps_total") == {("first",): 0, ("second",): 1}
    assert series(metrics, "chainette_engine_loaded") == {("first",): 0, ("second",): 1}


def test_leases_and_refusals_are_counted(clock: Clock, plan: Plan) -> None:
    metrics = everything_of(clock)
    metrics.of_run("run-a", plan).on_refused()
    metrics.on_lease_lost()
    metrics.on_workers_lost(["w1", "w2"])
    assert one(metrics, "chainette_commits_refused_total", "run-a") == 1
    assert one(metrics, "chainette_leases_lost_total") == 1
    assert one(metrics, "chainette_workers_lost_total") == 2


def test_a_gauge_is_asked_of_its_owner(clock: Clock) -> None:
    metrics = everything_of(clock)
    metrics.read("chainette_rows_in_flight", lambda: 42)
    assert one(metrics, "chainette_rows_in_flight") == 42


def test_hooks_pass_everything_on(clock: Clock, plan: Plan) -> None:
    metrics = everything_of(clock)
    hooks = Hooks([Hook(), metrics])
    hook = hooks.of_run("run-a", plan)
    hook.on_event(COMMIT)
    hook.on_stage("extract", Stage.WAIT, 1.0)
    hook.on_generating("first", 1)
    hook.on_generated("first", 1)
    hook.on_refused()
    hook.on_flush(1.0)
    hooks.on_lease_lost()
    hooks.on_workers_lost(["w"])
    for name, *labels in (
        ("chainette_rows_done_total", "run-a", "extract"),
        ("chainette_unit_stage_seconds_count", "run-a", "extract", "wait"),
        ("chainette_commits_refused_total", "run-a"),
        ("chainette_sink_fsync_seconds_count", "run-a"),
        ("chainette_leases_lost_total",),
        ("chainette_workers_lost_total",),
    ):
        assert one(metrics, name, *labels) > 0, name
    hooks.forget_run("run-a")
    clock.now += 3600
    assert series(metrics, "chainette_rows_done_total") == {}


# -- closed runs


def test_a_closed_run_stays_for_the_last_scrape_and_then_goes(clock: Clock, plan: Plan) -> None:
    metrics = everything_of(clock)
    metrics.of_run("run-a", plan).on_event(COMMIT)
    metrics.of_run("run-b", plan)
    metrics.forget_run("run-a")
    clock.now += 60
    assert one(metrics, "chainette_rows_done_total", "run-a", "extract") == 8
    clock.now += 3600
    for metric in CATALOGUE:
        if "run" in metric.labels and "way" not in metric.labels and metric.part is not ProcessKind.FLEET:
            assert {labels[0] for labels in series(metrics, exposed(metric.name, metric.kind))} == {"run-b"}, metric.name


def test_a_run_that_is_resumed_in_time_stays(clock: Clock, plan: Plan) -> None:
    metrics = everything_of(clock)
    metrics.of_run("run-a", plan).on_event(COMMIT)
    metrics.forget_run("run-a")
    metrics.of_run("run-a", plan)
    clock.now += 3600
    assert one(metrics, "chainette_rows_done_total", "run-a", "extract") == 8


def test_many_closed_runs_do_not_pile_up(clock: Clock) -> None:
    metrics, plan = Metrics(ProcessKind.SINK, clock=clock), straight()
    for number in range(100):
        metrics.of_run(f"run-{number}", plan)
        metrics.forget_run(f"run-{number}")
        clock.now += 0.1
    left = {run for run, _ in series(metrics, "chainette_rows_done_total")}
    assert left == {f"run-{number}" for number in range(68, 100)}


def test_forgetting_an_unknown_run_does_nothing(clock: Clock) -> None:
    everything_of(clock).forget_run("nobody")


# -- the fleet


def test_a_survey_becomes_numbers(clock: Clock) -> None:
    metrics = everything_of(clock, fleet())
    assert one(metrics, "chainette_redis_up") == 1
    assert one(metrics, "chainette_redis_memory_used_bytes") == 1000
    assert series(metrics, "chainette_workers") == {("first",): 2, ("second",): 0, ("python",): 1}
    assert one(metrics, "chainette_queue_units", "run-a", "extract", "first") == 4
    assert one(metrics, "chainette_queue_oldest_age_seconds", "run-a", "extract", "first") == 2.5
    assert one(metrics, "chainette_queue_delayed_units", "run-a", "extract", "first") == 1
    assert one(metrics, "chainette_window_credit_rows", "run-a") == 60
    assert one(metrics, "chainette_run_progress_ratio", "run-a") == 0.25
    assert one(metrics, "chainette_sink_lag_rows", "run-a") == 7
    assert one(metrics, "chainette_run_paused", "run-a") == 0


def test_a_redis_that_does_not_answer_is_down_and_nothing_else(clock: Clock) -> None:
    metrics = everything_of(clock, None)
    assert one(metrics, "chainette_redis_up") == 0
    assert series(metrics, "chainette_runs") == {} == series(metrics, "chainette_queue_units")


def at(rows: int) -> Fleet:
    """A fleet whose one run has brought so many of 80 records through `first` and half as many through `second`."""
    nodes = {"first": (rows, rows, 0, 0), "second": (rows // 2, rows // 2, 0, 0)}
    counts = msgspec.json.encode({"records": rows // 2, "expected": 80, "nodes": nodes}).decode()
    return fleet(counts=counts, outline=msgspec.json.encode(outline_of(straight())).decode())


def test_the_time_left_is_that_of_the_slowest_step_at_its_speed_of_late(clock: Clock) -> None:
    looks: Iterator[Fleet] = iter([at(0), at(20), at(40)])
    metrics = Metrics(ProcessKind.FLEET, look=lambda: next(looks), clock=clock)
    assert math.isnan(one(metrics, "chainette_run_eta_seconds", "run-a"))
    clock.now += 10
    assert one(metrics, "chainette_run_eta_seconds", "run-a") == 70  # 10 rows of `second` in 10 s, 70 are left
    clock.now += 10
    assert one(metrics, "chainette_run_eta_seconds", "run-a") == 60


def test_metrics_and_status_tell_the_same_time_left(clock: Clock) -> None:
    metrics = Metrics(ProcessKind.FLEET, look=lambda: seen, clock=clock)
    shown = Progress(Path(), clock)
    for rows in (0, 12, 30, 36, 80):
        clock.now += 7
        seen = at(rows)
        shown.look(seen.runs[0].state(), {})
        left = shown.total().left
        assert one(metrics, "chainette_run_eta_seconds", "run-a") == left or left is None, rows


def test_an_input_of_unknown_length_has_no_end_yet(clock: Clock) -> None:
    metrics = Metrics(ProcessKind.FLEET, look=lambda: fleet(expected="-1"), clock=clock)
    assert math.isnan(one(metrics, "chainette_run_records", "run-a"))
    assert one(metrics, "chainette_run_progress_ratio", "run-a") == 0


# -- vLLM


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM's effect on a process: its metrics are in the library's own registry."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    Gauge("vllm:num_requests_running", "Running.", ["model_name"], registry=registry).labels("m").set(3)
    Counter("vllm:prompt_tokens", "Prompt tokens.", registry=registry)
    monkeypatch.setattr("chainette_workers.metrics.process_metrics.REGISTRY", registry)
    monkeypatch.setitem(sys.modules, "vllm", ModuleType("vllm"))


def test_metrics_of_vllm_pass_through_under_their_own_names(vllm: None, clock: Clock) -> None:
    metrics = Metrics(ProcessKind.WORKER, engines=("first",), clock=clock)
    assert one(metrics, "vllm:num_requests_running", "m") == 3
    assert one(metrics, "vllm:prompt_tokens_total") == 0
    for accepted in (OPEN_METRICS, "text/plain"):
        text = metrics.text(accepted)[1]
        assert b'\nvllm:num_requests_running{model_name="m"} 3.0\n' in text
        assert text.count(b"# TYPE process_resident_memory_bytes ") == 1


def test_a_process_without_vllm_shows_its_own_metrics_only(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "vllm", raising=False)
    assert b"vllm:" not in Metrics(ProcessKind.WORKER, clock=clock).text(OPEN_METRICS)[1]
    assert b"python_gc" not in Metrics(ProcessKind.WORKER, clock=clock).text(OPEN_METRICS)[1]


def test_unbounded_names_do_not_make_unbounded_series(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = Metrics(ProcessKind.SINK)
    run = metrics.of_run("7", plan)
    expected = metrics.text("")[1].decode().count("chainette_rows_rejected_total{")
    monkeypatch.setattr("chainette_workers.metrics.run_series._MOST_OF_RUN", 0)
    for number in range(200):
        run.on_event(UnitCommitted(node="extract", root=number, reasons={f"reason {number}": 1}))
    text = metrics.text("")[1].decode()
    assert text.count("chainette_rows_rejected_total{") == expected + 1
    assert 'reason="other",run="7",step="other"} 200.0' in text
