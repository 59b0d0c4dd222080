"""Finds the line of the user's code that called into this package."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from types import FrameType

from chainette.errors import Place

__all__ = ["caller_frame", "caller_place", "declared_at"]

#: The current line of a YAML file, while the file is being read.
_declared_at: ContextVar[Place | None] = ContextVar("chainette_declared_at", default=None)

_PACKAGE = str(Path(__file__).resolve().parents[1])


def caller_frame() -> FrameType:
    """The nearest frame outside this package (and the stdlib's dataclasses) on the stack."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith((_PACKAGE, "<")):
        frame = frame.f_back
    return frame


def caller_place() -> Place:
    """The current line of `caller_frame`, or the line set by `declared_at`."""
    if (place := _declared_at.get()) is not None:
        return place
    frame = caller_frame()
    return Place(frame.f_code.co_filename, frame.f_lineno)


@contextmanager
def declared_at(place: Place | None) -> Iterator[None]:
    """Makes `caller_place` return this line of a YAML file: the nodes of such a file are not created in the user's code.

    None restores the usual result, for Python files that are imported meanwhile.
    """
    token = _declared_at.set(place)
    try:
        yield
    finally:
        _declared_at.reset(token)
