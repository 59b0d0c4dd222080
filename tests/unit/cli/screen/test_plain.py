"""A run's lines in a log file, to a program, and to nobody."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from chainette.cli.screen.plain import JsonLines, Plain, QuietReporter, line_writer
from chainette.core.plan import Plan
from chainette.io.rundir.event_log import read_log
from chainette.io.rundir.event_types import (
    EngineLoaded,
    RootDone,
    RunPaused,
    RunResumed,
    RunStarted,
    UnitCommitted,
    UnitRetried,
)
from chainette.io.rundir.paths import RunDir
from chainette.io.rundir.result import RunResult
from chainette.io.rundir.run_state import RunState
from chainette.records import Usage


@pytest.fixture
def lines() -> list[str]:
    return []


@pytest.fixture
def plain(run: Any, clock: Any, lines: list[str]) -> Plain:
    plain = Plain(run.path, lines.append, clock)
    run.hear = plain.on_event
    return plain


def root(number: int, records: int) -> UnitCommitted:
    done = RootDone(records=records, bad=0, finished=records)
    return UnitCommitted(node="last", root=number, taken=records, given=records, root_done=done)


def result_of(run: Any) -> RunResult:
    state = RunState()
    for offset, event in read_log(run.path / "events.jsonl"):
        state.apply(event, offset)
    return RunResult(RunDir(run.path), state)


def test_a_run_begins_with_what_it_is(run: Any, plain: Plain, lines: list[str]) -> None:
    run.tell(RunStarted(expected=12_000), EngineLoaded(engine="llama", backend="llama_cpp", model="m.gguf", seconds=2.25))
    assert lines == [
        f"run r1: chain texts started, 12,000 rows, into {run.path}",
        "engine llama: ready in 2.2 s (llama_cpp, m.gguf)",
    ]


def test_a_run_of_one_row_is_not_called_rows(run: Any, plain: Plain, lines: list[str]) -> None:
    run.tell(RunStarted(expected=1))
    assert lines == [f"run r1: chain texts started, 1 row, into {run.path}"]


def test_a_resumed_run_says_so(run: Any, clock: Any, lines: list[str]) -> None:
    run.tell(RunStarted(expected=2), RunPaused(reason="interrupted"))
    run.hear = Plain(run.path, lines.append, clock).on_event
    run.next_epoch()
    run.tell(RunResumed(fingerprint="f", expected=2))
    assert "chain texts resumed, 2 rows" in lines[0]


def test_each_tenth_of_the_input_gets_a_line_however_fast(run: Any, plain: Plain, lines: list[str]) -> None:
    run.tell(RunStarted(expected=1000), *(root(number, 1) for number in range(1000)))
    assert len(lines) == 11
    assert lines[1] == "100 of 1,000 rows | first 0, split 0, inner 0, side 0, last 100"


def test_a_slow_run_gets_a_line_every_five_seconds(run: Any, plain: Plain, lines: list[str], clock: Any) -> None:
    run.tell(RunStarted(expected=1000))
    for number in range(20):
        clock.now += 1
        run.tell(root(number, 1))
    assert len(lines) == 5


def test_progress_tells_speed_what_is_left_and_rejects(run: Any, plain: Plain, lines: list[str], clock: Any) -> None:
    run.tell(RunStarted(expected=100))
    nodes = ("first", "split", "inner", "side", "last")
    for number in range(2):
        clock.now += 10
        run.tell(*(UnitCommitted(node=node, root=number, taken=20, given=20) for node in nodes[:-1]))
        done = RootDone(records=20, bad=0, finished=19)
        run.tell(UnitCommitted(node="last", root=number, taken=20, given=19, rejected=1, root_done=done))
    assert lines[-1] == "40 of 100 rows | first 40, split 40, inner 40, side 40, last 40 | 2 rows/s | 0:30 left | 2 rejected"


def test_before_the_first_row_is_done_the_speed_is_that_of_the_answers(
    run: Any, plain: Plain, lines: list[str], clock: Any
) -> None:
    run.tell(RunStarted(expected=100))
    clock.now += 10
    run.tell(UnitCommitted(node="first", root=0, taken=20, given=20, usage=Usage(requests=20, completion_tokens=200)))
    assert lines[-1] == "0 of 100 rows | first 20, split 0, inner 0, side 0, last 0 | 20 tok/s"


def test_a_silent_engine_is_told_once_in_five_seconds(run: Any, plain: Plain, lines: list[str], clock: Any) -> None:
    run.tell(RunStarted(expected=10))
    for number in range(12):
        clock.now += 1
        run.tell(UnitRetried(node="first", root=number, unit="", message="refused", delay=1))
    told = [line for line in lines if "does not answer" in line]
    assert told == ["step first: its engine does not answer, retry in 1.0 s: refused"] * 3


def test_the_end_is_a_table_and_what_to_do_next(
    run: Any, plain: Plain, plan: Plan, lines: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    run.tell(RunStarted(expected=3))
    run.tell_root(3, rejected=1)
    plain.end(result_of(run))
    table = capsys.readouterr().out.splitlines()
    assert table[0].split() == ["step", "in", "out", "rejected", "dropped", "stopped", "expanded", "tokens"]
    assert next(line.split() for line in table if line.startswith("first")) == ["first", "3", "2", "1", "-", "-", "-", "-"]
    assert lines[-1] == f"rejected rows: chainette rejected {run.path}"
    assert "accounting: balanced" in lines


def test_json_lines_are_the_events_of_the_log_without_the_checksum(run: Any, lines: list[str]) -> None:
    run.hear = JsonLines(run.path, lines.append).on_event
    run.tell(RunStarted(expected=1))
    run.tell_root(1)
    logged = [json.loads(line) for line in (run.path / "events.jsonl").read_text().splitlines()]
    for event in logged:
        del event["crc"]
    assert [json.loads(line) for line in lines] == logged
    assert all("\n" not in line for line in lines)


def test_json_lines_of_a_resumed_run_begin_with_its_session(run: Any, lines: list[str]) -> None:
    run.tell(RunStarted(expected=1), RunPaused(reason="interrupted"))
    run.hear = JsonLines(run.path, lines.append).on_event
    run.next_epoch()
    run.tell(RunResumed(fingerprint="f"), root(0, 1))
    assert [json.loads(line)["type"] for line in lines] == ["run_resumed", "unit_committed"]


def test_a_quiet_run_says_its_directory_at_the_end(run: Any, plan: Plan, lines: list[str]) -> None:
    quiet = QuietReporter(lines.append)
    run.hear = quiet.on_event
    run.tell(RunStarted(expected=1))
    run.tell_root(1)
    assert lines == []
    quiet.end(result_of(run))
    assert lines == [str(run.path)]


def test_a_writer_keeps_the_stdout_that_it_was_made_for(capsys: pytest.CaptureFixture[str]) -> None:
    import contextlib
    import sys

    write: Callable[[str], None] = line_writer()
    with contextlib.redirect_stdout(sys.stderr):
        write("ours")
        print("the user's")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("ours\n", "the user's\n")
