"""What the fleet costs and how it scales: `python benchmarks/fleet.py [--quick]`. Simulated engines, one machine.

(1) Rows/s of a 3-step chain at zero latency through 1, 2 and 4 workers, beside the local runner, interleaved; Redis commands
and server CPU per unit; peak RSS of the enqueuing process (coordinator and sink) and of the server. (2) Rows/s of a
latency-bound engine through 1 to 8 workers. (3) Seconds from kill -9 of a worker until another holds its units.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import redis

from chainette.fleet.embedded import EmbeddedServer
from chainette.fleet.keys import held
from chainette.fleet.queue import LEASE, FleetQueue

CHAIN = """
from pydantic import BaseModel
from chainette import Chain, Step, register_engine

class Text(BaseModel):
    text: str

class Facts(BaseModel):
    name: str
    score: int

register_engine("sim", "none", "simulated", latency={latency}, capacity={capacity})
steps = [Step(id="one", input_model=Text, output_model=Facts, engine_name="sim", user_prompt="{{{{ text }}}}")]
steps += [Step(id=name, output_model=Facts, engine_name="sim", user_prompt="{{{{ input.name }}}}") for name in ("two", "three")]
chain = Chain(name="bench", batch_size={batch}, steps=steps)
"""


@dataclass
class Measured:
    seconds: float
    rows: int
    units: int = 0
    commands: float = 0.0
    server_cpu: float = 0.0
    redis_peak: float = 0.0
    driver_rss: float = 0.0

    @property
    def rate(self) -> float:
        return self.rows / self.seconds


def project(folder: Path, rows: int, latency: float = 0.0, capacity: int = 64, batch: int = 64) -> Path:
    folder.mkdir()
    (folder / "chain.py").write_text(CHAIN.format(latency=latency, capacity=capacity, batch=batch))
    with (folder / "in.jsonl").open("w") as file:
        for number in range(rows):
            file.write(f'{{"text": "a row of text that is about as long as a short sentence, number {number}"}}\n')
    return folder


def chainette(*words: str) -> list[str]:
    return [sys.executable, "-m", "chainette.cli.main", *words]


def local(folder: Path, rows: int, out: str) -> Measured:
    began = time.perf_counter()
    subprocess.run(chainette("run", "chain.py", "in.jsonl", "-o", out, "--quiet"), cwd=folder, check=True, capture_output=True)
    return Measured(time.perf_counter() - began, rows)


@contextmanager
def workers(folder: Path, url: str, number: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Worker processes that have said that they live."""
    command = chainette("worker", "--engine", "sim", "--redis", url)
    started = [subprocess.Popen(command, cwd=folder, stderr=subprocess.DEVNULL) for _ in range(number)]
    client = redis.Redis.from_url(url)
    while client.scard("chainette:workers") < number:
        time.sleep(0.02)
    try:
        yield started
    finally:
        for process in started:
            process.terminate()
        for process in started:
            process.wait()


def fleet(folder: Path, rows: int, number: int, out: str) -> Measured:
    with EmbeddedServer.start(folder / f"data-{out}") as server, workers(folder, server.url, number):
        client = redis.Redis.from_url(server.url)
        client.config_resetstat()
        before = client.info("cpu")
        began = time.perf_counter()
        driver = subprocess.Popen(
            chainette("enqueue", "chain.py", "in.jsonl", "-o", out, "--quiet", "--redis", server.url),
            cwd=folder,
            stdout=subprocess.DEVNULL,
        )
        _, status, usage = os.wait4(driver.pid, 0)
        seconds = time.perf_counter() - began
        assert os.waitstatus_to_exitcode(status) == 0
        after, stats, memory = client.info("cpu"), client.info("commandstats"), client.info("memory")
    units = (folder / out / "events.jsonl").read_bytes().count(b'"type":"unit_committed"')
    cpu = sum(after[name] - before[name] for name in ("used_cpu_user", "used_cpu_sys"))
    commands = sum(entry["calls"] for entry in stats.values())
    return Measured(
        seconds, rows, units, commands / units, cpu / units * 1e6, memory["used_memory_peak"] / 2**20, usage.ru_maxrss / 1024
    )


