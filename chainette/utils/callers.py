"""Finds the line of the user's code that called into this package."""

from __future__ import annotations

import sys
from pathlib import Path
from types import FrameType

from chainette.errors import Place

__all__ = ["caller_frame", "caller_place"]

_PACKAGE = str(Path(__file__).resolve().parents[1])


def caller_frame() -> FrameType:
    """The nearest frame outside this package (and the stdlib's dataclasses) on the stack."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith((_PACKAGE, "<")):
        frame = frame.f_back
    return frame


def caller_place() -> Place:
    """The line of that frame."""
    frame = caller_frame()
    return Place(frame.f_code.co_filename, frame.f_lineno)
