"""The event loop of every process: uvloop if it is installed, asyncio's own otherwise.

This applies only to loops that Chainette starts. A coroutine that runs on the caller's loop stays there.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from contextlib import AbstractContextManager
from importlib.util import find_spec
from typing import Any, TypeVar

import anyio
from anyio.from_thread import BlockingPortal, start_blocking_portal

__all__ = ["loop_in_thread", "run_loop"]

T = TypeVar("T")


def run_loop(call: Callable[..., Coroutine[Any, Any, T]], *arguments: Any) -> T:
    """Runs a coroutine to its end on a new loop in this thread."""
    return anyio.run(call, *arguments, backend_options=_options())


def loop_in_thread() -> AbstractContextManager[BlockingPortal]:
    """A new loop in another thread, for callers that have a loop already or must not block."""
    return start_blocking_portal(backend_options=_options())


def _options() -> dict[str, Any]:
    return {"use_uvloop": find_spec("uvloop") is not None}
