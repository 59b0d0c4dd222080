"""The shares of requests in an engine's time add up to the seconds in which it has any."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from chainette.engine.shared_time import SharedTime


def test_a_request_that_is_alone_uses_every_second() -> None:
    time = SharedTime()
    mark = time.begin(10.0, 1)
    assert time.end(12.0, mark) == 2.0


def test_requests_side_by_side_divide_the_seconds() -> None:
    time = SharedTime()
    first = time.begin(0.0, 1)
    others = time.begin(1.0, 3)  # four in flight from here on
    assert time.end(3.0, first) == 1.0 + 2.0 / 4
    assert [time.end(6.0, others), time.end(6.0, others), time.end(6.0, others)] == [1.5, 1.5, 1.5]


def test_the_mean_share_of_requests_that_ended_is_known() -> None:
    time = SharedTime()
    assert time.per_request == 0.0
    marks = [time.begin(0.0, 3)] * 3
    assert [time.end(at, mark) for at, mark in zip((3.0, 5.0, 6.0), marks, strict=True)] == [1.0, 2.0, 3.0]
    assert time.per_request == 2.0


def test_idle_time_is_nobodys() -> None:
    time = SharedTime()
    time.end(1.0, time.begin(0.0, 1))
    assert time.end(101.0, time.begin(100.0, 1)) == 1.0


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 50)), min_size=1, max_size=20))
def test_the_shares_add_up_to_the_seconds_with_requests(spans: list[tuple[int, int]]) -> None:
    time, marks = SharedTime(), dict[int, float]()
    moments = [(start + length, 0, number) for number, (start, length) in enumerate(spans)]
    moments += [(start, 1, number) for number, (start, _) in enumerate(spans)]
    shares = 0.0
    for at, begins, number in sorted(moments):
        if begins:
            marks[number] = time.begin(float(at), 1)
        else:
            shares += time.end(float(at), marks[number])
    busy = {second for start, length in spans for second in range(start, start + length)}
    assert abs(shares - len(busy)) < 1e-6
