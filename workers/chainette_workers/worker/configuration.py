"""The configuration of a worker process."""

from __future__ import annotations

import msgspec

from chainette.records import PYTHON
from chainette_workers.metrics.address import MetricsEndpoint

__all__ = ["WorkerConfig"]


class WorkerConfig(msgspec.Struct, frozen=True):
    """A worker's configuration: the one line it reads."""

    url: str | None
    engines: list[str]
    chain_root: str
    #: Rows in flight in each engine; None takes twice the engine's capacity.
    rows_in_flight: int | None = None
    #: Whether it runs Apply functions and joins too.
    python: bool = True
    #: GPUs it sees, and that an engine which names none spreads over.
    gpus: int = 1
    #: A YAML file whose engines replace those of the chains.
    engines_file: str | None = None
    #: Seconds until nothing more is claimed; the units in hand are finished, and the worker ends.
    drain_after: float | None = None
    #: Serves its metrics here; None: nowhere.
    metrics: MetricsEndpoint | None = None
    #: Values that parameters of chains may have.
    parameters: dict[str, list[str]] = {}
    #: Modules a run may name as its chain.
    modules: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        """Names of its engines; functions are "python"."""
        return [*dict.fromkeys([*self.engines, *[PYTHON][: self.python]])]
