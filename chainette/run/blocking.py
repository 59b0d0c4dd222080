"""Runs coroutines for callers without an event loop, or with one that must stay free."""

from __future__ import annotations

import asyncio
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import anyio
import anyio.to_thread
from pydantic import BaseModel

from chainette.core.chain import Chain, Inputs
from chainette.core.plan import Plan
from chainette.core.streaming import StreamEvent
from chainette.hooks import Hook
from chainette.records import Row
from chainette.run import start
from chainette.run.options import RunOptions
from chainette.utils.event_loop import loop_in_thread, run_loop

__all__ = ["block", "iterate", "stream"]

T = TypeVar("T")

_default = signal.default_int_handler

#: Seconds in which a second Ctrl-C counts as the same one: a wrapper may pass it on in addition to the terminal.
_ECHO = 0.2


def block(call: Callable[..., Coroutine[Any, Any, T]], *arguments: Any) -> T:
    """Runs a coroutine to its end, in another thread if this one has an event loop already."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return _run(call, *arguments)
    with loop_in_thread() as portal:
        future: Future[T] = portal.start_task_soon(call, *arguments)
        try:
            return future.result()
        except BaseException:  # Ctrl-C reaches this thread only
            future.cancel()
            raise


def _run(call: Callable[..., Coroutine[Any, Any, T]], *arguments: Any) -> T:
    """Runs a coroutine. Ctrl-C cancels it; only a later second Ctrl-C interrupts the clean-up. So does SIGTERM if it is
    handled as Ctrl-C is."""
    heeded = [number for number in (signal.SIGINT, signal.SIGTERM) if _is_usual(signal.getsignal(number))]
    if threading.current_thread() is not threading.main_thread() or not heeded:
        return run_loop(call, *arguments)
    asked_at: float | None = None
    cancel: Callable[[], object] | None = None

    async def run() -> T:
        nonlocal cancel
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert task is not None
        cancel = partial(loop.call_soon_threadsafe, task.cancel)
        try:
            return await call(*arguments)
        finally:
            cancel = None

    def interrupted(_number: int, _frame: object) -> None:
        nonlocal asked_at
        if asked_at is not None and time.monotonic() - asked_at < _ECHO:
            return
        if asked_at is not None or cancel is None:
            raise KeyboardInterrupt
        asked_at = time.monotonic()
        cancel()

    for number in heeded:
        signal.signal(number, interrupted)
    try:
        return run_loop(run)
    except asyncio.CancelledError:
        if asked_at is None:
            raise
        raise KeyboardInterrupt from None
    finally:
        for number in heeded:
            signal.signal(number, _default if asked_at is None else _Echo(asked_at))


@dataclass(frozen=True)
class _Echo:
    """Handles Ctrl-C after an interrupted run, whose own may be passed on once more."""

    asked_at: float

    def __call__(self, _number: int, _frame: object) -> None:
        if time.monotonic() - self.asked_at >= _ECHO:
            raise KeyboardInterrupt


def _is_usual(handler: object) -> bool:
    return handler is _default or isinstance(handler, _Echo)


def iterate(
    chain: Chain | Plan, inputs: Inputs, output_dir: str | os.PathLike[str] | None, options: RunOptions
) -> Iterator[list[Row]]:
    """A run in a thread, which waits until the caller takes its rows."""
    ready: queue.Queue[list[Row] | None] = queue.Queue(maxsize=2)
    closed = threading.Event()

    async def deliver(rows: list[Row]) -> None:
        await anyio.to_thread.run_sync(_put, ready, rows, closed)

    return _taken(ready, closed, partial(start.iterate, chain, inputs, output_dir, options, deliver))


def stream(chain: Chain, row: BaseModel | dict[str, Any], options: RunOptions) -> Iterator[StreamEvent]:
    """A run of one row in a thread. Events wait in memory for the caller; the model does not wait."""
    ready: queue.Queue[StreamEvent | None] = queue.Queue()
    options = replace(options, hooks=(*options.hooks, _Told(ready)))
    return _taken(ready, threading.Event(), partial(start.iterate, chain, [row], None, options))


class _Told(Hook):
    """Puts events aside."""

    streams = True

    def __init__(self, ready: queue.Queue[StreamEvent | None]) -> None:
        self._ready = ready

    def on_stream(self, event: StreamEvent) -> None:
        self._ready.put(event)


def _taken(ready: queue.Queue[T | None], closed: threading.Event, run: Callable[[], Coroutine[Any, Any, None]]) -> Iterator[T]:
    """Everything a run in a thread puts into `ready`, until its end; closing the iterator cancels the run."""

    async def work() -> None:
        try:
            await run()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(_put, ready, None, closed)

    with loop_in_thread() as portal:
        running = portal.start_task_soon(work)
        try:
            while (item := ready.get()) is not None:
                yield item
            running.result()
        finally:
            closed.set()
            running.cancel()


def _put(ready: queue.Queue[Any], item: Any, closed: threading.Event) -> None:
    """Waits until the caller takes an item, or has closed the iterator."""
    while not closed.is_set():
        try:
            ready.put(item, timeout=0.1)
            return
        except queue.Full:
            continue
