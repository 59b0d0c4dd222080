"""Virtual time: a clock that moves when everybody waits, an event loop on it, and threads that take turns.

`install` puts them in the place of the standard library's and anyio's. It must come before the product is imported, since
modules keep the functions they import. A thread is a greenlet: it runs until it blocks, so that the order of all steps
follows from the seed alone.
"""

from __future__ import annotations

import asyncio
import contextvars
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import anyio
import anyio.from_thread
import anyio.to_thread
from anyio._core._eventloop import get_async_backend
from greenlet import getcurrent, greenlet

__all__ = ["Stuck", "VirtualTime", "block", "in_thread"]

#: Seconds since 1970 at which every simulation begins.
_BEGIN = 1_800_000_000.0

#: Turns of the event loop that no run comes near.
_MOST_TURNS = 60_000


class Stuck(AssertionError):
    """Nobody will ever move again, or somebody turns in circles."""


class _Thread(greenlet):  # type: ignore[misc]
    scope: anyio.CancelScope


def block(awaitable: Awaitable[Any]) -> Any:
    """Awaits something from a thread."""
    me = getcurrent()
    assert isinstance(me, _Thread), "only a thread may block"
    return me.parent.switch(awaitable)


def is_thread() -> bool:
    return isinstance(getcurrent(), _Thread)


async def in_thread(call: Callable[..., Any], *arguments: Any, **_options: Any) -> Any:
    """`anyio.to_thread.run_sync`."""
    await asyncio.sleep(0)
    with anyio.CancelScope(shield=True) as scope:
        thread = _Thread(call)
        thread.scope, thread.gr_context = scope, contextvars.copy_context()
        found = thread.switch(*arguments)
        while not thread.dead:
            try:
                value = await found
            except BaseException as error:
                found = thread.throw(error)
            else:
                found = thread.switch(value)
        return found


def check_cancelled() -> None:
    """`anyio.from_thread.check_cancelled`."""
    me = getcurrent()
    if not isinstance(me, _Thread):
        raise RuntimeError("not in a thread")
    scope: Any = me.scope._parent_scope  # type: ignore[attr-defined]
    while scope is not None:
        if scope.cancel_called:
            raise asyncio.CancelledError
        scope = None if scope.shield else scope._parent_scope


class _Event:
    """`threading.Event` for threads that take turns."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def set(self) -> None:
        self._event.set()

    def wait(self, seconds: float) -> bool:
        async def wait() -> bool:
            with anyio.move_on_after(seconds):
                await self._event.wait()
            return self._event.is_set()

        found: bool = block(wait())
        return found


class _Started:
    """`threading.Thread` for threads that take turns."""

    def __init__(self, target: Callable[[], None], **_about: Any) -> None:
        self._target = target

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(in_thread(self._target))

    def join(self, seconds: float | None = None) -> None:
        block(asyncio.wait([self._task], timeout=seconds))


class Threading:
    """The part of `threading` the product's threads use."""

    Event, Thread, Lock = _Event, _Started, threading.Lock


async def _end_others() -> None:
    """Ends the threads of processes that were killed: a suspended greenlet would keep all that it refers to for ever."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    if others:
        await asyncio.wait(others, timeout=1)


def _know_the_loop() -> None:
    """Spares anyio the question which event loop is running."""
    backend = get_async_backend("asyncio")
    for name, module in [*sys.modules.items()]:
        if name.startswith("anyio.") and "get_async_backend" in vars(module):
            vars(module)["get_async_backend"] = lambda _name=None: backend


@dataclass
class VirtualTime:
    """The clock of one simulation after the other."""

    now: float = 0.0
    #: Turns of the event loop in this simulation.
    turns: int = 0
    #: Called after each turn.
    turned: Callable[[int], None] = lambda _turn: None
    #: Exceptions of tasks nobody awaited.
    stray: list[BaseException] = field(default_factory=list)

    def install(self) -> None:
        vars(time).update(
            monotonic=lambda: self.now,
            perf_counter=lambda: self.now,
            time=lambda: _BEGIN + self.now,
            time_ns=lambda: int((_BEGIN + self.now) * 1e9),
            sleep=self.sleep,
        )
        _know_the_loop()
        vars(anyio.to_thread)["run_sync"] = in_thread
        vars(anyio.from_thread)["check_cancelled"] = check_cancelled

    def sleep(self, seconds: float) -> None:
        if is_thread():
            block(asyncio.sleep(seconds))
        else:
            self.now += seconds

    def run(self, main: Coroutine[Any, Any, None]) -> None:
        """Runs a coroutine from time 0 until nothing is left to do for it."""
        self.now, self.turns, self.stray = 0.0, 0, []
        loop = _Loop(self)
        loop.set_exception_handler(lambda _loop, context: self._note(context.get("exception")))
        try:
            loop.run_until_complete(main)
        finally:
            loop.run_until_complete(_end_others())
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()

    def _note(self, error: BaseException | None) -> None:
        if error is not None:
            self.stray.append(error)

    def select(self, timeout: float | None) -> list[Any]:
        """The event loop waits: time passes."""
        self.turns += 1
        if timeout is None:
            raise Stuck("everybody waits for somebody else")
        if self.turns > _MOST_TURNS:
            raise Stuck(f"no end after {_MOST_TURNS:,} turns")
        self.now += max(0.0, timeout)
        self.turned(self.turns)
        return []

    def close(self) -> None:
        """An event loop ends."""


class _Loop(asyncio.BaseEventLoop):
    """An event loop that hears of nothing but time."""

    def __init__(self, clock: VirtualTime) -> None:
        super().__init__()
        self._clock = clock
        self._selector = clock

    def time(self) -> float:
        return self._clock.now

    def _process_events(self, _events: list[Any]) -> None:
        pass

    def _write_to_self(self) -> None:
        pass

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> Any:  # type: ignore[override]
        del executor
        return in_thread(func, *args)
