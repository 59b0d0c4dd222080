"""The cost of the fleet and how it scales: `python benchmarks/fleet.py [PART ...] [--quick]`. Simulated engines, one machine.

throughput: rows/s of a 3-step chain at zero latency through 1, 2 and 4 workers, beside the local runner and beside a bare
loop that moves payloads of the same size with BLMOVE and MULTI, interleaved; Redis commands, round trips and CPU per unit.
scaling: rows/s of a latency-bound engine through 1 to 8 workers. recovery: seconds from kill -9 of a worker until another
holds its units. memory: peak RSS of the enqueuing process (coordinator and sink) and peak memory of Redis at 100 k and 1 M
rows. resume: seconds from `resume` to the first claimed unit of a 1 M-row run that was killed in the middle.
swaps: two engines that take turns on one worker, 2 s to load each, swapped by what waits and in phases.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis

from chainette.fleet.protocol.keys import held
from chainette.fleet.protocol.queue_values import LEASE
from chainette.fleet.redis.redis_queue import FleetQueue
from chainette.fleet.server.embedded import EmbeddedServer

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


TURNS = """
register_engine("other", "none", "simulated", latency={latency}, capacity={capacity}, exclusive=True, load={load})
register_engine("sim", "none", "simulated", latency={latency}, capacity={capacity}, exclusive=True, load={load})
steps = [
    Step(id="one", input_model=Text, output_model=Facts, engine_name="sim", user_prompt="{{{{ text }}}}"),
    Step(id="two", output_model=Facts, engine_name="other", user_prompt="{{{{ input.name }}}}"),
]
chain = Chain(name="bench", batch_size={batch}, steps=steps)
"""


#: The processes of a fleet, as `Measured.by_process` has them.
PROCESSES = ("workers, without their start", "enqueue", "Redis")


@dataclass
class Measured:
    seconds: float
    rows: int
    units: int = 0
    commands: float = 0.0
    round_trips: float = 0.0
    server_cpu: float = 0.0
    client_cpu: float = 0.0
    #: Seconds of CPU: of the workers since the start of `enqueue`, of `enqueue`, and of Redis.
    by_process: tuple[float, float, float] = (0.0, 0.0, 0.0)
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
def workers(folder: Path, url: str, number: int, *words: str) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Worker processes that have said that they live."""
    command = chainette("worker", "--engine", "sim", "--redis", url, *words)
    started = [subprocess.Popen(command, cwd=folder, stderr=subprocess.DEVNULL) for _ in range(number)]
    client: Any = redis.Redis.from_url(url)
    while client.scard("chainette:workers") < number:
        time.sleep(0.02)
    try:
        yield started
    finally:
        for process in started:
            process.terminate()
        for process in started:
            process.wait()


