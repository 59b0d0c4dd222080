"""Errors of the user's code: those that reject only a row, and their descriptions."""

from __future__ import annotations

import asyncio

__all__ = ["RAISED", "first_line", "is_stray", "told"]

#: Errors that reject only their row, even those that usually end a program or cancel a task.
RAISED = (Exception, SystemExit, GeneratorExit, asyncio.CancelledError, BaseExceptionGroup)


def is_stray(error: BaseException) -> bool:
    """Whether the user's code raised the error, as opposed to a cancellation of the current task."""
    task = asyncio.current_task()
    return not isinstance(error, asyncio.CancelledError) or task is None or not task.cancelling()


def told(error: BaseException) -> str:
    """`LookupError: not this one`; the type alone if the error cannot be printed."""
    try:
        return f"{type(error).__name__}: {error}"
    except RAISED:
        return type(error).__name__


def first_line(error: BaseException) -> str:
    """The first line of the error's text, or its type if there is no text."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
