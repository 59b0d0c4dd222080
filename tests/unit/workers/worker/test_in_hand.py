"""Row budgets: what may begin, in which order, and what waits."""

from __future__ import annotations

import anyio
from chainette_workers.worker.in_hand import Hands, Lane

from chainette.fleet.protocol.states import Claim, Turn
from chainette.records import Row, Unit


def claim(name: str, rows: int = 4, turn: Turn = Turn.JOB) -> Claim:
    return Claim(name, f"token-{name}", "run", 0, Unit("node", 0, name, "", [Row("0", {})] * rows), turn)


def begun(lane: Lane, *claims: Claim, ends: tuple[Claim, ...] = ()) -> list[str]:
    """Names of those that begin, in order, while `ends` end one after the other."""
    hands, order = Hands(), []

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


def test_a_quarter_of_the_budget_waits_ahead_and_one_unit_at_least() -> None:
    hands = Hands()
    for budget, expected in ((32, 2), (4, 1), (None, 1)):
        lane, waiting = Lane(budget), 0
        while lane.takes_ahead:
            waiting += 1
            hands.take(lane, claim(f"{waiting}"))
        assert waiting == expected


def test_functions_count_by_the_unit() -> None:
    assert begun(Lane(2, by_unit=True), claim("a", 1000), claim("b", 1), claim("c", 1)) == ["a", "b"]


def test_nothing_is_claimed_beside_a_unit_that_runs_alone() -> None:
    hands, lane, alone = Hands(), Lane(8), claim("a", turn=Turn.SOLO)
    hands.take(lane, alone)
    assert hands.alone and hands.rows == 4
    hands.drop(lane, alone)
    assert not hands.alone and not hands.claims and hands.rows == 0 and lane.idle
