"""The first root of a session goes ahead if a server may refuse its steps."""

from __future__ import annotations

import pytest
from chainette_workers.sink.scouting import Scouting

from chainette import Chain, Step, register_engine
from chainette.core.compile import compile_chain
from chainette.core.plan import Plan
from chainette.engine.config import EngineRegistry, using_registry
from chainette.fleet.protocol.member_fields import Member
from tests.support.chains import Text, Word


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def plan_on(backend: str) -> Plan:
    with using_registry(EngineRegistry()):
        register_engine("llm", "m", backend)
        return compile_chain(Chain(name="one", steps=[Step(id="ask", input_model=Text, output_model=Word, engine_name="llm")]))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def scouting(clock: Clock) -> Scouting:
    return Scouting(plan_on("openai"), clock)


def test_one_root_is_admitted_until_something_is_durable(scouting: Scouting) -> None:
    steps: list[int] = []

    def step() -> bool:
        steps.append(1)
        return True

    assert not scouting.is_out
    assert [scouting.admit(step) for _ in range(3)] == [True, False, False] and len(steps) == 1
    assert scouting.is_out
    scouting.answered()
    assert scouting.admit(step) is None and len(steps) == 1 and not scouting.is_out


def test_the_others_wait_two_seconds_from_the_first_worker_on(scouting: Scouting, clock: Clock) -> None:
    assert scouting.admit(lambda: True)
    clock.now += 60
    scouting.see([Member(kind="enqueue")])
    assert scouting.admit(lambda: True) is False
    scouting.see([Member()])
    clock.now += 1.9
    assert scouting.admit(lambda: True) is False
    clock.now += 0.2
    assert scouting.admit(lambda: True) is None


def test_a_root_that_there_is_no_room_for_is_tried_again(scouting: Scouting) -> None:
    assert [scouting.admit(lambda: False), scouting.admit(lambda: True), scouting.admit(lambda: True)] == [False, True, False]


def test_engines_that_refuse_nothing_need_no_scout(clock: Clock) -> None:
    assert Scouting(plan_on("simulated"), clock).admit(lambda: True) is None
