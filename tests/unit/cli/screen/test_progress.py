"""The numbers behind both views: rows done, rows to come, the rate, and the engines."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from chainette.engine.base import Completion
from chainette.io.rundir.event_types import (
    AnswersDiscarded,
    EngineLoaded,
    EngineReleased,
    RootDone,
    RunPaused,
    RunResumed,
    RunStarted,
    UnitCommitted,
    UnitRetried,
    WorkerJoined,
)
from chainette.io.rundir.progress import NodeView, Progress
from chainette.io.rundir.run_state import RunState
from chainette.records import Usage

FORK = "left+right"


@pytest.fixture
def progress(run: Any, clock: Any) -> Progress:
    progress = Progress(run.path, clock)
    run.hear = progress.apply
    return progress


def unit(node: str, taken: int, given: int | None = None, **keys: Any) -> UnitCommitted:
    return UnitCommitted(node=node, root=0, taken=taken, given=taken if given is None else given, **keys)


def view(progress: Progress, name: str) -> NodeView:
    return next(node for node in progress.nodes() if node.id == name)


def engine(progress: Progress, name: str) -> tuple[str, bool]:
    found = next(engine for engine in progress.engines() if engine.name == name)
    return found.text, found.trouble


def test_the_first_event_brings_what_the_log_held_before(run: Any, progress: Progress) -> None:
    run.tell(RunStarted(expected=100))
    assert progress.state.run.run_id == "r1"
    assert [(node.id, node.depth, node.total) for node in progress.nodes()] == [
        ("first", 0, 100),
        ("split", 1, 100),
        ("inner", 1, 100),
        ("side", 1, 100),
        ("last", 0, 100),
    ]


def test_a_resumed_session_starts_from_the_older_counts(run: Any, clock: Any) -> None:
    run.tell(RunStarted(expected=100), unit("first", 40), RunPaused(reason="interrupted"))
    progress = Progress(run.path, clock)
    run.hear = progress.apply
    run.next_epoch()
    run.tell(RunResumed(fingerprint="f", expected=100))
    assert view(progress, "first").done == 40
    assert view(progress, "first").rate == 0


def test_totals_follow_expansion_and_rejection_upstream(run: Any, progress: Progress) -> None:
    run.tell(RunStarted(expected=100), unit("first", 50, 40, rejected=10), unit("split", 20, 60, added=40))
    assert view(progress, "first").total == 100
    assert view(progress, "split").total == 80  # 40 came, 4 of 5 of the other 50 will
    assert view(progress, "inner").total == 240
    assert view(progress, "side").total == 80
    assert view(progress, "last").total == 80  # joins bring the rows before the branches


def test_rows_stopped_at_a_join_do_not_reach_what_follows(run: Any, progress: Progress) -> None:
    done = RootDone(records=100, bad=0, finished=75, forks={FORK: (100, 25)})
    run.tell(RunStarted(expected=200), unit("first", 100), unit("last", 75, root_done=done))
    assert view(progress, "last").total == 150


def test_bad_records_lower_what_is_expected(run: Any, progress: Progress) -> None:
    run.tell(RunStarted(expected=10), unit("chain_input", 0, root_done=RootDone(records=4, bad=4, finished=0)))
    assert view(progress, "first").total == 6
    assert progress.total().rejected == 4


def test_a_total_is_never_below_what_is_done(run: Any, progress: Progress) -> None:
    run.tell(RunStarted(expected=2), unit("first", 5))
    assert view(progress, "first").total == 5


def test_totals_are_exact_at_the_end(run: Any, progress: Progress) -> None:
    run.tell(RunStarted(expected=9))
    run.tell_root(5)
    assert [(node.done, node.total) for node in progress.nodes()] == [(5, 5), (5, 5), (10, 10), (5, 5), (5, 5)]


def test_an_unknown_number_of_records_gives_no_totals(run: Any, progress: Progress) -> None:
    run.tell(RunStarted(expected=None), unit("first", 5))
    assert [node.total for node in progress.nodes()] == [None] * 5
    assert progress.total().left is None


def test_speeds_count_answers_as_they_arrive_and_counts_only_what_is_durable(run: Any, progress: Progress, clock: Any) -> None:
    run.tell(RunStarted(expected=60))
    progress.nodes()
    clock.now += 2
    progress.arrivals.answer("first", [Completion("{}", usage=Usage(1, 10, 5))] * 6)
    first = view(progress, "first")
    assert (first.done, first.rate, first.tokens) == (0, 3.0, 15.0)
    assert first.left == 20.0
    assert progress.total().arrived == 6
    run.tell(unit("first", 4, usage=Usage(4, 40, 20)))
    assert view(progress, "first").done == 4
    assert progress.total().arrived == 2
    run.tell(AnswersDiscarded(node="first", usage=Usage(2, 20, 10)))
    assert progress.total().arrived == 0


def test_rates_are_measured_over_the_last_seconds(run: Any, progress: Progress, clock: Any) -> None:
    run.tell(RunStarted(expected=1000))
    for _ in range(400):
        progress.nodes()
        clock.now += 0.25  # loading: does not count
    for _ in range(4):
        clock.now += 5
        run.tell(unit("first", 50, usage=Usage(requests=50, completion_tokens=500)))
        node = view(progress, "first")
    assert node.rate == pytest.approx(10, rel=0.06)
    assert node.tokens == pytest.approx(100, rel=0.06)
    assert node.left == pytest.approx(80, rel=0.06)
    for _ in range(40):
        clock.now += 1
        node = view(progress, "first")
    assert (node.rate, node.left) == (0.0, None)


def test_the_total_counts_records_that_are_done_with(run: Any, progress: Progress, clock: Any) -> None:
    run.tell(RunStarted(expected=100))
    clock.now += 7
    run.tell(unit("last", 30, 28, rejected=2, root_done=RootDone(records=30, bad=0, finished=28)))
    total = progress.total()
    assert (total.done, total.total, total.rejected, total.elapsed) == (30, 100, 2, 7)


def test_an_engine_loads_when_rows_wait_for_it(run: Any, progress: Progress, clock: Any) -> None:
    run.tell(RunStarted(expected=100))
    progress.engines()
    clock.now += 12
    assert engine(progress, "llama") == ("loading, 12 s", False)
    assert engine(progress, "judge") == ("not needed yet", False)


def test_an_engine_whose_device_is_anothers_waits_for_its_turn(run: Any, progress: Progress) -> None:
    run.tell(RunStarted(), EngineLoaded(engine="judge", backend="vllm", model="m", seconds=1))
    assert engine(progress, "llama")[0].startswith("loading")
    for config in progress.state.graph.engines.values():
        config["exclusive"] = True
    assert engine(progress, "llama") == ("waits for its turn", False)
    for number, config in enumerate(progress.state.graph.engines.values()):
        config["gpu_ids"] = [number]
    assert engine(progress, "llama")[0].startswith("loading")
    for config in progress.state.graph.engines.values():
        config["gpu_ids"] = []
    run.tell(EngineReleased(engine="judge"))
    assert engine(progress, "llama")[0].startswith("loading")
    run.tell(EngineLoaded(engine="judge", backend="vllm", model="m", seconds=1), WorkerJoined(worker="w-1"))
    assert engine(progress, "llama")[0].startswith("loading")


def test_an_engine_that_is_ready_says_how_long_it_took(run: Any, progress: Progress) -> None:
    run.tell(RunStarted(), EngineLoaded(engine="llama", backend="llama_cpp", model="m", seconds=2.14))
    assert engine(progress, "llama") == ("ready in 2.1 s (llama_cpp)", False)
    run.tell(EngineReleased(engine="llama"))
    assert engine(progress, "llama") == ("released", False)


def test_an_engine_that_does_not_answer_is_in_trouble_until_it_does(run: Any, progress: Progress) -> None:
    run.tell(RunStarted(), UnitRetried(node="inner", root=0, unit="", message="connection refused", delay=3.6))
    assert engine(progress, "llama") == ("not answering, retry in 3.6 s: connection refused", True)
    run.tell(unit("split", 1))
    assert engine(progress, "llama")[1]
    run.tell(unit("first", 1))
    assert engine(progress, "llama") == ("ready", False)


def test_who_begins_to_watch_sees_the_time_of_the_run_and_no_hasty_guess_of_what_is_left(run: Any, clock: Any) -> None:
    progress, heard = Progress(run.path, clock), list[Any]()
    run.hear = heard.append
    run.tell(RunStarted(expected=1000), unit("first", 40))
    for event in heard:
        progress.apply(event)
    progress.state.work_time.began = (datetime.now(UTC) - timedelta(hours=1)).isoformat()
    progress.begin()
    clock.now += 2
    progress.apply(unit("first", 1, seq=9))
    assert progress.total().elapsed == pytest.approx(3602, abs=60)
    assert view(progress, "first").rate == 0.5 and view(progress, "first").left is None
    clock.now += 4
    assert view(progress, "first").left == pytest.approx((1000 - 41) * 6)


def test_a_state_that_is_looked_at_has_no_time_of_its_session(run: Any, clock: Any) -> None:
    progress = Progress(run.path, clock)
    progress.look(RunState(), {})
    clock.now += 3
    assert progress.total().elapsed is None
