"""The table of docs/benchmarks.md: `python -m benchmarks.compare [PART ...] [--before COMMIT] [--rounds N] [--quick]`.

Unpacks the commit into a temporary folder and runs it and this tree in turn, so that both meet the same noise. Prints
medians over the rounds as Markdown. Take numbers for the page on a machine that does nothing else.

http: rows/s over those of a hand-written aiohttp loop, and CPU per request; a local run, and a fleet of 2. fleet: rows/s
through 1, 2 and 4 workers over a local run's, at zero latency, and CPU per row and step by process. local: CPU per row and
step of a local run, and peak memory. million: peak memory of a local run of 1,000,000 rows, of this tree alone.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from benchmarks import fleet as over_redis
from benchmarks import http as over_http
from benchmarks import local as in_one_process

__all__: list[str] = []

HERE = Path(__file__).resolve().parents[1]

#: Measurement -> its numbers, one a round.
Figures = dict[str, list[float]]


@contextmanager
def unpacked(commit: str) -> Iterator[Path]:
    """The tree of a commit."""
    with tempfile.TemporaryDirectory() as folder:
        archive = subprocess.run(["git", "archive", commit], cwd=HERE, check=True, capture_output=True).stdout
        subprocess.run(["tar", "-x", "-C", folder], input=archive, check=True)
        yield Path(folder)


@contextmanager
def running(tree: Path) -> Iterator[None]:
    """Processes that are started inside the `with` block run this tree."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = f"{tree}{os.pathsep}{tree / 'workers'}"
    try:
        yield
    finally:
        del os.environ["PYTHONPATH"]
        if before is not None:
            os.environ["PYTHONPATH"] = before


# -- the parts: each measures one tree once, in one round


def http(figures: Figures, folder: Path, rows: int) -> None:
    speeds = {}
    for contender in ("loop", "run", "fleet"):
        place = folder / contender
        place.mkdir()
        with over_http.serving() as port:
            speeds[contender], cpu = over_http.measure(contender, over_http.prepared(place, rows, port), rows, port)
        figures.setdefault(f"HTTP, {contender}: CPU per request, us", []).append(cpu)
    for contender in ("run", "fleet"):
        name = f"HTTP, {contender}: rows/s over the loop's"
        figures.setdefault(name, []).append(speeds[contender] / speeds["loop"])


def fleet(figures: Figures, folder: Path, rows: int) -> None:
    project = over_redis.project(folder / "project", rows)
    local = over_redis.local(project, rows, "local").rate
    for number in (1, 2, 4):
        found = over_redis.fleet(project, rows, number, f"fleet-{number}")
        figures.setdefault(f"fleet of {number}: rows/s over a local run's", []).append(found.rate / local)
        for process, cpu in zip(over_redis.PROCESSES, found.by_process, strict=True):
            name = f"fleet of {number}: CPU per row and step of {process}, us"
            figures.setdefault(name, []).append(cpu / rows / 3 * 1e6)


def local(figures: Figures, _folder: Path, rows: int) -> None:
    cpu, _, memory = in_one_process.measure("chainette", 2 * rows)
    figures.setdefault("local run: CPU per row and step, us", []).append(cpu / 2 / rows / in_one_process.STEPS * 1e6)
    figures.setdefault("local run: peak memory, MiB", []).append(memory)


PARTS: Mapping[str, Callable[[Figures, Path, int], None]] = {"http": http, "fleet": fleet, "local": local}


def compare(parts: list[str], before: str, rounds: int, rows: int) -> None:
    with unpacked(before) as tree:
        trees = {before: tree, "now": HERE}
        found: dict[str, Figures] = {name: {} for name in trees}
        for number in range(rounds):
            for part in parts:
                for name, path in trees.items():
                    with running(path), tempfile.TemporaryDirectory() as folder:
                        PARTS[part](found[name], Path(folder), rows)
            print(f"round {number + 1} of {rounds} is over", flush=True)
    print(f"\n{rows:,} rows, medians of {rounds} rounds (least to most)\n")
    print(f"| | {before} | now | now over {before} |\n|---|---|---|---|")
    for name, now in found["now"].items():
        earlier = found[before][name]
        ratio = statistics.median(mine / theirs for mine, theirs in zip(now, earlier, strict=True))
        print(f"| {name} | {_shown(earlier)} | {_shown(now)} | {ratio:.2f} |", flush=True)


def _shown(values: list[float]) -> str:
    digits = 2 if max(values) < 10 else 0
    least, middle, most = (f"{pick(values):.{digits}f}" for pick in (min, statistics.median, max))
    return f"{middle} ({least} to {most})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help="parts to run, of those above; all but million if none is named")
    parser.add_argument("--before", default="8d441a8", help="the commit to compare with")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--quick", action="store_true", help="one round of 1,000 rows")
    chosen = parser.parse_args()
    parts = [part for part in chosen.parts or PARTS if part != "million"]
    if parts:
        compare(parts, chosen.before, 1 if chosen.quick else chosen.rounds, 1_000 if chosen.quick else chosen.rows)
    if "million" in chosen.parts:
        in_one_process.memory([1_000_000])


if __name__ == "__main__":
    main()
