"""One device, two engines: when a swap is worth its cost."""

from __future__ import annotations

from chainette_workers.worker.engine_turns import EngineTurns, exclude

from chainette.engine.config import EngineConfig, make_config

A = make_config("a", "model", "simulated", exclusive=True)
B = make_config("b", "model", "simulated", exclusive=True)
FREE = make_config("free", "model", "simulated")
OTHER_A = make_config("a", "another", "simulated")


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class Site:
    """A device, and the units that wait for its engines."""

    def __init__(self, *configs: EngineConfig, cost: float = 10.0) -> None:
        self.clock = Clock()
        self.turns = EngineTurns(cost, self.clock)
        self.turns.know(configs)
        self.busy: set[str] = set()

    def look(self, *depths: tuple[EngineConfig, int], later: float = 0.0) -> str:
        """The engine that is served after a look, so much later."""
        self.clock.now += later
        self.turns.choose({config.digest: depth for config, depth in depths}, lambda digest: digest in self.busy)
        return self.served

    @property
    def served(self) -> str:
        served = self.turns._served
        return served.model if served is OTHER_A else served.name if served is not None else ""


def test_engines_exclude_each_other_on_one_device_and_by_other_settings_of_one_name() -> None:
    assert exclude(A, B) and exclude(A, OTHER_A)
    assert not exclude(A, A) and not exclude(A, FREE)


def test_an_engine_that_excludes_none_is_always_served() -> None:
    site = Site(A, B, FREE)
    assert site.turns.contended and site.turns.may_serve(FREE.digest)
    assert not site.turns.may_serve(A.digest)
    assert site.look((A, 1), (B, 2)) == "b"
    assert site.turns.may_serve(B.digest) and site.turns.may_serve(FREE.digest) and not site.turns.may_serve(A.digest)
    assert not Site(A, FREE).turns.contended


def test_an_engine_stays_as_long_as_a_swap_costs_and_goes_when_more_waits_for_another() -> None:
    site = Site(A, B)
    assert site.look((A, 5)) == "a"
    assert site.look((A, 5), (B, 9), later=9) == "a"
    assert site.look((A, 5), (B, 5), later=2) == "a"
    assert site.look((A, 5), (B, 6)) == "b"


def test_an_engine_with_nothing_left_is_given_up_once_the_worker_holds_none_of_its_units() -> None:
    site = Site(A, B)
    site.look((A, 5))
    site.busy = {A.digest}
    assert site.look((B, 1)) == "a"
    site.busy = set()
    assert site.look((B, 1)) == "b"


def test_the_time_of_an_engine_begins_when_it_is_loaded() -> None:
    site = Site(A, B, cost=0)
    site.look((A, 5))
    site.turns.settled(30)
    assert site.look((A, 5), (B, 9), later=29) == "a"
    assert site.look((A, 5), (B, 9), later=2) == "b"


def test_other_settings_of_the_same_engine_wait_until_it_is_idle() -> None:
    site = Site(A, OTHER_A)
    site.look((A, 1))
    assert site.look((A, 1), (OTHER_A, 99), later=1000) == "a"
    assert site.look((OTHER_A, 99)) == "another"


def test_where_nothing_is_seen_to_wait_the_engines_take_turns_in_asking() -> None:
    site = Site(A, B)
    assert [site.look(), site.look(), site.look()] == ["a", "b", "a"]
    site.busy = {A.digest}
    assert [site.look(), site.look()] == ["a", "a"]
