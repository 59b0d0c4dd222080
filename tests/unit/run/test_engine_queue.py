"""A lane of a local run: what waits for an engine that answers, does not, or does now and then."""

from __future__ import annotations

from chainette.records import Row, Unit
from chainette.run.engine_queue import Lane


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def unit(root: int) -> Unit:
    return Unit("node", root, "", "", [Row(str(root), {})])


def taken(lane: Lane) -> Unit:
    found = lane.take()
    assert found is not None
    return found


def test_an_engine_that_answers_one_unit_and_not_the_next_is_silent_from_then_on() -> None:
    clock = Clock()
    lane = Lane("engine", 8, clock)
    for root in range(3):
        lane.push(unit(root), 1)
    first, second, third = (taken(lane) for _ in range(3))
    assert lane.fail(first, 1) > 0 and lane.failing_since == 100
    clock.now += 0.1
    lane.succeed(second)
    assert lane.failing_since is None
    assert 0 < lane.fail(third, 1) < 1 and lane.failing_since == 100.1
    assert lane.take() is None
    clock.now += 1
    assert taken(lane) == first
    assert lane.take() is None, "an engine that failed is tried with one unit"
    lane.succeed(first)
    assert taken(lane) == third


def test_the_deepest_unit_comes_first_and_a_unit_above_the_budget_comes_alone() -> None:
    lane = Lane("engine", 2, Clock())
    large = Unit("node", 0, "", "", [Row(str(number), {}) for number in range(3)])
    lane.push(large, 1)
    lane.push(unit(1), 2)
    assert taken(lane) == unit(1) and lane.take() is None
    lane.succeed(unit(1))
    assert taken(lane) == large and lane.take() is None


def test_an_engine_that_has_failed_thousands_of_times_is_still_tried_again() -> None:
    clock = Clock()
    lane = Lane("engine", 8, clock)
    lane.push(unit(0), 1)
    for _ in range(3000):
        delay = lane.fail(taken(lane), 1)
        clock.now += delay
    assert 22.5 <= delay <= 37.5
    assert taken(lane) == unit(0)
