"""The arguments of vLLM that follow from a declaration; no vLLM is needed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, cast

import pytest

from chainette.engine.config import make_config
from chainette.engine.vllm.arguments import VllmOptions, engine_arguments, environment
from chainette.errors import EngineConfigError

KNOWN = [
    "model",
    "enable_chunked_prefill",
    "block_size",
    "max_num_batched_tokens",
    "kv_cache_memory_bytes",
    "hf_token",
    "_api_process_count",
    "seed",
]


def arguments(model: str = "org/model", *, cpu: bool = False, amx: bool = False, **keys: Any) -> dict[str, Any]:
    config = make_config("llama", model, "vllm", **keys)
    return engine_arguments(config, cast("VllmOptions", config.options), KNOWN, cpu=cpu, amx=amx)


def environ(
    model: str = "org/model", present: dict[str, str] | None = None, *, cpu: bool = False, **keys: Any
) -> dict[str, str]:
    config = make_config("llama", model, "vllm", **keys)
    return environment(config, cast("VllmOptions", config.options), present or {}, cpu=cpu)


def test_every_key_of_a_declaration_reaches_vllm() -> None:
    declared: dict[str, Any] = {
        "dtype": "bfloat16",
        "gpu_memory_utilization": 0.5,
        "max_model_len": 4096,
        "max_num_seqs": 32,
        "tensor_parallel_size": 2,
        "quantization": "awq",
        "revision": "abc",
        "tokenizer": "org/tokenizer",
        "download_dir": "/models",
        "enable_prefix_caching": False,
        "reasoning_parser": "qwen3",
        "seed": 7,
        "trust_remote_code": True,
        "load_format": "dummy",
        "enforce_eager": True,
    }
    found = arguments(**declared)
    assert found.items() >= declared.items()
    assert found["model"] == "org/model"


def test_remote_code_is_off_and_the_rest_is_left_to_vllm_unless_asked() -> None:
    found = arguments()
    assert found["trust_remote_code"] is False
    assert not found.keys() & {"max_model_len", "max_num_seqs", "quantization", "revision", "seed", "kv_cache_memory_bytes"}


def test_a_path_to_nothing_is_not_taken_for_a_name_on_the_hub(tmp_path: Path) -> None:
    assert arguments(str(tmp_path))["model"] == str(tmp_path)
    with pytest.raises(EngineConfigError, match=r"there is no model at .*/none; `model` is a folder or a Hugging Face id"):
        arguments(str(tmp_path / "none"))


def test_capacity_bounds_what_is_computed_at_once() -> None:
    assert arguments(capacity=8)["max_num_seqs"] == 8
    assert arguments(capacity=8, max_num_seqs=4)["max_num_seqs"] == 4


def test_gpu_ids_share_the_model_unless_told_otherwise() -> None:
    assert arguments()["tensor_parallel_size"] == 1
    assert arguments(gpu_ids=[2, 3])["tensor_parallel_size"] == 2
    assert arguments(gpu_ids=[2, 3], tensor_parallel_size=1)["tensor_parallel_size"] == 1


@pytest.mark.parametrize(
    ("dtype", "amx", "expected"), [("auto", False, "float32"), ("auto", True, "auto"), ("bfloat16", False, "bfloat16")]
)
def test_a_cpu_without_amx_computes_in_float32_unless_told_otherwise(dtype: str, amx: bool, expected: str) -> None:
    assert arguments(dtype=dtype, cpu=True, amx=amx)["dtype"] == expected
    assert arguments(dtype=dtype)["dtype"] == dtype


def test_a_cpu_is_not_filled_with_cache_and_needs_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)
    found = arguments(cpu=True)
    assert (found["kv_cache_memory_bytes"], found["enforce_eager"]) == (1 << 30, True)
    assert arguments(cpu=True, extra={"kv_cache_memory_bytes": 5})["kv_cache_memory_bytes"] == 5
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "4")
    assert "kv_cache_memory_bytes" not in arguments(cpu=True)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("block_sise", r"extra\['block_sise'\] is not an argument of this vLLM; did you mean 'block_size'\?"),
        ("zzzzz", r"extra\['zzzzz'\] is not an argument of this vLLM$"),
        ("_api_process_count", "is not an argument"),
        ("hf_token", "it is a secret: set HF_TOKEN"),
        ("model", "give it as the engine's model"),
    ],
)
def test_a_key_in_extra_that_cannot_be_set_is_refused_by_name(key: str, message: str) -> None:
    with pytest.raises(EngineConfigError, match=message):
        arguments(extra={key: 1})


def test_a_cpu_computes_prompts_whole_since_seeds_allow_no_parts() -> None:
    assert arguments(cpu=True)["enable_chunked_prefill"] is False
    assert arguments(cpu=True, extra={"enable_chunked_prefill": True})["enable_chunked_prefill"] is True
    assert "enable_chunked_prefill" not in arguments()


def test_a_lora_adapter_makes_room_for_its_rank(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"r": 24}')
    assert arguments(lora=str(tmp_path)).items() >= {"enable_lora": True, "max_lora_rank": 32}.items()
    assert arguments(lora="org/adapter")["enable_lora"] is True
    assert "enable_lora" not in arguments()


def test_the_hub_is_not_asked_for_a_folder_nor_when_told_so(tmp_path: Path) -> None:
    assert environ(str(tmp_path))["HF_HUB_OFFLINE"] == "1"
    assert environ(offline=True)["HF_HUB_OFFLINE"] == "1"
    assert "HF_HUB_OFFLINE" not in environ()
    assert "HF_HUB_OFFLINE" not in environ(str(tmp_path), lora="org/adapter")
    assert "HF_HUB_OFFLINE" not in environ(str(tmp_path), tokenizer="org/tokenizer")


def test_gpu_ids_count_in_what_is_visible() -> None:
    assert "CUDA_VISIBLE_DEVICES" not in environ()
    assert environ(gpu_ids=[1])["CUDA_VISIBLE_DEVICES"] == "1"
    assert environ(gpu_ids=[1, 0], present={"CUDA_VISIBLE_DEVICES": "4,6"})["CUDA_VISIBLE_DEVICES"] == "6,4"
    with pytest.raises(EngineConfigError, match=r"gpu_ids=\[2\], but CUDA_VISIBLE_DEVICES has only 4,6"):
        environ(gpu_ids=[2], present={"CUDA_VISIBLE_DEVICES": "4,6"})


def test_cpu_threads_are_those_of_the_declaration_then_of_the_environment_then_all_but_one() -> None:
    cores = max(1, len(os.sched_getaffinity(0)) - 1)
    assert environ(cpu=True)["OMP_NUM_THREADS"] == str(cores)
    assert environ(cpu=True, present={"OMP_NUM_THREADS": "3"})["OMP_NUM_THREADS"] == "3"
    assert environ(cpu=True, threads=5, present={"OMP_NUM_THREADS": "3"})["OMP_NUM_THREADS"] == "5"
    assert "OMP_NUM_THREADS" not in environ(cpu=True, present={"VLLM_CPU_OMP_THREADS_BIND": "0-3"})
    assert "OMP_NUM_THREADS" not in environ(threads=5)
