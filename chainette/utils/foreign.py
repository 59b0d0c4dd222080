"""Code of the user's: what it may raise about a row, and how that is told."""

from __future__ import annotations

import asyncio

__all__ = ["RAISED", "is_stray", "told"]

#: What costs a row, and nothing else: also where it looks like the end of the program, or like a cancellation.
RAISED = (Exception, SystemExit, GeneratorExit, asyncio.CancelledError, BaseExceptionGroup)


def is_stray(error: BaseException) -> bool:
    """Whether the error comes from the code that was run, and is not a cancellation of its task."""
    task = asyncio.current_task()
    return not isinstance(error, asyncio.CancelledError) or task is None or not task.cancelling()


def told(error: BaseException) -> str:
    """`LookupError: not this one`; the type alone if the error has no text."""
    try:
        return f"{type(error).__name__}: {error}"
    except RAISED:
        return type(error).__name__
