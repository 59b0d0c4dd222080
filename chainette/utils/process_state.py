"""Repairs the global state of a process after a user's function may have broken it."""

from __future__ import annotations

import os
import sys

__all__ = ["put_back"]

_PATH = tuple(sys.path)


def put_back() -> None:
    """Restores entries of `sys.path`, and reopens standard streams that were closed.

    Otherwise the next file to be opened would get the closed file descriptor 1, and prints would end up in it.
    """
    missing = [entry for entry in _PATH if entry not in sys.path]
    if missing:
        sys.path.extend(missing)
    for name, number in (("stdout", 1), ("stderr", 2)):
        _open_descriptor(number)
        stream = getattr(sys, name)
        if getattr(stream, "closed", stream is None):
            setattr(sys, name, open(number, "w", encoding="utf-8", errors="replace", closefd=False))  # noqa: SIM115


def _open_descriptor(number: int) -> None:
    try:
        os.fstat(number)
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        if nowhere != number:
            os.dup2(nowhere, number)
            os.close(nowhere)
