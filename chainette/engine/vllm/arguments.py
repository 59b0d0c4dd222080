"""From an EngineConfig to vLLM's AsyncEngineArgs and its environment."""

from __future__ import annotations

import contextlib
import difflib
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from chainette.engine.base import Options
from chainette.engine.config import EngineConfig
from chainette.engine.vllm.chat_tokens import template_text
from chainette.errors import EngineConfigError

__all__ = ["SETTLED", "VllmOptions", "engine_arguments", "environment", "in_environment", "is_local", "passes_on"]

#: Set before vLLM is imported, unless the user has, and left set: vLLM reads them all along.
SETTLED = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",  # each start has a dozen warnings about our choices
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",  # standard output is for results
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # a fork of a process with threads may hang
}

#: Bytes of KV cache on a CPU; vLLM itself would take nearly all memory.
_CPU_KV_CACHE = 1 << 30

#: Whitespace between tokens costs tokens; only the engine as a whole can forbid it.
_STRUCTURED_OUTPUTS = {"backend": "xgrammar", "disable_any_whitespace": True}

#: Arguments Chainette sets itself, or that must not be recorded.
_REFUSED = {
    "model": "give it as the engine's model",
    "hf_token": "it is a secret: set HF_TOKEN in the environment",
    "enable_lora": "set lora=... to the adapter",
    "skip_tokenizer_init": "Chainette needs the tokenizer",
    "runner": "Chainette needs a model that generates",
}


def is_local(model: str) -> bool:
    """Whether the model is a folder or a file on this machine, so that no hub is asked."""
    return Path(model).expanduser().exists()


class VllmOptions(Options, frozen=True):
    OPERATIONAL = frozenset({"gpu_memory_utilization", "max_num_seqs", "tensor_parallel_size", "enable_prefix_caching"}) | {
        *("enforce_eager", "offline", "trust_remote_code", "threads")
    }

    #: "auto" is the model's dtype, and float32 on a CPU without AMX.
    dtype: str = "auto"
    gpu_memory_utilization: float = 0.9
    #: Tokens of prompt and answer together; None: the model's own limit.
    max_model_len: int | None = None
    #: Requests computed at once; None: `capacity`, else vLLM's default.
    max_num_seqs: int | None = None
    #: GPUs that share the model; None: as many as `gpu_ids` names.
    tensor_parallel_size: int | None = None
    quantization: str | None = None
    enable_prefix_caching: bool = True
    #: One of vLLM's parsers, for models that think aloud before they answer.
    reasoning_parser: str | None = None
    #: A LoRA adapter: a folder or a Hugging Face id.
    lora: str | None = None
    #: For vLLM's own random numbers; rows have their own seeds.
    seed: int | None = None
    trust_remote_code: bool = False
    #: Never ask the Hugging Face hub; a model that is a folder never does.
    offline: bool = False
    #: No compilation; None: compiled on a GPU, not on a CPU.
    enforce_eager: bool | None = None
    #: "dummy" draws random weights, for measurements.
    load_format: str = "auto"
    #: A Jinja template, or its file, that replaces the tokenizer's.
    chat_template: str | None = None
    #: CPU threads; None: OMP_NUM_THREADS, else all cores but one.
    threads: int | None = None


def engine_arguments(
    config: EngineConfig, options: VllmOptions, known: Collection[str], *, cpu: bool, amx: bool = False
) -> dict[str, Any]:
    """Fields of AsyncEngineArgs (`known` are their names); `extra` has the last word.

    Raises:
        EngineConfigError: an unknown key in `extra` (the nearest is suggested), or one that cannot be set there; a path
            that does not exist.
    """
    for words in missing_files(config, options):
        raise EngineConfigError(f"engine {config.name!r}: {words}")
    _check_extra(config, known)
    chosen = {
        "tokenizer": config.tokenizer,
        "revision": config.revision,
        "download_dir": config.download_dir,
        "max_model_len": options.max_model_len,
        "max_num_seqs": options.max_num_seqs or config.capacity,
        "quantization": options.quantization,
        "seed": options.seed,
    }
    arguments: dict[str, Any] = {
        "model": _model(config),
        "dtype": options.dtype,
        "gpu_memory_utilization": options.gpu_memory_utilization,
        "tensor_parallel_size": options.tensor_parallel_size or max(1, len(config.gpu_ids)),
        "enable_prefix_caching": options.enable_prefix_caching,
        "trust_remote_code": options.trust_remote_code,
        "enforce_eager": cpu if options.enforce_eager is None else options.enforce_eager,
        "load_format": options.load_format,
        "reasoning_parser": options.reasoning_parser or "",
        "structured_outputs_config": dict(_STRUCTURED_OUTPUTS),
        **{key: value for key, value in chosen.items() if value is not None},
        **_lora(options),
    }
    if cpu:
        arguments |= _on_cpu(options, amx)
    return arguments | config.extra


