"""The live view as the terminal gets it: no line too wide, no view too high, the important numbers on it."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console
from rich.text import Text

from chainette.cli.screen.live import LiveView
from chainette.core.plan import Plan
from chainette.io.rundir.event_log import read_log
from chainette.io.rundir.event_types import EngineLoaded, RunStarted, UnitCommitted, UnitRetried
from chainette.io.rundir.paths import RunDir
from chainette.io.rundir.progress import Progress
from chainette.io.rundir.result import RunResult
from chainette.io.rundir.run_state import RunState
from chainette.records import Usage
from chainette.screen.live_layout import view_lines


@pytest.fixture
def progress(run: Any, clock: Any) -> Progress:
    """Half of a million rows, with rejects and a silent engine."""
    progress = Progress(run.path, clock)
    run.hear = progress.apply
    run.tell(RunStarted(expected=1_000_000))
    progress.nodes()
    clock.now += 10
    message = "the endpoint http://127.0.0.1:8000/v1 refused the connection, and it says so in a very long line"
    run.tell(
        EngineLoaded(engine="llama", backend="llama_cpp", model="m", seconds=1.5),
        UnitCommitted(node="first", root=0, taken=400_000, given=398_766, rejected=1234, usage=Usage(400_000, 1, 9_000_000)),
        UnitCommitted(node="split", root=0, taken=1000, given=3000, added=2000),
        UnitRetried(node="last", root=0, unit="", message=message, delay=4),
    )
    return progress


def plain(lines: list[Text]) -> list[str]:
    return [line.plain.rstrip() for line in lines]


def test_the_view_of_a_run_in_progress(progress: Progress) -> None:
    assert plain(view_lines(progress, 80, 24)) == [
        "                                          rows  rows/s   left   tok/s  rejected",
        "first    ━━━━━━━━━──────────────     400k/1.0M   40.0k   0:15    900k      1234",
        "  split  ───────────────────────     1000/997k     100   2h45",
        "  inner  ───────────────────────        0/3.0M",
        "  side   ───────────────────────        0/997k",
        "last     ───────────────────────        0/997k",
        "engine llama: ready in 1.5 s (llama_cpp)",
        "engine judge: not answering, retry in 4.0 s: the endpoint http://127.0.0.1:800…",
        "0 of 1,000,000 rows done · 0:10 · 900k tok/s · 1,234 rejected",
    ]


@pytest.mark.parametrize("width", [40, 50, 60, 70, 80, 100, 200])
@pytest.mark.parametrize("height", [6, 8, 24])
def test_the_view_fits_every_terminal(progress: Progress, width: int, height: int) -> None:
    lines = view_lines(progress, width, height)
    assert all(line.cell_len <= max(40, width - 1) for line in lines)
    assert len(lines) < height
    assert any("first" in line.plain for line in lines)


def test_what_does_not_fit_is_folded_and_counted_and_what_moves_stays(progress: Progress) -> None:
    lines = plain(view_lines(progress, 80, 8))
    assert [line.split()[0] for line in lines[1:3]] == ["first", "split"]
    assert lines[3] == "+3 more steps, 0 of them done"


def test_rejects_and_trouble_are_coloured(progress: Progress) -> None:
    lines = view_lines(progress, 80, 24)
    assert any("red" in str(span.style) for span in lines[1].spans)
    assert not any("red" in str(span.style) for span in lines[2].spans)
    assert [str(line.style) for line in lines[6:8]] == ["dim", "yellow"]


def test_before_the_first_event_there_is_one_line(run: Any, clock: Any) -> None:
    assert plain(view_lines(Progress(run.path, clock), 80, 24)) == ["starting"]


def terminal(width: int = 80) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=width, height=24, highlight=False, markup=False, emoji=False)


def text_of(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_head_is_printed_once_and_the_bars_are_erased_at_the_end(run: Any) -> None:
    console = terminal()
    with LiveView(run.path, console, "HEAD") as live:
        run.hear = live.on_event
        run.tell(RunStarted(expected=3), UnitCommitted(node="first", root=0, taken=1, given=1))
        live._live.refresh()
    written = text_of(console)
    assert written.count("HEAD") == 1
    assert "1/3" in written
    erased = written.rpartition("1/3")[2]
    assert erased.count("\x1b[2K") >= 9 and "\x1b[1A" in erased


def test_the_bars_of_a_run_that_is_interrupted_stay(run: Any) -> None:
    console = terminal()
    with pytest.raises(KeyboardInterrupt), LiveView(run.path, console) as live:
        run.hear = live.on_event
        run.tell(RunStarted(expected=3), UnitCommitted(node="first", root=0, taken=1, given=1))
        raise KeyboardInterrupt
    assert "1/3" in text_of(console).rpartition("\x1b[2K")[2]


def test_a_wide_head_is_cut_not_wrapped(run: Any) -> None:
    console = terminal(40)
    with LiveView(run.path, console, "x" * 60):
        pass
    assert "x" * 39 + "…" in text_of(console)
    assert "x" * 40 not in text_of(console)


def test_the_end_is_a_table_and_what_to_do_next(run: Any, plan: Plan) -> None:
    run.tell(RunStarted(expected=2))
    run.tell_root(2, rejected=1)
    state = RunState()
    for offset, event in read_log(run.path / "events.jsonl"):
        state.apply(event, offset)
    console = terminal(100)
    LiveView(run.path, console).end(RunResult(RunDir(run.path), state))
    written = text_of(console)
    assert "accounting: balanced" in written
    assert "chainette rejected" in written
    assert "chainette resume" not in written
