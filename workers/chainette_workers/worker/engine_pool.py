"""The engines of a worker: one for each configuration, shared by all runs that need it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from time import monotonic

from chainette.engine.backends import backend_class
from chainette.engine.base import Engine
from chainette.engine.config import EngineConfig
from chainette.engine.lifecycle import Engines, create_engine
from chainette.io.rundir.event_types import EngineLoaded, EngineReleased
from chainette_workers.worker.engine_turns import exclude

__all__ = ["EnginePool", "spread"]

#: Tells the runs that need an engine that it was loaded or released.
Tell = Callable[[EngineConfig, EngineLoaded | EngineReleased], None]


def spread(gpus: int, config: EngineConfig) -> Engine:
    """The engine, over all of a worker's GPUs unless its configuration names its own."""
    return create_engine(backend_class(config.backend).spread(config, gpus))


class EnginePool:
    """Engines by their configuration's digest: equal digests answer alike, so that runs share them."""

    def __init__(
        self, tell: Tell = lambda _config, _event: None, create: Callable[[EngineConfig], Engine] = create_engine
    ) -> None:
        self._tell = tell
        self._configs: dict[str, EngineConfig] = {}
        self._opening: Counter[str] = Counter()
        #: Times an engine was given up for another, and the seconds that the last time took: release and load.
        self.swaps = 0
        self.swap_seconds = 0.0
        self._swapping = 0.0
        self._began: float | None = None
        self._engines = Engines(self._configs, on_loaded=self._loaded, on_released=self._released, create=create)

    async def get(self, config: EngineConfig) -> Engine:
        """The engine, opened. Those that it excludes are released first; their callers must be done.

        Raises:
            EngineUnavailable: it did not become ready.
            EngineConfigError: it never will.
        """
        self._configs.setdefault(config.digest, config)
        if config.digest in self._engines.opened:
            return await self._engines.get(config.digest)
        began, excluded = monotonic(), [other for other in self.loaded if exclude(config, other)]
        self._opening[config.digest] += 1
        try:
            for other in excluded:
                await self.release(other)
            engine = await self._engines.get(config.digest)
        finally:
            self._opening[config.digest] -= 1
        if self._began is None:
            self._began = monotonic()
        if excluded:
            self.swaps, self.swap_seconds = self.swaps + 1, monotonic() - began
            self._swapping += self.swap_seconds
        return engine

    @property
    def swapping(self) -> float:
        """The share of the time since the first engine was loaded that went into swaps."""
        return self._swapping / (monotonic() - self._began) if self._began is not None and self._swapping else 0.0

    @property
    def loaded(self) -> list[EngineConfig]:
        """Those that are open now."""
        return [self._configs[digest] for digest in self._engines.opened]

    def occupying(self, config: EngineConfig) -> list[EngineConfig]:
        """Engines that are open, or opening, and may have to go before this one can open."""
        if config.digest in self._engines.opened:
            return []
        opening = [self._configs[digest] for digest, number in self._opening.items() if number]
        return [other for other in [*self.loaded, *opening] if other.digest != config.digest]

    async def release(self, config: EngineConfig | None = None) -> None:
        """Closes one, or all."""
        await self._engines.release(None if config is None else config.digest)

    def _loaded(self, config: EngineConfig, engine: Engine, seconds: float) -> None:
        self._tell(config, EngineLoaded.of(config, engine, seconds))

    def _released(self, config: EngineConfig) -> None:
        self._tell(config, EngineReleased(engine=config.name))
