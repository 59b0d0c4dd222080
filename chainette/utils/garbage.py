"""How often Python looks for reference cycles in Chainette's own processes."""

from __future__ import annotations

import gc

__all__ = ["collect_rarely"]


def collect_rarely() -> None:
    """Makes the garbage collector look for cycles a tenth as often as Python does by default.

    Rows and requests create hardly any, and each collection visits all that are in flight: a tenth of a run's CPU. Called
    by the command and by workers; a program that calls `chain.run` is left alone.
    """
    gc.set_threshold(10_000, 20, 50)
