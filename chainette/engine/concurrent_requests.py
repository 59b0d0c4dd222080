"""Collects the answers to an engine's concurrent requests."""

from __future__ import annotations

from collections.abc import Coroutine, Sequence
from typing import Any

from chainette.engine.base import Completion, Done
from chainette.errors import EngineRefused, EngineUnavailable
from chainette.utils.gather import together

__all__ = ["ask_all"]


async def ask_all(asks: Sequence[Coroutine[Any, Any, Completion]], done: Done | None) -> list[Completion]:
    """All answers, in order; calls `done` for each as it arrives.

    Raises:
        EngineUnavailable: a request got no answer. The others finish first, since their answers are paid for.
        EngineRefused: the engine would refuse the others too, so they are cancelled.
    """
    failures: list[EngineUnavailable] = []

    async def one(index: int, ask: Coroutine[Any, Any, Completion]) -> Completion | None:
        try:
            completion = await ask
        except EngineRefused:
            raise
        except EngineUnavailable as error:
            failures.append(error)
            return None
        if done is not None:
            done(index, completion)
        return completion

    found = await together([one(index, ask) for index, ask in enumerate(asks)])
    if failures:
        raise failures[0]
    return [completion for completion in found if completion is not None]