def throughput(base: Path, rows: int, counts: list[int], rounds: int) -> None:
    folder = project(base / "throughput", rows)
    print(f"\nZero latency, 3 steps, {rows:,} rows, 64 a unit: median of {rounds} interleaved rounds, start-up included")
    found: dict[str, list[Measured]] = {}
    for turn in range(rounds):
        found.setdefault("local", []).append(local(folder, rows, f"local-{turn}"))
        for number in counts:
            found.setdefault(f"{number} workers", []).append(fleet(folder, rows, number, f"fleet-{turn}-{number}"))
    reference = statistics.median(one.rate for one in found["local"])
    for name, runs in found.items():
        rate = statistics.median(one.rate for one in runs)
        middle = sorted(runs, key=lambda one: one.rate)[len(runs) // 2]
        print(f"  {name:10} {rate:8.0f} rows/s   {rate / reference:5.2f} x local")
        if middle.units:
            print(
                f"    a unit: {middle.commands:.1f} Redis commands (scripts' own too), {middle.server_cpu:.0f} us of server CPU"
            )
            print(f"    peak: enqueue {middle.driver_rss:.0f} MiB RSS, Redis {middle.redis_peak:.0f} MiB")


def scaling(base: Path, rows: int, counts: list[int]) -> None:
    """Each worker holds 16 requests of 1 s at once, so that the engine is the limit and not these two cores."""
    folder = project(base / "scaling", rows, latency=1.0, capacity=16, batch=8)
    print(f"\nLatency-bound engine (16 requests of 1 s a worker), {rows:,} rows, 3 steps; one round")
    first = 0.0
    for number in counts:
        rate = fleet(folder, rows, number, f"scaling-{number}").rate
        first = first or rate / number
        print(f"  {number} workers  {rate:7.1f} rows/s   {rate / number / first * 100:5.1f} % of linear")


def recovery(base: Path, trials: int) -> None:
    folder = project(base / "recovery", 100_000, latency=2.0, capacity=64)
    print(f"\nkill -9 of a worker until another holds one of its units, {trials} trials")
    seconds = []
    for trial in range(trials):
        with EmbeddedServer.start(folder / f"data-{trial}") as server, workers(folder, server.url, 2) as started:
            client = redis.Redis.from_url(server.url)
            driver = subprocess.Popen(
                chainette("enqueue", "chain.py", "in.jsonl", "-o", f"out-{trial}", "--quiet", "--redis", server.url),
                cwd=folder,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            time.sleep(LEASE + 1)  # nobody reaps within a lease of its own start
            names = list(FleetQueue(client).workers())
            while not all(client.scard(held(name)) for name in names):
                time.sleep(0.02)
            held_by = {name: {*client.smembers(held(name))} for name in names}
            os.kill(started[0].pid, signal.SIGKILL)
            began = time.perf_counter()
            while not any(held_by[a] & {*client.smembers(held(b))} for a in names for b in names if a != b):
                time.sleep(0.02)
            seconds.append(time.perf_counter() - began)
            driver.kill()
            driver.wait()
    print(f"  median {statistics.median(seconds):.1f} s   (min {min(seconds):.1f}, max {max(seconds):.1f})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes, few rounds")
    quick = parser.parse_args().quick
    with tempfile.TemporaryDirectory() as folder:
        throughput(Path(folder), 2_000 if quick else 10_000, [1, 2] if quick else [1, 2, 4], 1 if quick else 3)
        scaling(Path(folder), 256 if quick else 512, [1, 2] if quick else [1, 2, 4, 8])
        recovery(Path(folder), 1 if quick else 10)


if __name__ == "__main__":
    main()
