"""The command line of a simulation."""

from __future__ import annotations

import argparse
import shutil
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.simulation.scenario import drawn
from tests.simulation.simulate import Simulator
from tests.simulation.virtual import VirtualTime

__all__ = ["main"]


def main(clock: VirtualTime, seconds: Callable[[], float], arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser("simulate")
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--go-on", action="store_true")
    parser.add_argument("--verbose", action="store_true")
    given = parser.parse_args(arguments)
    shared = Path("/dev/shm")
    root = Path(tempfile.mkdtemp(prefix="chainette-simulation-", dir=shared if shared.is_dir() else None))
    simulator = Simulator(clock, root)
    simulator.install()
    hours, happened, began, bad = 0.0, Counter[str](), seconds(), 0
    try:
        for seed in range(given.start, given.start + given.seeds):
            outcome = simulator.run(drawn(seed))
            hours += outcome.hours
            happened += outcome.happened
            if outcome.fault is not None:
                bad += 1
                print(outcome.scenario)
                print("   ", type(outcome.fault).__name__, str(outcome.fault)[:300])
                if given.verbose:
                    traceback.print_exception(outcome.fault)
                if not given.go_on:
                    return 1
    finally:
        shutil.rmtree(root, ignore_errors=True)
    took = seconds() - began
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(happened.items()))
    print(
        f"{given.seeds:,} seeds, {hours:,.1f} simulated hours, {given.seeds / took:.0f} runs/s, {sum(happened.values()):,} faults: {kinds}"
    )
    return bad > 0
