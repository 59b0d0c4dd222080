"""Code of the user's: what it may raise about a row, and how that is told."""

from __future__ import annotations

import asyncio

__all__ = ["RAISED", "is_stray", "told"]

#: What costs a row, and nothing else: also where it looks like the end of the program, or like a cancellation.
RAISED = (Exception, SystemExit, GeneratorExit, asyncio.CancelledError, BaseExceptionGroup)


def is_stray(error: BaseException) -> bool:
    """Whether an error is of the code that was run, and no cancellation of the task that runs it."""
    task = asyncio.current_task()
    return not isinstance(error, asyncio.CancelledError) or task is None or not task.cancelling()


def told(error: BaseException) -> str:
    """`LookupError: not this one`; the type alone where the error cannot say more."""
    try:
        return f"{type(error).__name__}: {error}"
    except RAISED:
        return type(error).__name__
