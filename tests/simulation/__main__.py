"""`python -m tests.simulation --seeds 10000 --start 0`: exit 1 at the first seed that breaks a promise, once it has shrunk."""

# The clock goes first: modules keep the functions they import.
# ruff: noqa: E402
from __future__ import annotations

from time import process_time

from tests.simulation.virtual import VirtualTime

CLOCK = VirtualTime()
CLOCK.install()

import os
import sys

from tests.simulation.command import main

if __name__ == "__main__":
    if os.environ.get("PYTHONHASHSEED") != "0":  # the order of a set of names is part of a schedule
        os.execve(
            sys.executable, [sys.executable, "-m", "tests.simulation", *sys.argv[1:]], {**os.environ, "PYTHONHASHSEED": "0"}
        )
    sys.exit(main(CLOCK, process_time, sys.argv[1:]))
