"""Numbers and durations for people, and the next commands after a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from chainette.cli.screen.summary import accounting_line, engine_lines, next_lines, summary_lines
from chainette.screen.numbers import clock, dollars, short

OUT = Path("runs/my run")


def metadata(**keys: Any) -> dict[str, Any]:
    return {
        "status": "finished",
        "started_at": "2026-01-01T00:00:00.000000Z",
        "ended_at": "2026-01-01T00:01:05.000000Z",
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