def cpu_of(process: subprocess.Popen[bytes]) -> float:
    """Seconds of CPU a process has used so far, without its children."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def fleet(folder: Path, rows: int, number: int, out: str) -> Measured:
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    with EmbeddedServer.start(folder / f"data-{out}") as server:
        with workers(folder, server.url, number) as started:
            client: Any = redis.Redis.from_url(server.url)
            client.config_resetstat()
            before = client.info("cpu")
            idle, began = sum(map(cpu_of, started)), time.perf_counter()
            driver = subprocess.Popen(
                chainette("enqueue", "chain.py", "in.jsonl", "-o", out, "--quiet", "--redis", server.url),
                cwd=folder,
                stdout=subprocess.DEVNULL,
            )
            _, status, usage = os.wait4(driver.pid, 0)
            seconds = time.perf_counter() - began
            assert os.waitstatus_to_exitcode(status) == 0
            busy = sum(map(cpu_of, started)) - idle
            after, stats = client.info("cpu"), client.info("stats")
            commands, memory = client.info("commandstats"), client.info("memory")
        now = resource.getrusage(resource.RUSAGE_CHILDREN)
    units = (folder / out / "events.jsonl").read_bytes().count(b'"type":"unit_committed"')
    server_cpu = sum(after[name] - before[name] for name in ("used_cpu_user", "used_cpu_sys"))
    return Measured(
        seconds,
        rows,
        units,
        sum(entry["calls"] for entry in commands.values()) / units,
        stats["total_reads_processed"] / units,
        server_cpu / units * 1e6,
        (now.ru_utime + now.ru_stime - spent.ru_utime - spent.ru_stime) / units * 1e6,
        (busy, usage.ru_utime + usage.ru_stime, server_cpu),
        memory["used_memory_peak"] / 2**20,
        usage.ru_maxrss / 1024,
    )


#: Bytes a unit of 64 rows of this chain weighs on the wire, and those of its result.
_PAYLOAD, _RESULT = 9_600, 3_500


def bare_loop(folder: Path, rows: int, out: str) -> Measured:
    """Moves as many payloads through 3 queues with BLMOVE and one MULTI each; computes and writes nothing."""
    units = -(-rows // 64)
    with EmbeddedServer.start(folder / f"data-{out}") as server:
        client: Any = redis.Redis.from_url(server.url)
        began = time.perf_counter()
        for number in range(units):
            with client.pipeline() as pipe:
                pipe.set(f"p:0:{number}", b"p" * _PAYLOAD).lpush("q:0", number).execute()
            for step in range(3):
                unit = int(client.blmove(f"q:{step}", "doing", 1) or 0)
                payload = client.get(f"p:{step}:{unit}") or b""
                with client.pipeline() as pipe:
                    if step < 2:
                        pipe.set(f"p:{step + 1}:{unit}", payload).lpush(f"q:{step + 1}", unit)
                    pipe.xadd("results", {"e": payload[:_RESULT]}, maxlen=1000).lrem("doing", 1, str(unit))
                    pipe.delete(f"p:{step}:{unit}").execute()
        return Measured(time.perf_counter() - began, rows)


def throughput(base: Path, rows: int, counts: list[int], rounds: int) -> None:
    folder = project(base / "throughput", rows)
    print(f"\nZero latency, 3 steps, {rows:,} rows, 64 a unit: median of {rounds} interleaved rounds, start-up included")
    found: dict[str, list[Measured]] = {}
    for turn in range(rounds):
        found.setdefault("local", []).append(local(folder, rows, f"local-{turn}"))
        found.setdefault("bare loop", []).append(bare_loop(folder, rows, f"bare-{turn}"))
        for number in counts:
            found.setdefault(f"{number} workers", []).append(fleet(folder, rows, number, f"fleet-{turn}-{number}"))
    reference = statistics.median(one.rate for one in found["local"])
    for name, runs in found.items():
        rate = statistics.median(one.rate for one in runs)
        middle = sorted(runs, key=lambda one: one.rate)[len(runs) // 2]
        print(f"  {name:10} {rate:8.0f} rows/s   {rate / reference:5.2f} x local")
        if middle.units:
            print(f"    a unit: {middle.commands:.1f} Redis commands (scripts' own too), {middle.round_trips:.1f} round trips")
            print(
                f"    CPU a unit: server {middle.server_cpu:.0f} us; workers and enqueue {middle.client_cpu:.0f} us, "
                f"their start-up included ({middle.client_cpu * middle.units / rows / 3:.0f} us a row and step)"
            )
            each = ", ".join(
                f"{name} {cpu / rows / 3 * 1e6:.0f}" for name, cpu in zip(PROCESSES, middle.by_process, strict=True)
            )
            print(f"    CPU a row and step, us: {each}")


def scaling(base: Path, rows: int, counts: list[int]) -> None:
    """Each worker holds 16 requests of 0.25 s at once, so that the engine is the limit and not these two cores; rows grow
    with the workers, so that start-up and tail weigh the same."""
    print(f"\nLatency-bound engine (16 requests of 0.25 s a worker), {rows:,} rows a worker, 3 steps; one round")
    first = 0.0
    for number in counts:
        folder = project(base / f"scaling-{number}", rows * number, latency=0.25, capacity=16, batch=8)
        rate = fleet(folder, rows * number, number, "out").rate
        first = first or rate / number
        print(f"  {number} workers  {rate:7.1f} rows/s   {rate / number / first * 100:5.1f} % of linear")


def memory(base: Path, sizes: list[int]) -> None:
    print("\nPeak memory, 3 steps, 2 workers; one run each")
    for rows in sizes:
        found = fleet(project(base / f"memory-{rows}", rows), rows, 2, "out")
        print(
            f"  {rows:9,} rows  {found.seconds:6.0f} s  enqueue (coordinator + sink) {found.driver_rss:5.0f} MiB RSS, "
            f"Redis {found.redis_peak:5.0f} MiB"
        )


def resume(base: Path, rows: int, trials: int) -> None:
    folder = project(base / "resume", rows)
    half = subprocess.Popen(chainette("run", "chain.py", "in.jsonl", "-o", "half", "--quiet"), cwd=folder)
    lines = 3 * rows // 64 // 2
    while not (log := folder / "half/events.jsonl").exists() or log.read_bytes().count(b"\n") < lines:
        time.sleep(1)
    half.kill()
    half.wait()
    print(f"\n`resume` of {rows:,} rows, 3 steps, killed in the middle, until a worker holds a unit; {trials} trials")
    seconds = [_first_claim(folder, trial) for trial in range(trials)]
    print(f"  median {statistics.median(seconds):.1f} s   (min {min(seconds):.1f}, max {max(seconds):.1f})")


def _first_claim(folder: Path, trial: int) -> float:
    out = f"resumed-{trial}"
    shutil.copytree(folder / "half", folder / out)
    with EmbeddedServer.start(folder / f"data-{trial}") as server, workers(folder, server.url, 1):
        client: Any = redis.Redis.from_url(server.url)
        [name] = FleetQueue(client).workers()
        began = time.perf_counter()
        driver = subprocess.Popen(chainette("resume", out, "--redis", server.url, "--quiet"), cwd=folder)
        while not client.scard(held(name)):
            time.sleep(0.005)
        seconds = time.perf_counter() - began
        driver.kill()
        driver.wait()
    shutil.rmtree(folder / out)
    return seconds


def recovery(base: Path, trials: int) -> None:
    folder = project(base / "recovery", 100_000, latency=2.0, capacity=64)
    print(f"\nkill -9 of a worker until another holds one of its units, {trials} trials")
    seconds = []
    for trial in range(trials):
        with EmbeddedServer.start(folder / f"data-{trial}") as server, workers(folder, server.url, 2) as started:
            client: Any = redis.Redis.from_url(server.url)
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


def swaps(base: Path, rows: int, rounds: int) -> None:
    folder = project(base / "swaps", rows)
    keys = {"latency": 0.2, "capacity": 64, "batch": 32, "load": 2.0}
    (folder / "chain.py").write_text(CHAIN.partition("register_engine(")[0] + TURNS.format(**keys))
    least = 2 * rows / keys["capacity"] * keys["latency"]
    print(f"\nTwo engines on one worker, 2 s to load one, {rows:,} rows, window 512, {rounds} interleaved rounds")
    print(f"  requests alone take {least:.0f} s")
    ways = {"swapped by what waits": "phases._MOST_SWAPPING = 9; ", "in phases": ""}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(rounds):
        for number, (way, patch) in enumerate(ways.items()):
            out = f"{turn}-{number}"
            code = f"from chainette_workers import phases; {patch}from chainette.cli.main import main; main()"
            call = ["enqueue", "chain.py", "in.jsonl", "-o", out, "--quiet", "--window", "512"]
            with EmbeddedServer.start(folder / f"data-{out}") as server, workers(folder, server.url, 1, "--engine", "other"):
                began = time.perf_counter()
                subprocess.run(
                    [sys.executable, "-c", code, *call, "--redis", server.url], cwd=folder, check=True, capture_output=True
                )
                seconds[way].append(time.perf_counter() - began)
            loads = (folder / out / "events.jsonl").read_bytes().count(b'"type":"engine_loaded"')
            print(f"    {way:22} {seconds[way][-1]:6.1f} s, {loads} loads", flush=True)
    for way, found in seconds.items():
        print(f"  {way:22} median {statistics.median(found):6.1f} s   {statistics.median(found) / least:.2f} x the requests")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help="parts to run, of those above; all where none is named")
    parser.add_argument("--quick", action="store_true", help="small sizes, few rounds")
    arguments = parser.parse_args()
    quick = arguments.quick
    million = 100_000 if quick else 1_000_000
    parts: dict[str, Callable[[Path], None]] = {
        "throughput": lambda base: throughput(
            base, 2_000 if quick else 10_000, [1, 2] if quick else [1, 2, 4], 1 if quick else 3
        ),
        "scaling": lambda base: scaling(base, 256 if quick else 1_024, [1, 2] if quick else [1, 2, 4, 8]),
        "recovery": lambda base: recovery(base, 1 if quick else 10),
        "memory": lambda base: memory(base, [million // 10, million]),
        "resume": lambda base: resume(base, million, 1 if quick else 5),
        "swaps": lambda base: swaps(base, 1_500 if quick else 6_000, 1 if quick else 3),
    }
    unknown = [name for name in arguments.parts if name not in parts]
    if unknown:
        parser.error(f"no part {unknown[0]!r}; there are {', '.join(parts)}")
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.parts or parts:
            parts[name](Path(folder))


if __name__ == "__main__":
    main()
