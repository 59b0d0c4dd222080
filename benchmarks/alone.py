"""Coordinator and sink alone, at ten million rows: `python -m benchmarks.alone [--rows N] [--picture FILE]`.

Units of 3 steps are answered at once, so that reading the input, admitting, writing and logging are all that is left of a
run. Its memory is drawn over time. It is killed (kill -9) after 95 % of the rows; then `chainette resume` is timed from its
start until a new unit is in the log, three times.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from benchmarks.fleet import chainette, project
from benchmarks.picture import Panel, picture
from benchmarks.readings import MIB, Readings, bytes_below, resident
from chainette.core.flow import row_of
from chainette.core.targets import ToNode
from chainette.records import Effects, Outcome, Output, Unit, Usage
from chainette.run.held_unit import HeldUnit
from chainette.run.scheduler import LocalRun
from tests.support.counts import record

__all__ = ["answer_at_once"]

_ANSWER = b'{"name":"a name of some length","score":12}'


def answer_at_once() -> None:
    """Has the local run answer every unit without asking anybody."""

    async def process(_run: LocalRun, held: HeldUnit) -> Outcome | None:
        unit, node = held.claim.unit, held.plan.stations[held.claim.unit.node]
        outputs = [Output(row.row_id, _ANSWER, 1) for row in unit.rows]
        if not isinstance(node.next, ToNode):
            return Outcome(outputs, [], [], Usage(len(outputs)), Effects([]))
        rows = [row_of(node, row, output) for row, output in zip(unit.rows, outputs, strict=True)]
        successor = Unit(node.next.node, unit.root, unit.part, unit.scope, rows)
        return Outcome(outputs, [], [], Usage(len(outputs)), Effects([successor]))

    setattr(LocalRun, "process", process)  # noqa: B010


def work(folder: Path, rows: int, readings_of: list[Readings]) -> int:
    """Runs until 95 % of the rows are in; returns how many are."""
    code = "from benchmarks.alone import answer_at_once; answer_at_once(); from chainette.cli.main import main; main()"
    words = ["run", "chain.py", "in.jsonl", "-o", "out", "--quiet"]
    process = subprocess.Popen([sys.executable, "-c", code, *words], cwd=folder, env=_environment())
    flattened, share = folder / "out" / "flattened", 0.0

    def read() -> Mapping[str, float]:
        shards = len(list(flattened.glob("*.jsonl"))) if flattened.exists() else 0
        return {
            "memory": resident(process.pid),
            "disk": bytes_below(folder / "out") / MIB,
            "rows": max(0, shards - 1) * 100_000,
        }

    with Readings(read) as readings:
        readings_of.append(readings)
        while process.poll() is None and share < 0.95:
            time.sleep(0.2)
            share = readings.series.get("rows", [(0.0, 0.0)])[-1][1] / rows
    process.kill()
    process.wait()
    return int(share * rows)


def _environment() -> dict[str, str]:
    root = Path(__file__).parents[1]
    return os.environ | {"PYTHONPATH": f"{root}:{root / 'workers'}"}


def resume(folder: Path) -> float:
    """Seconds from the start of `resume` until a unit of it is durable."""
    log = folder / "out" / "events.jsonl"
    size, began = log.stat().st_size, time.perf_counter()
    process = subprocess.Popen(chainette("resume", "out", "--quiet"), cwd=folder)
    while process.poll() is None and not _committed(log, size):
        time.sleep(0.02)
    seconds = time.perf_counter() - began
    assert process.poll() is None, f"resume ended with {process.returncode}"
    process.kill()
    process.wait()
    return seconds


def _committed(log: Path, size: int) -> bool:
    with log.open("rb") as file:
        file.seek(size - 1)
        return b'"type":"unit_committed"' in file.read()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--picture", type=Path, help="where the SVG goes")
    parser.add_argument("--record", action="store_true", help="write the result into docs/guarantees.md")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as base:
        folder = project(Path(base) / "alone", chosen.rows)
        kept: list[Readings] = []
        began = time.perf_counter()
        done = work(folder, chosen.rows, kept)
        seconds, [readings] = time.perf_counter() - began, kept
        times = [resume(folder) for _ in range(3)]
    memory = [value for _, value in readings.series["memory"]]
    early = max(memory[: max(1, len(memory) // 10)])
    if chosen.picture:
        panels = [
            Panel("rows a second, all three steps", {"durable": readings.rates("rows")}),
            Panel("resident memory, MiB", {"coordinator and sink": readings.series["memory"]}),
            Panel("run directory, MiB", {"bytes on the disk": readings.series["disk"]}),
        ]
        chosen.picture.write_text(picture(f"{chosen.rows:,} rows x 3 steps, coordinator and sink alone", panels, []))
    words = (
        f"{chosen.rows:,} rows x 3 steps, coordinator and sink alone: {done / seconds:,.0f} rows a second; resident at most "
        f"{early:.0f} MiB in the first tenth and {max(memory):.0f} MiB in all; killed at {done:,} rows, `resume` has its first "
        f"unit durable after {statistics.median(times):.1f} s (3 trials, {min(times):.1f} to {max(times):.1f})"
    )
    print(words)
    if chosen.record:
        record("python -m benchmarks.alone", words)


if __name__ == "__main__":
    main()
