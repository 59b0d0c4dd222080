"""Row budgets: which units may begin, in which order, and which wait."""

from __future__ import annotations

import anyio

from chainette.fleet.protocol.queue_values import Claim, Turn
from chainette.records import Row, Unit
from chainette.run.in_flight import InFlight, Lane


def claim(name: str, rows: int = 4, turn: Turn = Turn.JOB) -> Claim:
    return Claim(name, f"token-{name}", "run", 0, Unit("node", 0, name, "", [Row("0", {})] * rows), turn)


def begun(lane: Lane, *claims: Claim, ends: tuple[Claim, ...] = ()) -> list[str]:
    """Names of those that begin, in order, while `ends` end one after the other."""
    hands, order = InFlight(), []

    async def work(one: Claim) -> None:
        await hands.begin(lane, one)
        order.append(one.job)

    async def go() -> None:
        async with anyio.create_task_group() as group:
            for one in claims:
                hands.take(lane, one)
                group.start_soon(work, one)
            await anyio.wait_all_tasks_blocked()
            for one in ends:
                hands.drop(lane, one)
                await anyio.wait_all_tasks_blocked()
            group.cancel_scope.cancel()

    anyio.run(go)
    return order


def test_units_begin_while_their_rows_fit() -> None:
    assert begun(Lane(8), claim("a"), claim("b"), claim("c")) == ["a", "b"]


def test_room_is_free_when_redis_has_answered_and_goes_to_whoever_came_first() -> None:
    first = claim("a")
    assert begun(Lane(8), first, claim("b"), claim("c"), claim("d"), ends=(first,)) == ["a", "b", "c"]


def test_a_unit_larger_than_the_budget_runs_when_nothing_else_does_and_nothing_passes_it() -> None:
    small = claim("small", 1)
    assert begun(Lane(8), small, claim("large", 9), claim("tiny", 1)) == ["small"]
    assert begun(Lane(8), small, claim("large", 9), claim("tiny", 1), ends=(small,)) == ["small", "large"]


def test_nothing_begins_before_the_engine_has_said_its_capacity() -> None:
    lane = Lane(None)
    assert not lane.has_room(1) and lane.takes_ahead
    assert begun(lane, claim("a")) == []


def test_one_unit_is_claimed_ahead_so_that_its_engine_opens_and_none_once_it_is_open() -> None:
    hands, lane = InFlight(), Lane(None)
    hands.take(lane, claim("a"))
    assert not lane.takes_ahead
    assert not Lane(8).takes_ahead


def test_functions_count_by_the_unit() -> None:
    assert begun(Lane(2, by_unit=True), claim("a", 1000), claim("b", 1), claim("c", 1)) == ["a", "b"]


def test_nothing_is_claimed_beside_a_unit_that_runs_alone() -> None:
    hands, lane, alone = InFlight(), Lane(8), claim("a", turn=Turn.SOLO)
    hands.take(lane, alone)
    assert hands.alone and hands.rows == 4
    hands.drop(lane, alone)
    assert not hands.alone and not hands.claims and hands.rows == 0 and lane.idle


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_an_engine_that_answers_one_unit_and_not_the_next_is_silent_from_then_on() -> None:
    clock = Clock()
    lane = Lane(8, clock=clock)
    assert lane.fail() > 0 and lane.failing_since == 100
    clock.now += 0.1
    lane.succeed()
    assert lane.failing_since is None and lane.has_answered
    assert 0 < lane.fail() < 1 and lane.failing_since == 100.1


def test_an_engine_that_failed_rests_and_is_then_tried_with_one_unit() -> None:
    clock, hands = Clock(), InFlight()
    lane = Lane(8, clock=clock)
    delay = lane.fail()
    assert not lane.has_room(1) and not lane.takes_ahead
    clock.now += delay
    assert lane.has_room(1)
    hands.take(lane, claim("a", 1))
    anyio.run(hands.begin, lane, next(iter(hands)))
    assert not lane.has_room(1)
    lane.succeed()
    assert lane.has_room(1)


def test_an_engine_that_did_not_open_was_silent_meanwhile() -> None:
    lane = Lane(8, clock=Clock())
    lane.fail(silent=7)
    assert lane.failing_since == 93


def test_an_engine_that_has_failed_thousands_of_times_is_still_tried_again() -> None:
    clock = Clock()
    lane = Lane(8, clock=clock)
    for _ in range(3000):
        delay = lane.fail()
        clock.now += delay
    assert 22.5 <= delay <= 37.5
    assert lane.has_room(1)


def test_small_units_come_together_as_far_as_the_lane_has_room() -> None:
    lane, hands = Lane(8), InFlight()
    assert lane.room == 8
    hands.take(lane, claim("a", rows=5))
    anyio.run(hands.begin, lane, hands.claims["a"])
    assert lane.room == 3
    lane.fail()
    assert lane.room == 0, "a silent engine is tried with one unit"
    assert Lane(8, by_unit=True).room == 0


def test_an_answer_ends_the_rest_of_an_engine() -> None:
    lane = Lane(8, clock=lambda: 10.0)
    lane.fail()
    assert lane.rests and not lane.has_room(1)
    lane.succeed()
    assert not lane.rests and lane.has_room(1)
