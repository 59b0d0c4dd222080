"""Ends Chainette's own processes without the interpreter's shutdown, which visits every module and waits for threads."""

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
    """Calls the functions registered with `atexit`, then `leave`."""
    atexit.unregister(gc.freeze)  # it would hide open files from `leave`
    atexit._run_exitfuncs()
    leave(code)


def leave(code: int) -> NoReturn:
    """Flushes the standard streams and all open files, then ends the process at once.

    It waits for no threads and calls no other exit functions.
    """
    files = [value for value in gc.get_objects() if issubclass(type(value), io.IOBase)]
    for file in (sys.stdout, sys.stderr, *files):
        if isinstance(file, io.TextIOBase):
            _try(file.flush)
    for file in files:
        if isinstance(file, io.BufferedIOBase) and type(file).__module__ != "_io":  # such as gzip's, which end with a trailer
            _try(file.close)
    for file in files:
        if isinstance(file, io.BufferedWriter | io.BufferedRandom):
            _try(file.flush)
    os._exit(code)


def _try(call: Callable[[], object]) -> None:
    """Ignores errors: a closed pipe or file, or a full disk, must not keep other files from being written."""
    with suppress(Exception):
        call()
