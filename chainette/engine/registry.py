"""Registering engines from code or a YAML file into the current registry."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chainette.engine.config import EngineConfig, EngineRegistry, current_registry, make_config, using_registry
from chainette.engine.price import Price
from chainette.errors import EngineConfigError
from chainette.utils.argument_advice import explained
from chainette.utils.call_site import caller_place

__all__ = ["get_engine_config", "load_engines", "overlaid", "register_engine"]


@explained()
def register_engine(
    name: str,
    model: str,
    backend: str | None = None,
    *,
    endpoint: str | list[str] | tuple[str, ...] = (),
    api_key_env: str | None = None,
    capacity: int | None = None,
    exclusive: bool | None = None,
    lazy: bool = True,
    gpu_ids: list[int] | tuple[int, ...] = (),
    startup_timeout: float = 600.0,
    revision: str | None = None,
    tokenizer: str | None = None,
    download_dir: str | None = None,
    price: Price | Mapping[str, float] | None = None,
    budget: str | list[str] | tuple[str, ...] = (),
    extra: dict[str, Any] | None = None,
    replace: bool | None = None,
    **keys: Any,
) -> EngineConfig:
    """Declares an engine for the steps that name it. Nothing is loaded.

    The backend defaults to `vllm`, or to `llama_cpp` for a model path that ends in `.gguf`. The
    backend's own keys (`chainette engines` lists them) are given flat; `extra` goes through unchecked. `price` is in
    dollars: `{"in": 0.15, "out": 0.6, "cached": 0.08}` per million tokens, and `{"gpu_hour": 2.5}`; it decides no row. `budget`
    (`"20usd"`, `"3gpuh"`, `"5e6tok"`, `"1000req"`, or several) is the most a run may spend on the engine, and in a fleet
    all runs together (see the page on cost).
    `replace`: whether the declaration may take the place of another one of that name; the default is True at a prompt and in
    a notebook, so that an edited cell can be run again, and False in a file. Chains declared before ask the new engine too.

    Raises:
        EngineConfigError: an unknown backend or key, a wrong type, or a name that is taken.
    """
    keys |= {
        "endpoint": endpoint,
        "api_key_env": api_key_env,
        "capacity": capacity,
        "lazy": lazy,
        "gpu_ids": gpu_ids,
        "startup_timeout": startup_timeout,
        "revision": revision,
        "tokenizer": tokenizer,
        "download_dir": download_dir,
        "price": price,
        "budget": budget,
        "extra": extra or {},
    }
    if exclusive is not None:
        keys["exclusive"] = exclusive
    try:
        config = make_config(name, model, backend, **keys)
        current_registry().add(config, replace=hasattr(sys, "ps1") if replace is None else replace)
    except EngineConfigError as error:
        raise EngineConfigError(f"{caller_place()}: {error}") from error
    return config


def get_engine_config(name: str) -> EngineConfig:
    """The configuration registered under a name.

    Raises:
        UnknownEngine: there is none.
    """
    return current_registry().get(name)


def load_engines(path: str | os.PathLike[str], *, replace: bool = False) -> list[EngineConfig]:
    """Registers the engines of a YAML file: a list under `engines:`, or a mapping name -> keys.

    With `replace` an engine replaces one of the same name.

    Raises:
        EngineConfigError: the file is invalid; the message names the file and the entry.
    """
    import yaml

    from chainette.utils.yaml_faults import yaml_fault

    try:
        document = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, RecursionError) as error:
        raise EngineConfigError(f"{path}: cannot be read as YAML: {error}") from error
    except yaml.YAMLError as error:
        line, words = yaml_fault(error)
        raise EngineConfigError(f"{path}: cannot be read as YAML: line {line}: {words}") from None
    entries = document.get("engines") if isinstance(document, dict) else None
    if isinstance(entries, dict) and all(isinstance(keys, dict | None) for keys in entries.values()):
        entries = [{"name": name} | (keys or {}) for name, keys in entries.items()]
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise EngineConfigError(
            f"{path}: expected a list of engines, or a mapping of names to their settings, under the key `engines:`"
        )
    configs = []
    for number, entry in enumerate(entries, 1):
        missing = {"name", "model"} - entry.keys()
        if missing:
            raise EngineConfigError(f"{path}: engine number {number} lacks {', '.join(sorted(missing))}")
        try:
            configs.append(make_config(**{str(key): value for key, value in entry.items()}))
            current_registry().add(configs[-1], replace=replace)
        except EngineConfigError as error:
            raise EngineConfigError(f"{path}: {error}") from error
    return configs


def overlaid(base: EngineRegistry, path: str | os.PathLike[str]) -> EngineRegistry:
    """A registry's engines, with those of a YAML file replacing the ones of the same name.

    Raises:
        EngineConfigError: as `load_engines`.
    """
    with using_registry(EngineRegistry(base)) as registry:
        load_engines(path, replace=True)
    return registry
