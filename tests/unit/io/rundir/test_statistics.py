"""The statistics of a run over time, from its log."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from chainette.io.rundir.event_types import (
    AnyEvent,
    Event,
    RootDone,
    RunCreated,
    RunFinished,
    RunPaused,
    RunResumed,
    RunStarted,
    UnitCommitted,
    UnitSplit,
    WorkerJoined,
    WorkerLost,
    WorkerRefused,
    timestamp,
)
from chainette.io.rundir.graph import EdgeToEnd, EdgeToNode, Graph, GraphNode
from chainette.io.rundir.statistics import COMPLETION, PROMPT, figures
from chainette.records import Usage

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)


def at(seconds: float) -> str:
    moment = (BEGAN + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    assert len(moment) == len(timestamp())
    return moment


def created() -> RunCreated:
    step = GraphNode(id="step", kind="step", engine="e", next=EdgeToEnd(), path=[])
    graph = Graph(nodes=[step], first=EdgeToNode("step"), fingerprint="f")
    return RunCreated(
        at=at(0),
        run_id="r",
        chain="c",
        chain_ref="c.py",
        chain_root=".",
        graph=graph,
        settings={"batch_size": 10},
        input={},
        versions={},
    )


def unit(
    seconds: float, *, root: int = 0, rows: int = 10, requests: int = 10, spent: float = 1.0, epoch: int = 0
) -> UnitCommitted:
    usage = Usage(requests, 100, 20, spent)
    done = RootDone(rows, 0, rows)
    return UnitCommitted(
        at=at(seconds), epoch=epoch, node="step", root=root, taken=rows, given=rows, usage=usage, root_done=done
    )


def test_time_in_which_nobody_worked_is_left_out() -> None:
    night = 8 * 3600.0
    found = figures(
        [
            created(),
            RunStarted(at=at(0), expected=40),
            unit(10),
            RunPaused(at=at(12), reason="interrupted"),
            RunResumed(at=at(night), epoch=1, fingerprint="f", expected=40),
            unit(night + 4, root=1, epoch=1),
        ]
    )
    assert [(stretch.epoch, stretch.seconds, stretch.rows) for stretch in found.stretches] == [(0, 12, 10), (1, 4, 10)]
    assert (found.seconds, found.resumes()) == (16, [12])
    assert found.rows_per_second == 20 / 16
    assert found.seconds_left == 20 / (20 / 16)
    assert found.timeline.rates("step")[-1][0] == pytest.approx(16, abs=found.timeline.width)


def test_a_finished_run_has_no_time_left() -> None:
    assert (
        figures([created(), RunStarted(at=at(0), expected=10), unit(5), RunFinished(at=at(6), records=10)]).seconds_left is None
    )


def test_a_timeline_loses_nothing_when_its_bins_become_wider() -> None:
    found = figures([created(), *(unit(second, root=second, rows=3) for second in range(5000))])
    timeline = found.timeline
    assert 36 <= len(timeline.bins) <= 72
    for name, whole in (("step", 15_000), (PROMPT, 500_000), (COMPLETION, 100_000)):
        assert sum(rate * timeline.width for _, rate in timeline.rates(name)) == pytest.approx(whole)
    assert timeline.rates("step")[3][1] == pytest.approx(3, rel=0.05)


def test_latencies_are_weighed_by_requests() -> None:
    quick = [unit(number, requests=90, spent=90 * 0.2) for number in range(10)]
    slow = [unit(number, requests=10, spent=10 * 3.0) for number in range(10)]
    found = figures([created(), *quick, *slow]).latencies["step"]
    assert found.requests == 1000
    assert found.mean == pytest.approx(0.48)
    assert found.median == pytest.approx(0.2, rel=0.06)
    assert found.p95 == pytest.approx(3.0, rel=0.06)
    assert found.slowest == 3.0


def test_events_of_workers_are_counted() -> None:
    events: list[Event] = [
        WorkerJoined(worker="a"),
        WorkerJoined(worker="a"),
        WorkerJoined(worker="b"),
        WorkerLost(worker="a"),
        UnitSplit(node="step", root=0, unit=""),
        *[WorkerRefused(worker="c", reason="another chain")] * 3,
    ]
    found = figures([created(), *events])  # type: ignore[list-item]
    assert (found.workers_joined, found.workers_lost, found.units_split) == (2, 1, 1)
    assert found.refusals == ["another chain"]


def test_memory_does_not_grow_with_the_log() -> None:
    def log(units: int) -> Iterator[AnyEvent]:
        yield created()
        for number in range(units):
            yield unit(number * 0.3, root=number, spent=0.1 + number % 50)

    def peak(units: int) -> int:
        tracemalloc.start()
        assert figures(log(units)).state.records == 10 * units
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    assert peak(20_000) < peak(1_000) + 40_000  # a byte per root is all that grows
