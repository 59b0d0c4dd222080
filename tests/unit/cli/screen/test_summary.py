"""Numbers and durations for people, and the next commands after a run."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from chainette.cli.screen.summary import (
    accounting_line,
    ahead_line,
    engine_lines,
    next_lines,
    plan_line,
    row_name,
    summary_lines,
    time_line,
)
from chainette.io.rundir.paths import RunDir
from chainette.io.rundir.work_time import WorkTime
from chainette.screen.numbers import clock, dollars, short

OUT = Path("runs/my run")


def metadata(**keys: Any) -> dict[str, Any]:
    return {
        "status": "finished",
        "started_at": "2026-01-01T00:00:00.000000Z",
        "ended_at": "2026-01-01T00:01:05.000000Z",
        "seconds_at_work": 65.0,
        "fingerprint": "f",
        "records": 3000,
        "rows_rejected": 0,
        "balanced": True,
        "simulated": False,
        "usage": {"requests": 3, "prompt_tokens": 4567, "completion_tokens": 89},
        "engines": {"llama": {"backend": "llama_cpp", "model": "m.gguf", "loads": 2, "load_seconds": 3.25}},
        "steps": {"first": {"balanced": True}, "last": {"balanced": True}},
    } | keys


@pytest.mark.parametrize(
    "number, text",
    [
        (0, "0"),
        (0.43, "0.4"),
        (7, "7"),
        (9.96, "10"),
        (999, "999"),
        (9994, "9994"),
        (9999, "10.0k"),
        (12_345, "12.3k"),
        (99_960, "100k"),
        (999_499, "999k"),
        (999_500, "1.0M"),
        (1_234_567, "1.2M"),
        (250e6, "250M"),
        (3e9, "3.0G"),
    ],
)
def test_short_numbers(number: float, text: str) -> None:
    assert short(number) == text


@pytest.mark.parametrize(
    "usd, text",
    [(0, "$0.00"), (6e-8, "$0.00000006"), (0.0019, "$0.0019"), (0.999, "$1"), (21.1244, "$21.12"), (1234.5, "$1,234.50")],
)
def test_small_sums_keep_two_digits_and_never_end_in_a_point(usd: float, text: str) -> None:
    assert dollars(usd) == text


@pytest.mark.parametrize("number", [10**exponent * digit for exponent in range(12) for digit in (1, 5, 9.5, 9.99, 9.999)])
def test_short_numbers_are_short_and_near(number: float) -> None:
    text = short(number)
    factor = {"k": 1e3, "M": 1e6, "G": 1e9}.get(text[-1], 1)
    assert len(text) <= 5
    assert float(text.rstrip("kMG")) * factor == pytest.approx(number, rel=0.05)


@pytest.mark.parametrize(
    "seconds, text",
    [(0, "0:00"), (7.4, "0:07"), (59.6, "1:00"), (723, "12:03"), (3600, "1h00"), (11_100, "3h05"), (187_200, "2d04h")],
)
def test_durations(seconds: float, text: str) -> None:
    assert clock(seconds) == text


def test_accounting_names_the_steps_that_do_not_balance() -> None:
    assert accounting_line(metadata()) == "accounting: balanced"
    unbalanced = metadata(balanced=False, imbalances=["root 3: 'first' took 4 rows, but 5 came"])
    assert accounting_line(unbalanced) == "accounting: NOT balanced: root 3: 'first' took 4 rows, but 5 came"


def test_the_summary_of_a_clean_run() -> None:
    assert list(summary_lines(metadata(), OUT)) == [
        "accounting: balanced",
        "tokens: 4,567 in prompts, 89 in answers, 3 requests",
        "time: 1:05",
        "directory: runs/my run",
    ]


def test_the_time_of_a_run_is_that_of_its_sessions() -> None:
    assert [*time_line(metadata(seconds_at_work=7.2))] == ["time: 0:07 at work, 1:05 since the start"]
    times = WorkTime()
    for began, ended, is_killed in ((0, 5, False), (600, 602, True), (1200, 1201, True)):
        times.begin(datetime.fromtimestamp(began, UTC).isoformat())
        times.at = datetime.fromtimestamp(ended, UTC).isoformat()
        if not is_killed:
            times.end(times.at)
    assert times.total == 5 + 2 + 1, "the pauses between them do not count"


@pytest.mark.parametrize(
    ("plan", "usd", "told"),
    [
        (
            {},
            0.082,
            "plan (sample, 3,000 of its 100,000 records): 5,997 requests, and 95 were asked; "  # noqa: ISC004
            "$0.15, and $0.082 were spent: 43.8% less than planned",
        ),
        (
            {"records": 3000},
            5.0,
            "plan (sample): 199,900 requests, and 95 were asked; $4.86, and $5.00 were spent: 2.9% more than planned",
        ),
        (
            {"records": 3000},
            4.86,
            "plan (sample): 199,900 requests, and 95 were asked; $4.86, and $4.86 were spent: as planned",
        ),
        ({"fingerprint": "that of another chain"}, 5.0, None),
    ],
)
def test_a_plan_is_compared_with_as_many_records_in_plain_words(
    tmp_path: Path, plan: dict[str, Any], usd: float, told: str | None
) -> None:
    steps = [{"requests": 199_900, "usd": 4.86}]
    known = {"basis": "sample", "fingerprint": "f", "records": 100_000, "resumed": False, "steps": steps, "asked": 0}
    estimate = RunDir(tmp_path).estimate
    estimate.parent.mkdir()
    estimate.write_text(json.dumps(known | {"spent": {"usd": 0.0}} | plan))
    spent = metadata(usage={"requests": 95}, cost={"usd": usd, "gpu_hours": 0.0})
    assert [*plan_line(spent, tmp_path)] == ([told] if told else [])


def test_steps_that_are_ahead_of_the_input_and_joins_are_explained() -> None:
    steps = {"chain_input": {"in": 256, "out": 256}, "extract": {"in": 359, "out": 359}}
    paused = metadata(status="paused", steps=steps, settings={"batch_size": 64})
    assert [*ahead_line(paused)] == [
        "chain_input counts groups of 64 records whose rows are all done; the steps are ahead of it"
    ]
    assert [*ahead_line(paused | {"status": "finished"})] == []
    assert [row_name(step) for step in ("extract", "+by_lang", "summary+translation")] == [
        "extract",
        "by_lang joined",
        "summary+translation joined",
    ]


def test_simulated_answers_are_called_so() -> None:
    llama = {"backend": "llama_cpp", "model": "m.gguf", "loads": 1, "load_seconds": 1.0}
    engines = {"judge": llama | {"simulated": True}}
    assert "answers: simulated, not those of a model" in summary_lines(metadata(simulated=True, engines=engines), OUT)
    engines |= {"llama": llama}
    assert "answers of judge: simulated, not those of a model" in summary_lines(metadata(simulated=True, engines=engines), OUT)


@pytest.mark.parametrize(
    "status, working, wanted",
    [
        ("paused", False, ["go on: chainette resume 'runs/my run'"]),
        ("running", False, ["go on: chainette resume 'runs/my run'"]),
        ("running", True, []),
        ("finished", False, []),
        ("cancelled", False, []),
    ],
)
def test_the_next_command_depends_on_where_the_run_stands(status: str, working: bool, wanted: list[str]) -> None:
    assert list(next_lines(metadata(status=status), OUT, working=working)) == wanted


def test_rejected_rows_are_pointed_to() -> None:
    assert list(next_lines(metadata(rows_rejected=1), OUT)) == ["rejected rows: chainette rejected 'runs/my run'"]


def test_engines_say_how_often_they_were_loaded() -> None:
    assert list(engine_lines(metadata())) == ["engine llama: llama_cpp, m.gguf, loaded 2 times in 3.2 s"]
