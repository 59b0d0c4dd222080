"""Common to every long-lived process of the fleet: signals, the readiness line, exit codes, patience with Redis."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import TypeVar

import anyio
import anyio.lowlevel
import redis

from chainette.fleet.redis.connect import eviction_risk, is_damage, is_passing
from chainette.utils.backoff import backoff
from chainette.utils.terminal_text import visible_paragraph

__all__ = ["UNUSABLE", "heed_signals", "insist", "off_loop", "say", "try_once", "warn_of_eviction", "watch_parent"]

T = TypeVar("T")

#: Exit code of a process that can never do its task: starting it again does not help.
UNUSABLE = 78

#: Seconds from the end of standard input to the end of the process.
_GRACE = 10.0

#: Seconds between two tries of a call that Redis does not answer; the longest is below the lease.
_FIRST_WAIT, _LONGEST_WAIT = 0.05, 1.5

#: Tries of a call that met a key of a foreign type: every try deletes such keys (fleet/redis/scripts/mend.lua).
_MENDS = 3


def heed_signals(stopping: threading.Event, *numbers: signal.Signals) -> None:
    """The first of these signals sets `stopping`; a second one ends the process at once, with 128 + its number.

    If a process ends at once, its units come back when its lease is over.
    """

    def heed(number: int, _frame: FrameType | None) -> None:
        if stopping.is_set():
            os._exit(128 + number)
        stopping.set()

    for number in numbers:
        signal.signal(number, heed)


def watch_parent(stopping: threading.Event) -> None:
    """Sets `stopping` when standard input ends: the process that started this one is gone."""

    def watch() -> None:
        # from the descriptor: a thread that waits inside sys.stdin aborts the interpreter's exit
        with suppress(OSError):
            while os.read(sys.stdin.fileno(), 4096):
                pass
        stopping.set()
        last = threading.Timer(_GRACE, os._exit, (1,))
        last.daemon = True
        last.start()

    threading.Thread(target=watch, name="parent", daemon=True).start()


def say(words: str) -> None:
    """One message of the process's log, which is its stderr. A reader that is gone, or a full disk, costs the message only."""
    with suppress(OSError):
        print(visible_paragraph(words), file=sys.stderr, flush=True)  # noqa: T201


def warn_of_eviction(connection: redis.Redis) -> None:
    """Warns if Redis may delete keys by itself."""
    with suppress(redis.RedisError):
        if risk := eviction_risk(connection):
            say(f"warning: {risk}")


async def off_loop(call: Callable[[], T]) -> T:  # type: ignore[return]  # nobody cancels its scope
    """Calls Redis in a thread of the event loop, which takes half as long as in one of anyio's. A call that has begun comes to
    its end, even if its caller is cancelled."""
    await anyio.lowlevel.checkpoint_if_cancelled()
    with anyio.CancelScope(shield=True):
        return await asyncio.get_running_loop().run_in_executor(None, call)


async def insist(call: Callable[[], T]) -> T:
    """Calls Redis, off the event loop, until it answers: a loaded engine is worth more than the wait."""
    failures = 0
    while True:
        try:
            return await off_loop(call)
        except redis.RedisError as error:
            mended = is_damage(error) and failures < _MENDS
            if not (is_passing(error) or mended):
                raise
            await anyio.sleep(backoff(failures, _FIRST_WAIT, _LONGEST_WAIT))
            failures += 1


async def try_once(call: Callable[[], object]) -> None:
    """Calls Redis once, off the event loop; if the call is lost, the end of the lease has the same effect."""
    with suppress(redis.RedisError):
        await off_loop(call)
