"""What keeps an engine from opening here, as far as it can be seen without opening it."""

from __future__ import annotations

import os
from collections.abc import Iterator

from chainette.engine.config import EngineConfig
from chainette.errors import EngineConfigError

__all__ = ["foreseen"]


def foreseen(config: EngineConfig) -> Iterator[str]:
    """One sentence per obstacle: a model file that is not there, a key that is not set. Elsewhere both may be."""
    if config.backend == "llama_cpp":
        from chainette.engine.llama_cpp import model_path

        try:
            model_path(config)
        except EngineConfigError as error:
            yield str(error)
    if config.api_key_env and not os.environ.get(config.api_key_env, "").strip():
        yield f"engine {config.name!r}: the environment variable {config.api_key_env} is not set here; it must hold the API key"
