"""The end of Chainette's own processes without that of the interpreter, which visits every module and waits for threads."""

from __future__ import annotations

import atexit
import gc
import io
import os
import sys
from contextlib import suppress
from typing import NoReturn

__all__ = ["end", "leave"]

_FILES = (io.TextIOWrapper, io.BufferedWriter, io.BufferedRandom)


def end(code: int) -> NoReturn:
    """As `leave`, after the functions that were registered for the end of the process."""
    atexit.unregister(gc.freeze)  # which would hide open files
    atexit._run_exitfuncs()
    leave(code)


def leave(code: int) -> NoReturn:
    """Ends the process once everything is written that was printed, or given to a file that is still open.

    Nothing else is waited for or called.
    """
    for value in (sys.stdout, sys.stderr, *gc.get_objects()):
        if type(value) in _FILES:
            with suppress(OSError, ValueError):  # a reader that is gone, or a file that was closed
                value.flush()
    os._exit(code)
