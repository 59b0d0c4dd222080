"""One back-off for everything that retries; it works for any number of failures."""

from __future__ import annotations

import pytest

from chainette.engine.http.breaker import Breaker
from chainette.engine.http.timing import Policy, Timing, full_jitter
from chainette.utils.backoff import backoff


def test_the_wait_doubles_up_to_its_cap() -> None:
    assert [backoff(failures, 0.5, 30.0) for failures in range(8)] == [0.5, 1, 2, 4, 8, 16, 30, 30]


@pytest.mark.parametrize("failures", [63, 64, 1023, 1024, 1025, 10**9])
def test_the_cap_holds_after_any_number_of_failures(failures: int) -> None:
    assert backoff(failures, 0.05, 1.5) == 1.5
    assert full_jitter(0.5, failures + 1, 0.5, 30.0) == 15.0


def test_an_endpoint_that_has_failed_thousands_of_times_still_gets_its_probe() -> None:
    now = 0.0
    breaker = Breaker(Policy(), Timing(clock=lambda: now, random=lambda: 0.5))
    for _ in range(3000):
        breaker.trip()
        now = breaker.probe_at
        assert breaker.admits() and breaker.enter()
    assert 0 < breaker.probe_at - (now - 30.0) <= 30.0
