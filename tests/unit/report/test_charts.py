"""Charts as text: axes that people can read."""

from __future__ import annotations

import re

import pytest

from chainette.report.charts import Series, Span, render_lines, render_spans


def labels(svg: str) -> list[str]:
    return re.findall(r">([^<>]+)</text>", svg)


@pytest.mark.parametrize(
    ("spans", "expected"),
    [
        ([Span("a", 0.012, 0.013, 0.015)], ["12 ms", "15 ms"]),
        ([Span("a", 0.02, 0.05, 0.4), Span("b", 0.001, 0.002, 0.9)], ["1 ms", "10 ms", "100 ms", "1 s"]),
        ([Span("a", 30, 35, 60)], ["30 s", "60 s"]),
        ([Span("a", 300, 350, 600)], ["5 min", "10 min"]),
        ([Span("a", 2, 5, 40), Span("b", 100, 200, 900)], ["1 s", "10 s", "1 min", "10 min", "1 h"]),
    ],
)
def test_an_axis_of_durations_names_round_values_with_their_unit(spans: list[Span], expected: list[str]) -> None:
    found = labels(render_spans(spans, width=700))
    assert set(expected) <= set(found)
    assert all(re.fullmatch(r"[0-9.]+ (ms|s|min|h)|[ab]", label) for label in found)


def test_a_line_stays_between_its_points() -> None:
    svg = render_lines([Series("a", [(0, 0), (10, 0), (20, 100), (30, 100), (40, 0)])], (), width=700)
    [path] = re.findall(
        r'aria-roledescription="line mark"[^>]*?d="([^"]+)"|d="([^"]+)"[^>]*aria-roledescription="line mark"', svg
    )
    heights = [float(y) for _, y in re.findall(r"(-?[0-9.]+),(-?[0-9.]+)", "".join(path))]
    assert min(heights) >= 0 and max(heights) <= 200
