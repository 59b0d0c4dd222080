"""Declaring engines: the configuration of one, and the registry a chain file fills."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cached_property
from typing import Any
from urllib.parse import SplitResult, urlsplit

import msgspec

from chainette.engine.backends import backend_class, backend_names
from chainette.engine.base import Options, SamplingParams
from chainette.engine.budget import parse_budget
from chainette.engine.price import Price
from chainette.errors import EngineConfigError, InputError, UnknownEngine
from chainette.records import PYTHON
from chainette.utils.argument_advice import advice, nearest
from chainette.utils.ids import name_problem

__all__ = [
    "EngineConfig",
    "EngineRegistry",
    "current_registry",
    "expand_secrets",
    "make_config",
    "public_url",
    "share_device",
    "simulated",
    "using_registry",
]

#: A host with a port, either of which may come from the environment.
_HOST = re.compile(r"(?:[^\s:@\[\]]*|\[[0-9a-fA-F:.]+\])(?::(?:\d*|\$\{\w+\}))?")
_SECRET = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


class EngineConfig(msgspec.Struct, frozen=True, dict=True, kw_only=True):
    """One engine, declared. Opens nothing and reads no environment."""

    name: str
    #: A Hugging Face id, a path, or the endpoint's name for the model.
    model: str
    backend: str
    #: Base URLs; the one with the fewest requests in flight is used first.
    endpoint: tuple[str, ...] = ()
    #: The environment variable that holds the API key, read when the engine opens.
    api_key_env: str | None = None
    #: The most requests in flight; None lets the backend choose.
    capacity: int | None = None
    #: Whether it shares a device with other exclusive engines, so that only one is loaded at a time.
    exclusive: bool = False
    #: False loads the engine at the start of a run instead of at its first unit.
    lazy: bool = True
    gpu_ids: tuple[int, ...] = ()
    #: Seconds from open to ready.
    startup_timeout: float = 600.0
    revision: str | None = None
    tokenizer: str | None = None
    download_dir: str | None = None
    #: The cost of its tokens, or of its GPU time.
    price: Price | None = None
    #: The most that may be spent on it, such as 20usd: by a run, or by all runs of a fleet.
    budget: tuple[str, ...] = ()
    #: The backend's own keys, validated.
    options: Options = Options()
    #: Passed to the backend unchanged.
    extra: dict[str, Any] = {}

    @cached_property
    def digest(self) -> str:
        """Identifies the configuration: engines with equal digests answer alike."""
        data = msgspec.json.encode(self.describe(), order="deterministic")
        return hashlib.sha256(data).hexdigest()

    def describe(self) -> dict[str, Any]:
        """The configuration as plain data that may be shown: no header values, no passwords in URLs. Without price and
        budget, which change no answer."""
        plain: dict[str, Any] = msgspec.to_builtins(self)
        del plain["price"], plain["budget"]
        plain["endpoint"] = [public_url(url) for url in self.endpoint]
        if "headers" in plain["options"]:
            plain["options"]["headers"] = sorted(plain["options"]["headers"])
        return plain

    def shares_device_with(self, other: EngineConfig) -> bool:
        """Whether the two cannot be loaded at the same time."""
        return share_device(msgspec.structs.asdict(self), msgspec.structs.asdict(other))


def share_device(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two engines cannot be loaded at the same time, judged by their `EngineConfig.describe`."""
    if not (one.get("exclusive") and other.get("exclusive")):
        return False
    return not one["gpu_ids"] or not other["gpu_ids"] or bool({*one["gpu_ids"]} & {*other["gpu_ids"]})


_HINTS = dict.fromkeys(SamplingParams.__struct_fields__, "sampling=SamplingParams({given}) in each Step") | {
    "api_base": "endpoint={value}",
    "api_key": 'api_key_env="NAME", the environment variable that holds the key',
    "base_url": "endpoint={value}",
    "concurrency": "capacity={value}",
    "device": "gpu_ids=[...]",
    "devices": "gpu_ids=[...]",
    "enable_reasoning": "nothing, reasoning_parser=... says it",
    "engine_kwargs": "its entries as keys of their own: tensor_parallel_size=..., dtype=...",
    "extra_serve_flags": "extra={{...}}",
    "gpu": "gpu_ids=[...]",
    "gpus": "gpu_ids=[...]",
    "host": "endpoint='http://HOST:PORT/v1'",
    "key": 'api_key_env="NAME", the environment variable that holds the key',
    "max_concurrency": "capacity={value}",
    "gpu_hour": "price={{'gpu_hour': {value}}}",
    "port": "endpoint='http://127.0.0.1:{value}/v1'",
    "timeout": "request_timeout={value} (one request) or startup_timeout={value} (until the engine is ready)",
    "token": 'api_key_env="NAME", the environment variable that holds the key',
    "tp": "tensor_parallel_size={value}",
    "url": "endpoint={value}",
}

_COMMON = frozenset(EngineConfig.__struct_fields__) - {"options"}


def _default_backend(model: str) -> str:
    return "llama_cpp" if model.endswith(".gguf") else "vllm"


