"""The simulated engine answers by the schema, repeats itself, and misbehaves as much as it is told to."""

from __future__ import annotations

import json
from typing import Any, Literal

import anyio
import pytest
from pydantic import BaseModel, ValidationError

from chainette.engine.base import Completion, Finish, Request, SamplingParams
from chainette.engine.config import EngineConfig
from chainette.engine.simulated.simulator import SimulatedEngine, SimulatedOptions
from chainette.errors import EngineConfigError, EngineUnavailable
from chainette.records import Message


class Review(BaseModel):
    label: Literal["good", "bad"]
    stars: int
    words: list[str]


SCHEMA = Review.model_json_schema()


def engine(capacity: int | None = None, **options: Any) -> SimulatedEngine:
    return SimulatedEngine(
        EngineConfig(name="sim", model="m", backend="simulated", capacity=capacity, options=SimulatedOptions(**options))
    )


def request(seed: int, schema: dict[str, Any] = SCHEMA) -> Request:
    return Request((Message("user", "x" * 40),), SamplingParams(), seed, schema, "Review")


def answers(subject: SimulatedEngine, seeds: range) -> list[Completion]:
    async def ask() -> list[Completion]:
        await subject.open()
        try:
            return await subject.generate([request(seed) for seed in seeds])
        finally:
            await subject.close()

    return anyio.run(ask)


def test_every_answer_passes_the_model() -> None:
    for completion in answers(engine(), range(100)):
        Review.model_validate_json(completion.text)
        assert completion.finish is Finish.STOP


def test_an_answer_depends_on_its_seed_alone() -> None:
    together = answers(engine(), range(50))
    alone = [answers(engine(), range(seed, seed + 1))[0] for seed in range(50)]
    assert together == alone
    assert len({completion.text for completion in together}) > 40


def test_two_schemas_do_not_mix() -> None:
    other = {"type": "integer", "minimum": 1, "maximum": 1}

    async def ask() -> list[Completion]:
        return await engine().generate([request(1), request(1, other)])

    first, second = anyio.run(ask)
    Review.model_validate_json(first.text)
    assert second.text == "1"


def test_invalid_answers_come_at_their_rate_and_in_three_kinds() -> None:
    completions = answers(engine(invalid_rate=0.3), range(1000))
    kinds: dict[str, int] = {"good": 0, "cut": 0, "not json": 0, "misfit": 0}
    for completion in completions:
        kinds[_kind(completion)] += 1
    assert 230 <= 1000 - kinds["good"] <= 370
    assert all(count > 50 for count in kinds.values())


def _kind(completion: Completion) -> str:
    if completion.finish is Finish.LENGTH:
        return "cut"
    try:
        json.loads(completion.text)
    except ValueError:
        return "not json"
    try:
        Review.model_validate_json(completion.text)
    except ValidationError:
        return "misfit"
    return "good"


def test_a_rate_of_one_spoils_every_answer() -> None:
    assert "good" not in {_kind(completion) for completion in answers(engine(invalid_rate=1), range(200))}


def test_a_failing_call_can_succeed_later() -> None:
    subject = engine(error_rate=0.5)

    async def ask() -> list[bool]:
        outcomes = []
        for _ in range(40):
            try:
                await subject.generate([request(1)])
                outcomes.append(True)
            except EngineUnavailable:
                outcomes.append(False)
        return outcomes

    outcomes = anyio.run(ask)
    assert 8 < sum(outcomes) < 32


def test_capacity_bounds_the_requests_inside() -> None:
    """20 requests of 10 ms, 4 at once, take at least 5 rounds."""

    async def ask() -> float:
        subject = engine(capacity=4, latency=0.01)
        await subject.open()
        began = anyio.current_time()
        async with anyio.create_task_group() as group:
            for call in range(4):
                group.start_soon(subject.generate, [request(5 * call + seed) for seed in range(5)])
        return anyio.current_time() - began

    assert anyio.run(ask) >= 0.05


def test_without_latency_nothing_is_awaited() -> None:
    coroutine = engine().generate([request(1)])
    with pytest.raises(StopIteration):
        coroutine.send(None)


def test_usage_follows_the_lengths() -> None:
    (completion,) = answers(engine(), range(1))
    assert completion.usage.requests == 1
    assert completion.usage.prompt_tokens == 11
    assert completion.usage.completion_tokens == 1 + len(completion.text) // 4


def test_it_says_that_it_is_simulated() -> None:
    assert engine().describe()["simulated"] is True
    assert engine().deterministic
    assert engine().capacity == 64


@pytest.mark.parametrize("options", [{"invalid_rate": 1.5}, {"error_rate": -0.1}, {"latency": -1.0}])
def test_an_impossible_setting_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(EngineConfigError, match=next(iter(options))):
        engine(**options)
