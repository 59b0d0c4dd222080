"""A long run that is killed three times: `python -m benchmarks.million [--rows N] [--picture FILE]`, or `make million`.

N rows (a million) go through 3 steps over 2 workers and a Valkey. A worker is killed (kill -9) after a quarter of the rows,
the process with coordinator and sink after a half, and all of them, Valkey included, after three quarters; each time the
run is resumed. Memory of every process, memory of Valkey, bytes on the disk and rows a second are drawn over time. At the
end the run directory alone decides whether every row is there once per step.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import redis

from benchmarks.fleet import chainette, project
from benchmarks.picture import Panel, picture
from benchmarks.readings import MIB, Readings, bytes_below, resident
from chainette.fleet.redis.fleet_view import known_runs
from chainette.fleet.server.embedded import EmbeddedServer
from chainette.io.rundir.open import read_state
from chainette.io.rundir.paths import RunDir
from chainette.io.rundir.run_state import Status
from tests.support.counts import record

STEPS = ("one", "two", "three")


@dataclass
class Fleet:
    """A Valkey, two workers, and the process with coordinator and sink."""

    folder: Path
    server: EmbeddedServer
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.client: Any = redis.Redis.from_url(self.server.url, socket_timeout=5)

    @property
    def out(self) -> Path:
        return self.folder / "out"

    def start_workers(self) -> None:
        for name in ("worker 1", "worker 2"):
            if name not in self.processes:
                self._start(name, "worker", "--engine", "sim")

    def drive(self) -> None:
        words = ("resume", "out") if self.out.exists() else ("enqueue", "chain.py", "in.jsonl", "-o", "out")
        self._start("coordinator and sink", *words, "--quiet")

    def _start(self, name: str, *words: str) -> None:
        log = (self.folder / f"{name.replace(' ', '-')}.log").open("ab")
        command = chainette(*words, "--redis", self.server.url)
        self.processes[name] = subprocess.Popen(command, cwd=self.folder, stdout=log, stderr=log)

    def kill(self, *names: str) -> None:
        for name in names:
            process = self.processes.pop(name)
            process.kill()
            process.wait()

    def kill_server(self) -> None:
        os.kill(self.server.pid, signal.SIGKILL)
        self.server.stop()

    def read(self) -> Mapping[str, float]:
        found = {name: resident(process.pid) for name, process in list(self.processes.items())}
        with suppress(redis.RedisError, OSError):
            found["Valkey"] = resident(self.server.pid)
            found["in Valkey"] = self.client.info("memory")["used_memory"] / MIB
            for info in known_runs(self.client):
                found["rows"] = sum(node[0] for node in info.counts.nodes.values())
                found["records"] = info.counts.records
        return {**found, "disk": bytes_below(self.out) / MIB}

    def stop(self) -> None:
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            process.wait()


def endure(fleet: Fleet, rows: int, readings: Readings) -> None:
    """Runs to the end, with three kills on the way."""
    kills = [(0.25, "worker 1"), (0.5, "coordinator and sink"), (0.75, "everything")]
    fleet.start_workers()
    fleet.drive()
    while (code := fleet.processes["coordinator and sink"].poll()) is None:
        time.sleep(0.5)
        done = readings.series.get("records", [(0.0, 0.0)])[-1][1]
        if kills and done >= kills[0][0] * rows:
            _, victim = kills.pop(0)
            kill(fleet, victim)
            readings.mark(f"kill -9 of {victim} at {done:,.0f} rows")
    if code or kills:
        sys.exit(f"the run ended with code {code}, {len(kills)} kills to go; logs in {fleet.folder}")


def kill(fleet: Fleet, victim: str) -> None:
    everything = victim == "everything"
    fleet.kill(*(list(fleet.processes) if everything else [victim]))
    if everything:
        fleet.kill_server()
        fleet.server.restart()
    fleet.start_workers()
    if "coordinator and sink" not in fleet.processes:
        fleet.drive()


class _Id(msgspec.Struct):
    row_id: str


def missing_or_twice(folder: Path, rows: int) -> tuple[int, int]:
    """Rows that are not in a folder's shards, and rows that are there more than once."""
    seen, twice = bytearray(rows), 0
    decode = msgspec.json.Decoder(_Id).decode
    for path in sorted(folder.glob("*.jsonl")):
        with path.open("rb") as file:
            for line in file:
                number = int(decode(line).row_id)
                twice += seen[number]
                seen[number] = 1
    return seen.count(0), twice


def faults(out: Path, rows: int) -> Iterator[str]:
    """The faults of the finished directory."""
    for name in (*STEPS, "flattened"):
        missing, twice = missing_or_twice(out / name, rows)
        if missing or twice:
            yield f"{name}: {missing:,} rows are missing, {twice:,} are there twice"
    state, _ = read_state(RunDir(out))
    if state.status is not Status.FINISHED or state.imbalances():
        yield f"the log says {state.status}: {state.imbalances()}"


def panels(readings: Readings) -> list[Panel]:
    memory = {name: readings.series.get(name, []) for name in ("worker 1", "worker 2", "coordinator and sink", "Valkey")}
    return [
        Panel("rows x steps a second", {"durable": readings.rates("rows")}),
        Panel("resident memory of each process, MiB", memory),
        Panel("memory that Valkey uses, MiB", {"used_memory": readings.series.get("in Valkey", [])}),
        Panel("run directory, MiB", {"bytes on the disk": readings.series.get("disk", [])}),
    ]


def summary(readings: Readings, rows: int) -> str:
    seconds = readings.now
    peaks = ", ".join(
        f"{name} {readings.peak(name):.0f}" for name in ("worker 1", "worker 2", "coordinator and sink", "Valkey")
    )
    return (
        f"{rows:,} rows x 3 steps over 2 workers, killed three times: {seconds:,.0f} s, "
        f"{3 * rows / seconds:,.0f} rows x steps a second; "
        f"peak resident MiB: {peaks}; Valkey used at most {readings.peak('in Valkey'):.1f} MiB; "
        f"{readings.peak('disk'):,.0f} MiB on the disk; every row once per step"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--picture", type=Path, help="where the SVG goes")
    parser.add_argument("--record", action="store_true", help="write the result into docs/guarantees.md")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as base:
        folder = project(Path(base) / "million", chosen.rows)
        with EmbeddedServer.start(folder / "data") as server:
            fleet = Fleet(folder, server)
            try:
                with Readings(fleet.read) as readings:
                    endure(fleet, chosen.rows, readings)
            finally:
                fleet.stop()
        if found := list(faults(fleet.out, chosen.rows)):
            sys.exit("\n".join(found))
    if chosen.picture:
        title = f"{chosen.rows:,} rows x 3 steps, 2 workers, killed three times"
        chosen.picture.write_text(picture(title, panels(readings), readings.marks))
    print(summary(readings, chosen.rows))
    if chosen.record:
        record("make million", summary(readings, chosen.rows))


if __name__ == "__main__":
    main()
