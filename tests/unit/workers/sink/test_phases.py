"""Whether a fleet's run goes in phases, by its workers' descriptions."""

from __future__ import annotations

import pytest
from chainette_workers.sink.phases import Phases
from pydantic import BaseModel

from chainette import Chain, Step, register_engine
from chainette.core.compile import compile_chain
from chainette.core.plan import Plan
from chainette.engine.config import EngineRegistry, using_registry
from chainette.fleet.protocol.member_fields import Member


class Text(BaseModel):
    text: str


def plan(*engines: str, exclusive: bool = True) -> Plan:
    """A chain of one step for each name, in that order."""
    with using_registry(EngineRegistry()):
        for name in {*engines}:
            register_engine(name, "model", "simulated", exclusive=exclusive)
        steps = [
            Step(id=f"step_{index}", input_model=Text, output_model=Text, engine_name=name)
            for index, name in enumerate(engines)
        ]
        return compile_chain(Chain(name="chain", steps=steps))


def barred(phases: Phases, *workers: Member) -> set[str]:
    """The engine whose units wait, once the workers have described themselves."""
    phases.look(workers)
    return {*phases.barred}


def says(engines: str, swapping: float = 0.0) -> Member:
    return Member(names=engines, swapping=swapping)


BUSY = says("a,b,python", 0.4)


def test_engines_are_in_the_order_of_the_steps_and_come_again_where_they_are_needed_again() -> None:
    assert plan("a", "b").phases == ("a", "b")
    assert plan("a", "a", "b", "a").phases == ("a", "b", "a")
    assert plan("a", "b", exclusive=False).phases == ()


def test_a_run_goes_in_phases_once_a_worker_swaps_too_much_and_then_to_its_end() -> None:
    phases = Phases(plan("a", "b"))
    assert barred(phases) == set() == barred(phases, says("a,b", 0.01))
    assert barred(phases, BUSY) == {"b"}
    assert barred(phases, says("a,b", 0.01)) == {"b"}
    phases.go_on()
    assert barred(phases, BUSY) == {"a"}
    phases.go_on()
    assert barred(phases, BUSY) == {"b"}


def test_nothing_waits_where_engines_have_workers_of_their_own() -> None:
    phases = Phases(plan("a", "b", "c"), begun=True)
    assert barred(phases, BUSY, says("c")) == {"b"}
    assert barred(phases, BUSY, says("b"), says("c")) == set()
    assert barred(phases, says("a,b,c"), says("b")) == {"c"}
    assert barred(phases, says("a"), says("b"), says("c")) == set()
    assert barred(phases, says("a"), says("b,c")) == {"c"}


def test_engines_of_different_workers_take_turns_side_by_side() -> None:
    phases = Phases(plan("a", "c", "b", "d"), begun=True)
    pairs = says("a,b"), says("c,d")
    assert barred(phases, *pairs) == {"b", "d"}
    phases.go_on()
    assert barred(phases, *pairs) == {"a", "c"}
    assert barred(phases, *pairs, says("b,c")) == {"a", "c"}


def test_every_engine_has_its_turn_and_no_worker_is_ever_left_without_one() -> None:
    for workers in (("a,b", "c,d"), ("a,b", "b,c", "c,d"), ("a,b,c,d",), ("a", "b,c,d"), ("a,b", "c", "d")):
        phases, served = Phases(plan("a", "b", "c", "d"), begun=True), set[str]()
        for _ in range(4):
            waiting = barred(phases, *map(says, workers))
            served |= {*"abcd"} - waiting
            assert not any({*engines.split(",")} <= waiting for engines in workers)
            phases.go_on()
        assert served == {*"abcd"}, workers


@pytest.mark.parametrize("workers", [[BUSY], [BUSY, says("python")], [BUSY, Member(kind="sink")]])
def test_engines_that_share_no_device_never_wait(workers: list[Member]) -> None:
    assert barred(Phases(plan("a", "b", exclusive=False), begun=True), *workers) == set()
    assert barred(Phases(plan("a"), begun=True), *workers) == set()
