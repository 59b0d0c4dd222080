"""GPUs of this machine, one for each worker of vLLM."""

from __future__ import annotations

from typing import Any

import pytest
from chainette_workers.sink.local_fleet import devices

from chainette import Chain, Step, register_engine
from chainette.core.compile import compile_chain
from chainette.core.plan import Plan
from chainette.engine.config import EngineRegistry, using_registry
from chainette.errors import InputError
from tests.support.chains import Text, Word


def plan(**keys: Any) -> Plan:
    """Two engines of vLLM and one of another backend."""
    with using_registry(EngineRegistry()):
        register_engine("a", "some/model", **keys)
        register_engine("b", "other/model")
        register_engine("sim", "none", "simulated")
        steps = [
            Step(id=f"ask_{name}", input_model=source, output_model=Word, engine_name=name, user_prompt="{{ input }}")
            for name, source in (("a", Text), ("b", Word), ("sim", Word))
        ]
        return compile_chain(Chain(name="three", steps=steps))


@pytest.fixture(autouse=True)
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6")


def seen(found: list[dict[str, str]]) -> list[str | None]:
    return [environment.get("CUDA_VISIBLE_DEVICES") for environment in found]


def test_workers_of_vllm_get_a_gpu_each_in_order_and_others_none() -> None:
    assert seen(devices(plan(), ["a", "a", "b", "sim"])) == ["4", "5", "6", None]


def test_a_model_over_two_gpus_gets_two() -> None:
    assert seen(devices(plan(tensor_parallel_size=2), ["a", "b"])) == ["4,5", "6"]


def test_an_engine_that_names_its_gpus_is_left_alone() -> None:
    assert seen(devices(plan(gpu_ids=[2]), ["a", "b"])) == [None, "4"]


def test_more_workers_than_gpus_are_refused() -> None:
    with pytest.raises(InputError, match=r"need 4 GPUs of their own, and there are 3 \(4, 5, 6\)"):
        devices(plan(), ["a", "a", "b", "b"])


def test_a_machine_without_gpus_has_a_vllm_for_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert seen(devices(plan(), ["a", "a", "b", "b"])) == [None] * 4
