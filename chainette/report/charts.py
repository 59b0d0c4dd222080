"""Charts as SVG text without scripts, drawn by Vega-Lite. Their colours are CSS variables of the page that contains them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from chainette.errors import RunError

__all__ = ["COLOURS", "Series", "Span", "render_lines", "render_spans"]

#: The number of series with distinct colours; the page defines `--s1` to `--s8`.
COLOURS = 8

_SCHEMA = "https://vega.github.io/schema/vega-lite/v5.json"
_VERSION = "5.21"
_CONFIG = {
    "font": "system-ui, sans-serif",
    "view": {"stroke": None},
    "axis": {
        "labelColor": "var(--quiet)",
        "titleColor": "var(--quiet)",
        "titleFontWeight": "normal",
        "gridColor": "var(--line)",
        "domainColor": "var(--line)",
        "tickColor": "var(--line)",
        "labelFontSize": 11,
        "titleFontSize": 11,
    },
}


@dataclass(frozen=True)
class Series:
    """A line of a chart: (seconds, value) points."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Span:
    """One row of a chart of spans, in seconds."""

    name: str
    middle: float
    high: float
    highest: float


def render_lines(series: Sequence[Series], rules: Sequence[float], *, width: int, stacked: bool = False) -> str:
    """A line chart of values over working time, for at most `COLOURS` series; a dashed line marks each start of an epoch.

    Raises:
        RunError: the package that draws charts is not installed.
    """
    end = max((at for line in series for at, _ in line.points), default=0.0)
    unit, scale = next(found for found in _UNITS if end / found[1] >= 3 or found[1] == 1)
    values = [
        {"at": at / scale, "value": value, "name": line.name, "order": number}
        for number, line in enumerate(series)
        for at, value in line.points
    ]
    x = {"field": "at", "type": "quantitative", "title": f"{unit} of work", "axis": {"grid": False, "tickCount": width // 80}}
    y = {"field": "value", "type": "quantitative", "title": None, "axis": {"format": "~s", "tickCount": 4, "domain": False}}
    if stacked:
        y["stack"] = "zero"
    mark: dict[str, Any] = (
        {"type": "area", "opacity": 0.85, "interpolate": "monotone"}
        if stacked
        else {"type": "line", "strokeWidth": 2, "interpolate": "monotone", "point": len(values) == len(series)}
    )
    lines = {"data": {"values": values}, "mark": mark, "encoding": {"x": x, "y": y, "color": _colour(series)}}
    marks = {
        "data": {"values": [{"at": at / scale} for at in rules]},
        "mark": {"type": "rule", "strokeDash": [3, 3], "color": "var(--quiet)"},
        "encoding": {"x": {"field": "at", "type": "quantitative"}},
    }
    return _svg({"width": width, "height": 200, "layer": [lines, *([marks] if rules else [])]})


#: Units with their seconds, the largest first.
_UNITS = (("days", 86_400), ("hours", 3600), ("minutes", 60), ("seconds", 1))


def render_spans(spans: Sequence[Span], *, width: int) -> str:
    """For each span, a bar from the middle to the high value, with a dot at the middle and a tick at the highest value.

    Raises:
        RunError: the package that draws charts is not installed.
    """
    unit, seconds = next(
        found for found in _SHORT_UNITS if max(span.highest for span in spans) >= 2 * found[1] or found[1] == _MS
    )
    values = [
        {"name": span.name, "middle": span.middle / seconds, "high": span.high / seconds, "highest": span.highest / seconds}
        for span in spans
    ]
    wide = _is_wide(spans)
    scale = {"type": "log" if wide else "linear", "zero": False, "nice": True, "padding": 8}
    axis: dict[str, Any] = {"tickCount": max(3, width // 110), "labelExpr": f"format(datum.value, '.3~r') + ' {unit}'"}
    if wide:
        axis = {"values": [at / seconds for at, _ in _MARKS], "labelExpr": _mark_name(seconds)}
    y = {"field": "name", "type": "nominal", "title": None, "sort": None, "axis": _NAMES}

    def x(name: str) -> dict[str, Any]:
        shown = {"labelOverlap": "greedy", "domain": False}
        return {"field": name, "type": "quantitative", "title": None, "scale": scale, "axis": axis | shown}

    bar = {"mark": _BAR, "encoding": {"x": x("middle"), "x2": {"field": "high"}, "y": y}}
    dot = {"mark": _DOT, "encoding": {"x": x("middle"), "y": y}}
    tick = {"mark": _TICK, "encoding": {"x": x("highest"), "y": y}}
    return _svg({"width": width, "height": {"step": 30}, "data": {"values": values}, "layer": [bar, dot, tick]})


_MS = 0.001
#: Units of a linear axis with their seconds, the largest first.
_SHORT_UNITS = (("h", 3600.0), ("min", 60.0), ("s", 1.0), ("ms", _MS))
#: Labels of a logarithmic axis, by their seconds.
_MARKS = (
    *((10.0**power, f"{10 ** (power + 3):g} ms") for power in range(-6, 0)),
    *((1.0, "1 s"), (10.0, "10 s"), (60.0, "1 min"), (600.0, "10 min"), (3600.0, "1 h"), (36_000.0, "10 h")),
)


def _mark_name(seconds: float) -> str:
    """A Vega expression for the label of a mark, given its value in units of so many seconds."""
    return "".join(f"datum.value < {at / seconds * 1.01!r} ? '{name}' : " for at, name in _MARKS) + "''"


_NAMES = {
    "domain": False,
    "ticks": False,
    "labelLimit": 110,
    "labelFontSize": 12,
    "labelColor": "var(--ink)",
    "labelPadding": 8,
}
_BAR = {"type": "rule", "strokeWidth": 8, "color": "var(--s1)", "opacity": 0.35, "strokeCap": "round"}
_DOT = {"type": "circle", "size": 90, "color": "var(--s1)", "opacity": 1}
_TICK = {"type": "tick", "thickness": 2, "color": "var(--quiet)"}


def _is_wide(spans: Sequence[Span]) -> bool:
    lowest, highest = min(span.middle for span in spans), max(span.highest for span in spans)
    return lowest > 0 and highest / lowest > 20


def _colour(series: Sequence[Series]) -> dict[str, Any]:
    scale = {"domain": [line.name for line in series], "range": [f"var(--s{number + 1})" for number in range(len(series))]}
    return {"field": "name", "type": "nominal", "scale": scale, "legend": None}


def _svg(chart: dict[str, Any]) -> str:
    try:
        import vl_convert
    except ImportError as error:
        raise RunError(
            "a report needs the package vl-convert-python, which draws its charts: pip install 'chainette[report]'"
        ) from error
    whole = {
        "$schema": _SCHEMA,
        "background": None,
        "padding": {"left": 12, "right": 4, "top": 4, "bottom": 4},
        "config": _CONFIG,
        **chart,
    }
    return vl_convert.vegalite_to_svg(whole, vl_version=_VERSION)
