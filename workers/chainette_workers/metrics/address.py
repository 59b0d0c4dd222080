"""The address on which a process serves its metrics."""

from __future__ import annotations

import msgspec

__all__ = ["MetricsEndpoint"]


class MetricsEndpoint(msgspec.Struct, frozen=True):
    """The address on which a process serves its metrics."""

    host: str = "127.0.0.1"
    #: 0 stands for any free port.
    port: int = 0
    #: Whether /sd lists members at any address, even unsealed ones. Then whoever can write to Redis chooses where Prometheus
    #: sends requests.
    anywhere: bool = False
