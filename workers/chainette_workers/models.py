"""The engines of a worker: one of each configuration, whichever runs need it."""

from __future__ import annotations

from collections.abc import Callable

from chainette.engine.base import Engine
from chainette.engine.config import EngineConfig
from chainette.engine.lifecycle import Engines, create_engine
from chainette.io.events import EngineLoaded, EngineReleased

__all__ = ["Models"]

#: Tells the runs that need an engine of that configuration what became of it.
Tell = Callable[[EngineConfig, EngineLoaded | EngineReleased], None]


class Models:
    """Engines by their configuration's digest: equal digests answer alike, so that runs share them."""

    def __init__(
        self, tell: Tell = lambda _config, _event: None, create: Callable[[EngineConfig], Engine] = create_engine
    ) -> None:
        self._tell = tell
        self._configs: dict[str, EngineConfig] = {}
        self._engines = Engines(self._configs, on_loaded=self._loaded, on_released=self._released, create=create)

    async def get(self, config: EngineConfig) -> Engine:
        """The engine, opened. Those that share its device are released first; their callers must be done.

        Raises:
            EngineUnavailable: it did not become ready.
            EngineConfigError: it never will.
        """
        self._configs.setdefault(config.digest, config)
        return await self._engines.get(config.digest)

    @property
    def loaded(self) -> list[EngineConfig]:
        """Those that are open now."""
        return [self._configs[digest] for digest in self._engines.opened]

    async def release(self, config: EngineConfig | None = None) -> None:
        """Closes one, or all."""
        await self._engines.release(None if config is None else config.digest)

    def _loaded(self, config: EngineConfig, engine: Engine, seconds: float) -> None:
        self._tell(config, EngineLoaded.of(config, engine, seconds))

    def _released(self, config: EngineConfig) -> None:
        self._tell(config, EngineReleased(engine=config.name))