def make_config(name: str, model: str, backend: str | None = None, **keys: Any) -> EngineConfig:
    """A validated EngineConfig from flat keys.

    Raises:
        EngineConfigError: an unknown backend or key (the nearest is suggested), or a wrong type.
    """
    if problem := name_problem(name):
        raise EngineConfigError(f"engine name {name!r} {problem}")
    if name == PYTHON:
        raise EngineConfigError(f"engine name {name!r} stands for functions (apply); choose another")
    if not isinstance(model, str) or not model:
        raise EngineConfigError(f"engine {name!r}: model is {model!r}; give a path, a Hugging Face id or an endpoint's name")
    backend = str(backend or _default_backend(model))
    try:
        kind = backend_class(backend)
    except EngineConfigError as error:
        raise EngineConfigError(f"engine {name!r}: {error}") from error
    own = kind.options.__struct_fields__
    if unknown := {key: value for key, value in keys.items() if key not in _COMMON and key not in own}:
        hints = dict(_HINTS) | {key: _of_other_backends(key) for key in unknown if _of_other_backends(key)}
        raise EngineConfigError(
            f"engine {name!r} (backend {backend!r}): {advice(unknown, [*_COMMON, *own], hints, kind='unknown key')}; "
            "keys that the backend should get unchecked go into extra={...}"
        )
    for key in ("endpoint", "budget"):
        if isinstance(keys.get(key), str):
            keys[key] = (keys[key],)
    if keys.get("endpoint") and not kind.remote:
        raise EngineConfigError(
            f"engine {name!r}: backend {backend!r} loads the model in this process and takes no endpoint; "
            "for a server write backend='openai'"
        )
    options = {key: keys.pop(key) for key in own if key in keys}
    keys.setdefault("exclusive", kind.exclusive)
    try:
        common = msgspec.convert({"name": name, "model": model, "backend": backend} | keys, EngineConfig)
        parse_budget(common.budget, "budget")
        return msgspec.structs.replace(common, options=msgspec.convert(options, kind.options))
    except (msgspec.ValidationError, InputError) as error:
        raise EngineConfigError(f"engine {name!r} (backend {backend!r}): {error}") from error


def simulated(config: EngineConfig) -> EngineConfig:
    """The simulated engine that replaces another one."""
    if config.backend == "simulated":
        return config
    return make_config(config.name, config.model, "simulated", price=config.price, budget=config.budget)


def _of_other_backends(key: str) -> str:
    """Advice for a key that only other backends have; "" if none has it."""
    owners = [backend for backend in backend_names() if key in _keys_of(backend)]
    return f"none: it is a key of backend {' and '.join(map(repr, owners))}" if owners else ""


def _keys_of(backend: str) -> tuple[str, ...]:
    try:
        return backend_class(backend).options.__struct_fields__
    except EngineConfigError:  # a broken plugin
        return ()


def public_url(url: str) -> str:
    """The URL without user, password, query and fragment, any of which may be a secret.

    An unescaped `/` or `?` in a password ends the host too early; such a text is hidden as a whole.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        return "(not a URL)"
    host = parts.netloc.rpartition("@")[2]
    cut = "@" in parts.path or ("@" not in parts.netloc and ":" in host and "@" in url)
    if cut or not _HOST.fullmatch(host):
        return "(not a URL)"
    return SplitResult(parts.scheme, host, parts.path, "", "").geturl()


def expand_secrets(text: str) -> str:
    """Replaces `${NAME}` from the environment; called when an engine opens, never before.

    Raises:
        EngineConfigError: the variable is not set; the message names it, never a value.
    """

    def value(match: re.Match[str]) -> str:
        try:
            return os.environ[match[1]]
        except KeyError:
            raise EngineConfigError(f"the environment variable {match[1]} is not set") from None

    return _SECRET.sub(value, text)


class EngineRegistry:
    """Engines by name. One exists per loaded chain file, and one for code that imports Chainette."""

    def __init__(self, base: EngineRegistry | None = None) -> None:
        self._configs: dict[str, EngineConfig] = dict(base._configs) if base is not None else {}

    def __iter__(self) -> Iterator[EngineConfig]:
        return iter(self._configs.values())

    def add(self, config: EngineConfig, *, replace: bool = False) -> None:
        """Registers an engine; the same declaration twice is fine, another one only with `replace`.

        Raises:
            EngineConfigError: the name is taken by another configuration.
        """
        known = self._configs.get(config.name)
        if known is not None and known != config and not replace:
            raise EngineConfigError(
                f"engine {config.name!r} is registered already with other settings; give one of them another name, or pass "
                "replace=True"
            )
        self._configs[config.name] = config

    def get(self, name: str) -> EngineConfig:
        """The configuration of an engine.

        Raises:
            UnknownEngine: no engine has that name; the nearest is suggested.
        """
        if name not in self._configs:
            raise UnknownEngine(f"no engine {name!r}{self._advice(name)}")
        return self._configs[name]

    def _advice(self, name: str) -> str:
        if not self._configs:
            return "; no engine is registered"
        of_model = [config.name for config in self if config.model == name]
        return f"; that is the model of engine {of_model[0]!r}" if of_model else nearest(name, self._configs)


_default = EngineRegistry()


_current: ContextVar[EngineRegistry] = ContextVar("chainette_engine_registry")


def current_registry() -> EngineRegistry:
    """The registry that `register_engine` currently fills."""
    return _current.get(_default)


@contextmanager
def using_registry(registry: EngineRegistry) -> Iterator[EngineRegistry]:
    """Makes `registry` current: the loader wraps the import of a chain file in it."""
    token = _current.set(registry)
    try:
        yield registry
    finally:
        _current.reset(token)
