"""Collects the answers to an engine's concurrent requests."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from chainette.engine.base import UNSENT, Completion, Done
from chainette.errors import EngineRefused, EngineUnavailable
from chainette.utils.gather import together

__all__ = ["NotSent", "ask_all"]


class NotSent(asyncio.CancelledError):
    """A request was cancelled before it was sent. Raise it with the arguments of the cancellation."""


async def ask_all(
    asks: Sequence[Coroutine[Any, Any, Completion]],
    done: Done | None,
    has_answered: Callable[[], bool] = lambda: False,
) -> list[Completion]:
    """All answers, in order; calls `done` for each as it arrives, and with UNSENT for each request that raises NotSent.
    `has_answered`: whether the engine has ever answered.

    Raises:
        EngineUnavailable: a request got no answer. The others finish first, since their answers are paid for.
        EngineRefused: the engine refused a request. If it has never answered, it would refuse the others too, so they are
            cancelled; else they finish first.
    """
    failures: list[EngineUnavailable] = []

    async def one(index: int, ask: Coroutine[Any, Any, Completion]) -> Completion | None:
        try:
            completion = await ask
        except NotSent as error:
            if done is not None:
                done(index, UNSENT)
            raise asyncio.CancelledError(*error.args) from None
        except EngineUnavailable as error:
            if isinstance(error, EngineRefused) and not has_answered():
                raise
            failures.append(error)
            return None
        if done is not None:
            done(index, completion)
        return completion

    found = await together([one(index, ask) for index, ask in enumerate(asks)])
    if failures:
        raise failures[0]
    return [completion for completion in found if completion is not None]
