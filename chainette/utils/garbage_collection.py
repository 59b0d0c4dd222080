"""When Python looks for reference cycles in Chainette's own processes."""

from __future__ import annotations

import atexit
import gc
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["collect_rarely", "importing"]


def collect_rarely() -> None:
    """Makes the garbage collector look for cycles a tenth as often as Python does by default, and not at exit.

    Rows and requests create hardly any, and each collection visits all that are in flight: a tenth of a run's CPU. At
    exit it would visit every module, which takes 0.15 s. Called by the command and by workers; a program that calls
    `chain.run` is left alone.
    """
    gc.set_threshold(10_000, 20, 50)
    atexit.register(gc.freeze)


@contextmanager
def importing() -> Iterator[None]:
    """Python looks for no cycles inside the `with` block, in which modules are imported, and never among its objects.

    Modules stay, and looking at them takes a tenth of the time of their import. For the command and workers, as above.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
