"""Opens engines when they are first needed, and releases them.

Guarantees: concurrent callers open an engine only once; engines that share a device are
never open together; on exit, all opened engines are closed, even if the run was cancelled.
"""

from __future__ import annotations

import asyncio
import time
import weakref
from collections import defaultdict
from collections.abc import Callable, Mapping
from types import TracebackType

import anyio
import anyio.to_thread

from chainette.engine.backends import backend_class
from chainette.engine.base import Engine
from chainette.engine.config import EngineConfig
from chainette.engine.model_files import files_of
from chainette.errors import EngineUnavailable, UnknownEngine

__all__ = ["Engines", "create_engine", "release_engine"]

OnLoaded = Callable[[EngineConfig, Engine, float], None]
OnReleased = Callable[[EngineConfig], None]

#: The engines of all runs in this process, for `release_engine`, which gets no run.
_live: weakref.WeakSet[Engines] = weakref.WeakSet()


def create_engine(config: EngineConfig, patience: float | None = None) -> Engine:
    """The unopened engine of a configuration. One behind HTTP gives up after `patience` seconds of silence.

    Raises:
        EngineConfigError: its values cannot work.
    """
    return backend_class(config.backend).create(config, patience)


class Engines:
    """The engines of one run; an async context manager that closes those it opened."""

    def __init__(
        self,
        configs: Mapping[str, EngineConfig],
        *,
        on_loaded: OnLoaded = lambda _config, _engine, _seconds: None,
        on_released: OnReleased = lambda _config: None,
        create: Callable[[EngineConfig], Engine] = create_engine,
    ) -> None:
        self._configs = configs
        self._on_loaded = on_loaded
        self._on_released = on_released
        self._create = create
        self._engines: dict[str, Engine] = {}
        self._locks: defaultdict[str, anyio.Lock] = defaultdict(anyio.Lock)
        self._device = anyio.Lock()
        self.loop: asyncio.AbstractEventLoop | None = None

    async def __aenter__(self) -> Engines:
        self.loop = asyncio.get_running_loop()
        _live.add(self)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        _live.discard(self)
        with anyio.CancelScope(shield=True):
            await self.release()

    @property
    def opened(self) -> tuple[str, ...]:
        """Names of the engines that are open now."""
        return tuple(self._engines)

    async def get(self, name: str) -> Engine:
        """The opened engine. Those that share its device are released first; their callers must be done.

        After a failed open the next caller tries again. If the engine has died, it is closed and opened again.

        Raises:
            UnknownEngine: the run has no engine of that name.
            EngineUnavailable: it did not become ready.
            EngineConfigError: it never will.
        """
        if self._answers(name):
            return self._engines[name]
        if name not in self._configs:
            raise UnknownEngine(f"no engine {name!r} in this run; it has {', '.join(sorted(self._configs)) or 'none'}")
        config = self._configs[name]
        async with self._device if config.exclusive else self._locks[name]:
            if not self._answers(name):
                await self._close(name)
                await self._make_room(config)
                self._engines[name] = await self._open(config)
            return self._engines[name]

    def _answers(self, name: str) -> bool:
        return name in self._engines and not self._engines[name].dead

    async def release(self, name: str | None = None) -> None:
        """Closes one engine, or all; does nothing for one that is not open.

        Every engine is closed before the first error is raised.
        """
        errors: list[Exception] = []
        for opened in [name] if name else list(self._engines):
            try:
                await self._close(opened)
            except Exception as error:
                errors.append(error)
        if errors:
            raise errors[0]

    async def _make_room(self, config: EngineConfig) -> None:
        for name in self.opened:
            if config.shares_device_with(self._configs[name]):
                await self._close(name)

    async def _open(self, config: EngineConfig) -> Engine:
        engine = self._create(config)
        files = await anyio.to_thread.run_sync(files_of, config)  # before it reads them, since they may change
        began = time.perf_counter()
        try:
            # slightly more, since an engine with its own time limit knows why it is not ready
            with anyio.fail_after(config.startup_timeout + min(1.0, config.startup_timeout / 4)):
                await engine.open()
        except BaseException as error:
            with anyio.CancelScope(shield=True):
                await engine.close()
            if isinstance(error, TimeoutError):
                raise EngineUnavailable(
                    f"engine {config.name!r} was not ready after {config.startup_timeout:g} s; "
                    "see whether it starts at all, or give it longer: startup_timeout=..."
                ) from error
            raise
        engine.identity = engine.revisions() | files
        self._on_loaded(config, engine, time.perf_counter() - began)
        return engine

    async def _close(self, name: str) -> None:
        engine = self._engines.pop(name, None)
        if engine is not None:
            await engine.close()
            self._on_released(self._configs[name])


def release_engine(name: str | None = None) -> None:
    """Closes the engine of that name, or every engine, that a run of this process still holds open.

    A run in progress opens it again when it needs it. Returns once the memory is free, except on the event
    loop of the run itself: there the release happens as soon as the caller returns to the loop.
    """
    for engines in list(_live):
        loop = engines.loop
        if loop is None or loop.is_closed():
            continue
        if not loop.is_running():
            loop.run_until_complete(engines.release(name))
        elif _is_here(loop):
            task = loop.create_task(engines.release(name))
            _releasing.add(task)
            task.add_done_callback(_releasing.discard)
        else:
            asyncio.run_coroutine_threadsafe(engines.release(name), loop).result()


#: Keeps the tasks alive, since the loop holds them weakly.
_releasing: set[asyncio.Task[None]] = set()


def _is_here(loop: asyncio.AbstractEventLoop) -> bool:
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False
