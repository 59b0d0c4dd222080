"""Coroutines for callers that are not on an event loop, or on one that must not be theirs."""

from __future__ import annotations

import asyncio
import os
import queue
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import anyio
import anyio.from_thread
import anyio.to_thread
from pydantic import BaseModel

from chainette import launch
from chainette.core.chain import Chain, Inputs
from chainette.hooks import Hook
from chainette.options import RunOptions
from chainette.records import Row
from chainette.streaming import StreamEvent

__all__ = ["block", "iterate", "stream"]

T = TypeVar("T")


def block(call: Callable[..., Coroutine[Any, Any, T]], *arguments: Any) -> T:
    """Runs a coroutine to its end, in a thread of its own where this one has an event loop already."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return anyio.run(call, *arguments)
    with anyio.from_thread.start_blocking_portal() as portal:
        future: Future[T] = portal.start_task_soon(call, *arguments)
        try:
            return future.result()
        except BaseException:  # Ctrl-C reaches this thread only
            future.cancel()
            raise


def iterate(
    chain: Chain, inputs: Inputs, output_dir: str | os.PathLike[str] | None, options: RunOptions
) -> Iterator[list[Row]]:
    """A run in a thread, which waits where the caller does not take its rows."""
    ready: queue.Queue[list[Row] | None] = queue.Queue(maxsize=2)
    closed = threading.Event()

    async def deliver(rows: list[Row]) -> None:
        await anyio.to_thread.run_sync(_put, ready, rows, closed)

    return _taken(ready, closed, partial(launch.iterate, chain, inputs, output_dir, options, deliver))


def stream(chain: Chain, row: BaseModel | dict[str, Any], options: RunOptions) -> Iterator[StreamEvent]:
    """A run of one row in a thread; what the caller has not taken yet waits in memory, the model does not."""
    ready: queue.Queue[StreamEvent | None] = queue.Queue()
    options = replace(options, hooks=(*options.hooks, _Told(ready)))
    return _taken(ready, threading.Event(), partial(launch.iterate, chain, [row], None, options))


class _Told(Hook):
    """Puts aside what is told."""

    streams = True

    def __init__(self, ready: queue.Queue[StreamEvent | None]) -> None:
        self._ready = ready

    def on_stream(self, event: StreamEvent) -> None:
        self._ready.put(event)


def _taken(ready: queue.Queue[T | None], closed: threading.Event, run: Callable[[], Coroutine[Any, Any, None]]) -> Iterator[T]:
    """What a run in a thread puts into `ready`, until its end; closing the iterator cancels the run."""

    async def work() -> None:
        try:
            await run()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(_put, ready, None, closed)

    with anyio.from_thread.start_blocking_portal() as portal:
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
