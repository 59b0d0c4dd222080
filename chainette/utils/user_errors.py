"""Errors of the user's code: which ones reject a row, and how they are described."""

from __future__ import annotations

import asyncio

__all__ = ["RAISED", "first_line", "is_stray", "told"]

#: Errors that cost only their row, even those that look like the end of the program or a cancellation.
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


def first_line(error: BaseException) -> str:
    """The first line of its text, or else its type."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
