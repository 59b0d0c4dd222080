"""When a run stops itself for its rejections."""

from __future__ import annotations

import pytest

from chainette.errors import RunStopped
from chainette.run.limits import RejectWatch


def test_rows_in_flight_of_units_with_committed_parts_count_as_rows_of_the_step() -> None:
    watch = RejectWatch(0.5)
    for _ in range(20):  # a quarter of each unit of 64 is rejected at once; the good answers are slow
        watch.count("step", taken=16, rejected=16, opened=48)
    for _ in range(20):
        watch.count("step", taken=48, rejected=0, opened=-48)


def test_the_rate_is_reached_although_good_rows_are_in_flight() -> None:
    watch = RejectWatch(0.25)
    with pytest.raises(RunStopped, match="rejected 208 of 832 rows"):
        for _ in range(20):
            watch.count("step", taken=16, rejected=16, opened=48)


def test_a_new_epoch_has_nothing_in_flight() -> None:
    watch = RejectWatch(0.5)
    watch.count("step", taken=150, rejected=150, opened=10_000)
    watch.begin()
    with pytest.raises(RunStopped, match="rejected 200 of 200 rows"):
        watch.count("step", taken=50, rejected=50)


def test_a_run_that_goes_on_in_the_middle_of_units_counts_no_fewer_rows_than_it_took() -> None:
    watch = RejectWatch(0.5)
    watch.count("step", taken=190, rejected=90, opened=-50)
    watch.count("step", taken=10, rejected=0, opened=0)
