"""The breaker: when it opens, which requests pass, when it closes."""

from __future__ import annotations

from typing import Any

from chainette.engine.http.breaker import Breaker, State
from chainette.engine.http.timing import Policy

_POLICY = Policy(window=10, least_seen=4, error_share=0.5, cooldown=2.0, cooldown_cap=16.0)


def _breaker(time: Any) -> Breaker:
    time.chance = 1.0
    return Breaker(_POLICY, time.timing)


def test_it_opens_when_half_of_the_recent_requests_failed(fake_time: Any) -> None:
    breaker = _breaker(fake_time)
    for good in (True, True, True, False, False):
        breaker.succeeded(probe=False) if good else breaker.failed(probe=False)
    assert breaker.admits()
    breaker.failed(probe=False)
    assert breaker.state is State.OPEN
    assert not breaker.admits()


def test_a_few_failures_at_the_start_do_not_open_it(fake_time: Any) -> None:
    breaker = _breaker(fake_time)
    for _ in range(3):
        breaker.failed(probe=False)
    assert breaker.state is State.CLOSED


def test_failures_that_left_the_window_are_forgotten(fake_time: Any) -> None:
    breaker = _breaker(fake_time)
    for good in [False] * 3 + [True] * 10 + [False] * 4:
        breaker.succeeded(probe=False) if good else breaker.failed(probe=False)
    assert breaker.state is State.CLOSED


def test_after_the_cooldown_one_probe_passes_and_its_success_closes(fake_time: Any) -> None:
    breaker = _breaker(fake_time)
    breaker.trip()
    fake_time.now = 1.9
    assert not breaker.admits()
    fake_time.now = 2.0
    assert breaker.admits()
    assert breaker.enter()
    assert not breaker.admits()
    breaker.succeeded(probe=True)
    assert breaker.state is State.CLOSED


def test_failed_probes_double_the_cooldown_up_to_its_cap(fake_time: Any) -> None:
    breaker = _breaker(fake_time)
    breaker.trip()
    rests = []
    for _ in range(5):
        fake_time.now = breaker.probe_at
        assert breaker.enter()
        breaker.failed(probe=True)
        rests.append(breaker.probe_at - fake_time.now)
    assert rests == [4.0, 8.0, 16.0, 16.0, 16.0]


def test_requests_sent_before_it_opened_change_nothing(fake_time: Any) -> None:
    breaker = _breaker(fake_time)
    breaker.trip()
    breaker.succeeded(probe=False)
    assert breaker.state is State.OPEN
    before = breaker.probe_at
    fake_time.now = 1.0
    for _ in range(10):
        breaker.failed(probe=False)
    assert breaker.probe_at == before


def test_a_cancelled_probe_lets_the_next_request_probe(fake_time: Any) -> None:
    breaker = _breaker(fake_time)
    breaker.trip()
    fake_time.now = breaker.probe_at
    assert breaker.enter()
    breaker.abandoned(probe=True)
    assert breaker.admits()