def missing_files(config: EngineConfig, options: VllmOptions) -> Iterator[str]:
    """Describes paths of the configuration that do not exist. Text that does not look like a path may be a hub id."""
    for key, value in (("model", config.model), ("tokenizer", config.tokenizer), ("lora", options.lora)):
        if value is not None and value.startswith(("/", ".", "~")) and not is_local(value):
            yield f"there is no {key} at {Path(value).expanduser()}; `{key}` is a folder or a Hugging Face id"
    try:
        template_text(options.chat_template)
    except EngineConfigError as error:
        yield str(error)


def _model(config: EngineConfig) -> str:
    return str(Path(config.model).expanduser()) if is_local(config.model) else config.model


def _on_cpu(options: VllmOptions, amx: bool) -> dict[str, Any]:
    """Half precision is slower than single precision on a CPU without AMX.

    A seeded prompt computed in parts crashes vLLM 0.32 on a CPU: "CPU Generator does not use offset".
    """
    arguments: dict[str, Any] = {"enable_chunked_prefill": False}
    if options.dtype == "auto" and not amx:
        arguments["dtype"] = "float32"
    if not os.environ.get("VLLM_CPU_KVCACHE_SPACE"):
        arguments["kv_cache_memory_bytes"] = _CPU_KV_CACHE
    return arguments


def _lora(options: VllmOptions) -> dict[str, Any]:
    if options.lora is None:
        return {}
    rank = _rank_of(Path(options.lora).expanduser())
    return {"enable_lora": True} | ({"max_lora_rank": rank} if rank else {})


def _rank_of(adapter: Path) -> int | None:
    """The adapter's rank, rounded up to one that vLLM supports; None if it is not on this machine."""
    try:
        rank = int(msgspec.json.decode((adapter / "adapter_config.json").read_bytes())["r"])
    except (OSError, KeyError, TypeError, ValueError, msgspec.DecodeError):
        return None
    return next((size for size in (8, 16, 32, 64, 128, 256, 320, 512) if size >= rank), rank)


def _check_extra(config: EngineConfig, known: Collection[str]) -> None:
    public = [name for name in known if not name.startswith("_")]
    for key in config.extra:
        if key in _REFUSED:
            raise EngineConfigError(f"engine {config.name!r}: extra[{key!r}] cannot be set there; {_REFUSED[key]}")
        if key not in public:
            close = difflib.get_close_matches(key, public, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise EngineConfigError(f"engine {config.name!r}: extra[{key!r}] is not an argument of this vLLM{hint}")


def environment(config: EngineConfig, options: VllmOptions, present: Mapping[str, str], *, cpu: bool) -> dict[str, str]:
    """The variables that vLLM's environment gets while it starts; they override those already present."""
    found = {"VLLM_ENGINE_READY_TIMEOUT_S": str(int(config.startup_timeout) + 60)}  # the caller enforces the timeout
    if options.offline or all(map(is_local, filter(None, (config.model, config.tokenizer, options.lora)))):
        found["HF_HUB_OFFLINE"] = "1"
    if config.gpu_ids:
        found["CUDA_VISIBLE_DEVICES"] = _visible(config, present.get("CUDA_VISIBLE_DEVICES"))
    if cpu:
        found |= _cpu_environment(options, present)
    return found


def _visible(config: EngineConfig, visible: str | None) -> str:
    """`gpu_ids` are indexes into the GPUs that are already visible."""
    known = visible.split(",") if visible else None
    try:
        return ",".join(known[number] if known else str(number) for number in config.gpu_ids)
    except IndexError:
        raise EngineConfigError(
            f"engine {config.name!r}: gpu_ids={list(config.gpu_ids)}, but CUDA_VISIBLE_DEVICES has only {visible}"
        ) from None


def _cpu_environment(options: VllmOptions, present: Mapping[str, str]) -> dict[str, str]:
    """Sets the number of threads only if one process computes; vLLM binds several to cores itself."""
    if "VLLM_CPU_OMP_THREADS_BIND" in present or (options.tensor_parallel_size or 1) > 1:
        return {}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = str(options.threads or present.get("OMP_NUM_THREADS") or max(1, cores - 1))
    return {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": threads}


@contextlib.contextmanager
def in_environment(values: Mapping[str, str]) -> Iterator[None]:
    """Sets these environment variables temporarily; child processes get a copy."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def passes_on() -> bool:
    """Whether the user set vLLM's log level, and so wants its child processes' output too."""
    return os.environ["VLLM_LOGGING_LEVEL"] != SETTLED["VLLM_LOGGING_LEVEL"]
