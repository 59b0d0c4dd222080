"""The keys that all HTTP backends share."""

from __future__ import annotations

import msgspec

from chainette.engine.base import Options
from chainette.engine.config import EngineConfig
from chainette.engine.http.timing import Policy

__all__ = ["HttpOptions", "hurried"]


class HttpOptions(Options, frozen=True):
    OPERATIONAL = frozenset({"max_retries", "headers"})
    RESCUING = {"request_timeout": "raised"}

    #: Seconds a request may take before it is tried again.
    request_timeout: float = 600.0
    #: Retries of one request after 429, 5xx, a broken connection or a timeout.
    max_retries: int = 6
    #: Extra HTTP headers; `${NAME}` is read from the environment when the engine opens.
    headers: dict[str, str] = {}


def hurried(config: EngineConfig, patience: float | None) -> tuple[EngineConfig, Policy]:
    """Configuration and policy of an engine that gives up after `patience` seconds of silence, if there is such a limit."""
    if patience is None:
        return config, Policy()
    soon = msgspec.structs.replace(config, startup_timeout=min(config.startup_timeout, patience))
    return soon, Policy(patience=min(Policy.patience, patience))
