"""When a run will be done."""

from __future__ import annotations

import math

from chainette_workers.metrics.forecast import Forecast


def fed(*steps: tuple[float, int]) -> Forecast:
    forecast = Forecast()
    for now, done in steps:
        forecast.see(now, done)
    return forecast


def test_the_rest_takes_as_long_as_the_speed_of_late_says() -> None:
    assert fed((0, 0), (10, 50)).seconds(100) == 10
    assert fed((0, 0), (100, 10), (1000, 20), (1300, 320)).seconds(620) == 300  # the slow start is forgotten


def test_nothing_is_said_before_anything_moved() -> None:
    assert math.isnan(Forecast().seconds(10))
    assert math.isnan(fed((0, 5), (10, 5)).seconds(10))
    assert math.isnan(fed((0, 0), (10, 5)).seconds(None))


def test_what_is_done_needs_no_time() -> None:
    assert fed((0, 10)).seconds(10) == 0


def test_a_new_epoch_with_less_done_begins_anew() -> None:
    assert fed((0, 0), (10, 100), (20, 50), (30, 60)).seconds(70) == 10
