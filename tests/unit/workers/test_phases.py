"""Whether a fleet's run goes in phases, by what its workers say."""

from __future__ import annotations

import pytest
from chainette_workers.phases import Phases
from pydantic import BaseModel

from chainette import Chain, Step, register_engine
from chainette.core.compile import compile_chain
from chainette.core.plan import Plan
from chainette.engine.config import EngineRegistry, using_registry


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


def says(engines: str, swapping: float = 0.0) -> dict[str, str]:
    return {"engines": engines, "swapping": str(swapping)}


BUSY = says("a,b,python", 0.4)


def test_engines_are_in_the_order_of_the_steps_and_come_again_where_they_are_needed_again() -> None:
    assert plan("a", "b").phases == ("a", "b")
    assert plan("a", "a", "b", "a").phases == ("a", "b", "a")
    assert plan("a", "b", exclusive=False).phases == ()


def test_a_run_goes_in_phases_once_a_worker_swaps_too_much_and_then_to_its_end() -> None:
    phases = Phases(plan("a", "b"))
    assert phases.barred([]) == frozenset() == phases.barred([says("a,b", 0.01)])
    assert phases.barred([BUSY]) == {"b"}
    assert phases.barred([says("a,b", 0.01)]) == {"b"}
    phases.go_on()
    assert phases.barred([BUSY]) == {"a"}
    phases.go_on()
    assert phases.barred([BUSY]) == {"b"}


def test_nothing_waits_where_engines_have_workers_of_their_own() -> None:
    phases = Phases(plan("a", "b", "c"), begun=True)
    assert phases.barred([BUSY, says("c")]) == {"b"}
    assert phases.barred([BUSY, says("b"), says("c")]) == frozenset()
    assert phases.barred([says("a,b,c"), says("b")]) == {"c"}
    assert phases.barred([says("a"), says("b"), says("c")]) == frozenset()


@pytest.mark.parametrize("workers", [[BUSY], [BUSY, says("python")], [BUSY, {"kind": "sink"}]])
def test_engines_that_share_no_device_never_wait(workers: list[dict[str, str]]) -> None:
    assert Phases(plan("a", "b", exclusive=False), begun=True).barred(workers) == frozenset()
    assert Phases(plan("a"), begun=True).barred(workers) == frozenset()
