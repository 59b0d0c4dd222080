"""The end of Chainette's own processes without that of the interpreter, which visits every module and waits for threads."""

from __future__ import annotations

import atexit
import gc
import io
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

__all__ = ["end", "leave"]


def end(code: int) -> NoReturn:
    """As `leave`, after the functions that were registered for the end of the process."""
    atexit.unregister(gc.freeze)  # which would hide open files
    atexit._run_exitfuncs()
    leave(code)


def leave(code: int) -> NoReturn:
    """Ends the process once everything is written that was printed, or given to a file that is still open.

    Nothing else is waited for or called.
    """
    files = [value for value in gc.get_objects() if issubclass(type(value), io.IOBase)]
    for file in (sys.stdout, sys.stderr, *files):
        if isinstance(file, io.TextIOBase):
            _try(file.flush)
    for file in files:
        if isinstance(file, io.BufferedIOBase) and type(file).__module__ != "_io":  # such as gzip's, whose close writes an end
            _try(file.close)
    for file in files:
        if isinstance(file, io.BufferedWriter | io.BufferedRandom):
            _try(file.flush)
    os._exit(code)


def _try(call: Callable[[], object]) -> None:
    """A reader that is gone, a full disk or a closed file keeps no other file from being written."""
    with suppress(Exception):
        call()
