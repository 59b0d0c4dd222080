"""Engines of a worker that was given several GPUs."""

from __future__ import annotations

from typing import Any

import pytest
from chainette_workers.worker import engine_pool

from chainette.engine.base import Engine
from chainette.engine.config import EngineConfig, make_config
from chainette.engine.simulated.simulator import SimulatedEngine
from chainette.engine.vllm.arguments import VllmOptions


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[EngineConfig]:
    """The configurations that engines were made of."""
    found: list[EngineConfig] = []

    def create(config: EngineConfig) -> Engine:
        found.append(config)
        return SimulatedEngine(make_config("sim", "none", "simulated"))

    monkeypatch.setattr(engine_pool, "create_engine", create)
    return found


def parallel(config: EngineConfig) -> int | None:
    assert isinstance(config.options, VllmOptions)
    return config.options.tensor_parallel_size


def test_a_model_spreads_over_the_gpus_of_its_worker(made: list[EngineConfig]) -> None:
    engine_pool.spread(2, make_config("llama", "some/model"))
    assert [parallel(config) for config in made] == [2]


@pytest.mark.parametrize("keys", [{"tensor_parallel_size": 1}, {"gpu_ids": [0]}])
def test_a_model_that_says_where_it_runs_stays_there(made: list[EngineConfig], keys: dict[str, Any]) -> None:
    engine_pool.spread(2, make_config("llama", "some/model", **keys))
    assert [parallel(config) for config in made] == [keys.get("tensor_parallel_size")]


def test_one_gpu_and_other_backends_change_nothing(made: list[EngineConfig]) -> None:
    given = [make_config("llama", "some/model"), make_config("sim", "none", "simulated")]
    engine_pool.spread(1, given[0])
    engine_pool.spread(2, given[1])
    assert made == given
