"""The command line of a simulation: seeds, or the scenarios that once failed."""

from __future__ import annotations

import argparse
import shutil
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.simulation.found import FOUND
from tests.simulation.scenario import Scenario, drawn
from tests.simulation.shrink import shrunk
from tests.simulation.simulate import Outcome, Simulator
from tests.simulation.virtual import VirtualTime
from tests.support.counts import record

__all__ = ["main"]


@dataclass
class _Totals:
    """The simulation so far."""

    runs: int = 0
    hours: float = 0.0
    happened: Counter[str] = field(default_factory=Counter)

    def add(self, outcome: Outcome) -> None:
        self.runs += 1
        self.hours += outcome.hours
        self.happened += outcome.happened

    def __str__(self) -> str:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(self.happened.items()))
        faults = f"{sum(self.happened.values()):,} faults: {kinds}"
        return f"{self.runs:,} seeds, {self.hours:,.1f} simulated hours, {faults}"


def main(clock: VirtualTime, seconds: Callable[[], float], arguments: Sequence[str]) -> int:
    given = _parser().parse_args(arguments)
    shared = Path("/dev/shm")
    root = Path(tempfile.mkdtemp(prefix="chainette-simulation-", dir=shared if shared.is_dir() else None))
    simulator = Simulator(clock, root)
    simulator.install()
    totals, began = _Totals(), seconds()
    scenarios = FOUND if given.found else map(drawn, range(given.start, given.start + given.seeds))
    try:
        failed = _run(simulator, scenarios, totals, go_on=given.go_on, shrinks=not given.whole)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    print(f"{totals.runs / max(seconds() - began, 0.01):.0f} runs per second of one core")
    print(totals)
    if given.record and not failed:
        record(f"make simulate SEEDS={given.seeds} START={given.start}", str(totals))
    return int(failed)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("simulate", description=__doc__)
    parser.add_argument("--seeds", type=int, default=200, help="how many seeds")
    parser.add_argument("--start", type=int, default=0, help="the first seed")
    parser.add_argument("--found", action="store_true", help="the scenarios that once failed, instead of seeds")
    parser.add_argument("--go-on", action="store_true", help="do not stop at the first seed that fails")
    parser.add_argument("--whole", action="store_true", help="do not shrink failures")
    parser.add_argument("--record", action="store_true", help="write the counts into docs/guarantees.md")
    return parser


def _run(simulator: Simulator, scenarios: Iterable[Scenario], totals: _Totals, *, go_on: bool, shrinks: bool) -> bool:
    failed = False
    for scenario in scenarios:
        outcome = simulator.run(scenario)
        totals.add(outcome)
        if totals.runs % 1000 == 0:
            print(f"{totals.runs:,} seeds", flush=True)
        if outcome.fault is not None:
            failed = True
            _tell(simulator, outcome, shrinks=shrinks)
            if not go_on:
                break
    return failed


def _tell(simulator: Simulator, outcome: Outcome, *, shrinks: bool) -> None:
    """Prints the fault, and the smallest scenario that still has it."""
    assert outcome.fault is not None
    kind = type(outcome.fault)
    print(outcome.scenario)
    print(f"  {kind.__name__}: {outcome.fault}")
    if shrinks:

        def fails(scenario: Scenario) -> bool:
            return type(simulator.run(scenario).fault) is kind

        small = simulator.run(shrunk(outcome.scenario, fails))
        print(f"  shrunk: {small.scenario}\n  {small.scenario!r}")
        assert small.fault is not None
        traceback.print_exception(small.fault)
