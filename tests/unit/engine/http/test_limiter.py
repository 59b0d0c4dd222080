"""The limiter: causes that lower and raise it, and the order of the waiting."""

from __future__ import annotations

import asyncio
from typing import Any

from chainette.engine.http.limiter import Limiter


def test_a_burst_of_refusals_halves_the_limit_once(fake_time: Any) -> None:
    limiter = Limiter(64, fake_time.timing.clock)
    fake_time.now = 1.0
    for _ in range(20):
        limiter.overloaded(sent_at=0.5)
    assert limiter.limit == 32
    limiter.overloaded(sent_at=1.5)
    assert limiter.limit == 16


def test_the_limit_never_falls_below_one(fake_time: Any) -> None:
    limiter = Limiter(4, fake_time.timing.clock)
    for _ in range(20):
        limiter.overloaded(sent_at=fake_time.now)
    assert limiter.limit == 1


def test_a_round_of_successes_adds_one_up_to_the_ceiling(fake_time: Any) -> None:
    limiter = Limiter(8, fake_time.timing.clock)
    limiter.overloaded(sent_at=0.0)
    for _ in range(5):
        limiter.succeeded(sent_at=1.0, pace=1.0)
    assert limiter.limit == 5
    for _ in range(500):
        limiter.succeeded(sent_at=1.0, pace=1.0)
    assert limiter.limit == 8


def test_answers_that_become_far_slower_shrink_the_limit(fake_time: Any) -> None:
    limiter = Limiter(64, fake_time.timing.clock)
    for _ in range(16):
        limiter.succeeded(sent_at=0.0, pace=0.01)
    for _ in range(16):
        limiter.succeeded(sent_at=0.0, pace=0.02)
    assert limiter.limit == 64
    for _ in range(16):
        limiter.succeeded(sent_at=0.0, pace=0.1)
    assert limiter.limit == 48


def test_a_lasting_change_of_pace_is_learned_and_the_limit_recovers(fake_time: Any) -> None:
    limiter = Limiter(64, fake_time.timing.clock)
    for pace in [0.01] * 16 + [0.5] * 4000:
        fake_time.now += 1.0
        limiter.succeeded(sent_at=fake_time.now, pace=pace)
    assert limiter.limit == 64


def test_slots_are_given_in_the_order_of_asking_and_cancelled_waiters_are_skipped(fake_time: Any) -> None:
    async def main() -> list[int]:
        limiter, order = Limiter(1, fake_time.timing.clock), []

        async def work(number: int) -> None:
            await limiter.acquire()
            order.append(number)
            await asyncio.sleep(0)
            limiter.release()

        await limiter.acquire()
        tasks = [asyncio.create_task(work(number)) for number in range(5)]
        await asyncio.sleep(0)
        tasks[1].cancel()
        await asyncio.sleep(0)
        limiter.release()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert limiter.in_flight == 0
        return order

    assert asyncio.run(main()) == [0, 2, 3, 4]


def test_a_waiter_cancelled_after_it_was_given_a_slot_gives_it_back(fake_time: Any) -> None:
    async def main() -> int:
        limiter = Limiter(1, fake_time.timing.clock)
        await limiter.acquire()
        waiter = asyncio.create_task(limiter.acquire())
        await asyncio.sleep(0)
        limiter.release()
        waiter.cancel()
        await asyncio.gather(waiter, return_exceptions=True)
        return limiter.in_flight

    assert asyncio.run(main()) == 0
