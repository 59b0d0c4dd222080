"""When Python looks for reference cycles in Chainette's own processes."""

from __future__ import annotations

import atexit
import gc
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["collect_rarely", "importing"]


def collect_rarely() -> None:
    """Makes the garbage collector look for cycles a tenth as often as by default, and not at exit.

    Rows and requests create hardly any cycles, and each collection visits all rows in flight, which costs a tenth of a
    run's CPU. At exit, a collection would visit every module, which takes 0.15 s. Only the command and workers call this;
    a program that calls `chain.run` keeps its own settings.
    """
    gc.set_threshold(10_000, 20, 50)
    atexit.register(gc.freeze)


@contextmanager
def importing() -> Iterator[None]:
    """Turns the collector off inside a `with` block of imports, and keeps the new objects out of later collections.

    Modules are never freed, and visiting them takes a tenth of their import time. Only for the command and workers, as above.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
