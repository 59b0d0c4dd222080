"""Dates, times and durations between bounds, as text in ISO 8601."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime, time, timedelta, timezone
from random import Random
from typing import Any, NamedTuple

__all__ = ["moment"]

Draw = Callable[[Random], str]

_DAY = 86_400
#: The first moment of "the future", so that answers do not depend on the day on which they are drawn.
_FUTURE = datetime(2100, 1, 1, tzinfo=UTC)


class _Scale(NamedTuple):
    """Values counted in whole units from an origin."""

    #: From a value to its place, not always a whole one.
    place: Callable[[Any], float]
    #: From a place and a time zone to the text.
    write: Callable[[int, Any], str]
    low: int
    high: int


def moment(kind: str, schema: Mapping[str, Any]) -> Draw:
    """Draws a value of a format (`date`, `date-time`, `time` or `duration`) between the bounds that `x-` keywords give."""
    scale = _SCALES[kind]
    low, high = _bounds(scale, schema)
    zone = _zone(schema)
    return lambda rng: scale.write(low + int(rng.random() * (high - low + 1)), zone)


def _bounds(scale: _Scale, schema: Mapping[str, Any]) -> tuple[int, int]:
    lows = [math.ceil(scale.place(schema["x-least"]))] if "x-least" in schema else []
    lows += [math.floor(scale.place(schema["x-above"])) + 1] if "x-above" in schema else []
    lows += [math.ceil(scale.place(_FUTURE))] if schema.get("x-now") == "future" else []
    highs = [math.floor(scale.place(schema["x-most"]))] if "x-most" in schema else []
    highs += [math.ceil(scale.place(schema["x-below"])) - 1] if "x-below" in schema else []
    highs += [scale.high] if schema.get("x-now") == "past" else []
    low = max(lows) if lows else min(scale.low, min(highs) - (scale.high - scale.low)) if highs else scale.low
    high = (
        min(highs) if highs else max(scale.high, low + (scale.high - scale.low)) if not lows else low + scale.high - scale.low
    )
    return low, max(low, high)


def _zone(schema: Mapping[str, Any]) -> timezone | None:
    """The zone of the text: the one that the model demands, else that of its bounds, else UTC."""
    asked = schema.get("x-zone")
    if isinstance(asked, int):
        return timezone(timedelta(seconds=asked))
    bounds = [schema[key] for key in ("x-least", "x-above", "x-most", "x-below") if key in schema]
    naive = any(isinstance(bound, datetime | time) and bound.tzinfo is None for bound in bounds)
    return None if asked == "naive" or (naive and asked is None) else UTC


def _seconds(value: datetime) -> float:
    return (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()


def _time_of_day(value: time) -> float:
    return value.hour * 3600 + value.minute * 60 + value.second + value.microsecond / 1e6


def _write_datetime(seconds: int, zone: timezone | None) -> str:
    found = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)
    return (found.astimezone(zone) if zone else found.replace(tzinfo=None)).isoformat().replace("+00:00", "Z")


def _write_duration(seconds: int, _zone: timezone | None) -> str:
    return f"{'-' if seconds < 0 else ''}PT{abs(seconds)}S"


_SCALES = {
    "date": _Scale(
        lambda value: value.toordinal(),
        lambda days, _zone: date.fromordinal(days).isoformat(),
        date(2020, 1, 1).toordinal(),
        date(2024, 8, 1).toordinal(),
    ),
    "date-time": _Scale(_seconds, _write_datetime, 1_577_836_800, 1_727_836_800),
    "time": _Scale(
        _time_of_day,
        lambda seconds, zone: (datetime.min + timedelta(seconds=seconds)).time().isoformat() + ("Z" if zone else ""),
        0,
        _DAY - 1,
    ),
    "duration": _Scale(timedelta.total_seconds, _write_duration, 0, _DAY),
}
