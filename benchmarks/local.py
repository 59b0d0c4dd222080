"""The cost of the framework on one machine: `python benchmarks/local.py [--quick]`.

Three tables. (1) CPU per row and step of `chainette run` with the simulated engine at zero latency, beside a bare loop
that renders, asks, validates and writes JSONL with the same libraries; in one session, interleaved, medians of ratios.
(2) Peak RSS by number of rows. (3) Start-up of `chainette --help` beside `python -c pass`.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel

STEPS = 2


class Product(BaseModel):
    text: str
    number: int


class Facts(BaseModel):
    name: str
    score: int
    tags: list[str]


PROMPTS = ("Extract from: {{ text }} ({{ number }})", "Improve {{ extract.name }} {{ extract.score }}")


def write_inputs(path: Path, rows: int) -> Path:
    with path.open("w") as file:
        for number in range(rows):
            file.write(
                json.dumps(
                    {"text": f"a product description of about eighty characters, number {number}, and so on", "number": number}
                )
                + "\n"
            )
    return path


def framework(inputs: Path, out: Path) -> None:
    """The chain, run by Chainette."""
    from chainette import Chain, Step, register_engine

    register_engine("sim", "none", "simulated")
    extract = Step(id="extract", input_model=Product, output_model=Facts, engine_name="sim", user_prompt=PROMPTS[0])
    improve = Step(id="improve", input_model=Facts, output_model=Facts, engine_name="sim", user_prompt=PROMPTS[1])
    result = Chain(name="bench", steps=[extract, improve]).run(inputs, out)
    assert result.metadata["rows_finished"] > 0 and result.metadata["balanced"]


def bare(inputs: Path, out: Path) -> None:
    """The same answers and files by a loop: render, ask, validate, dump, write; no order, resume, retries or checks."""
    import anyio

    from chainette.engine.base import Request, SamplingParams
    from chainette.engine.config import make_config
    from chainette.engine.lifecycle import create_engine
    from chainette.records import Message
    from chainette.run.steps import row_seed
    from chainette.utils.json_schema import generate_json_output_prompt
    from chainette.utils.templates import Template

    schema = Facts.model_json_schema()
    instruction = Message("system", generate_json_output_prompt(Facts))
    templates = [Template(prompt) for prompt in PROMPTS]
    sampling = SamplingParams()

    engine = create_engine(make_config("sim", "none", "simulated"))
    out.mkdir()

    async def loop() -> None:
        await engine.open()
        with (
            inputs.open("rb") as lines,
            (out / "extract.jsonl").open("wb") as first,
            (out / "improve.jsonl").open("wb") as second,
        ):
            batch: list[tuple[int, Product]] = []
            for index, line in enumerate(lines):
                batch.append((index, Product.model_validate_json(line)))
                if len(batch) == 64:
                    await ask(batch, first, second)
                    batch = []
            await ask(batch, first, second)

        await engine.close()

    async def ask(batch: list[tuple[int, Product]], *files) -> None:  # type: ignore[no-untyped-def]
        contexts: list[dict[str, object]] = [{"text": item.text, "number": item.number} for _, item in batch]
        for step, (name, file) in enumerate(zip(("extract", "improve"), files, strict=True)):
            requests = [
                Request(
                    (instruction, Message("user", templates[step].render(context))),
                    sampling,
                    row_seed(0, name, str(index), 1),
                    schema,
                    name,
                )
                for (index, _), context in zip(batch, contexts, strict=True)
            ]
            answers = [Facts.model_validate_json(answer.text) for answer in await engine.generate(requests)]
            for (index, _), answer in zip(batch, answers, strict=True):
                file.write(b'{"row_id":"%d",%b\n' % (index, answer.model_dump_json().encode()[1:]))
            contexts = [{"extract": answer} for answer in answers]

    anyio.run(loop)


CONTENDERS: dict[str, Callable[[Path, Path], None]] = {"chainette": framework, "bare loop": bare}


def measure(name: str, rows: int) -> tuple[float, float, float]:
    """(CPU seconds, wall seconds, peak MiB) of one contender in a process of its own, imports left out."""
    done = subprocess.run(
        [sys.executable, __file__, "--child", name, "--rows", str(rows)], check=True, capture_output=True, text=True
    )
    cpu, wall, rss = map(float, done.stdout.split()[-3:])
    return cpu, wall, rss


def child(name: str, rows: int) -> None:
    import chainette  # noqa: F401

    with tempfile.TemporaryDirectory() as folder:
        inputs = write_inputs(Path(folder) / "inputs.jsonl", rows)
        CONTENDERS[name](write_inputs(Path(folder) / "warm.jsonl", 200), Path(folder) / "warm")
        cpu, wall = time.process_time(), time.perf_counter()
        CONTENDERS[name](inputs, Path(folder) / "out")
        rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(time.process_time() - cpu, time.perf_counter() - wall, rss)


def overhead(rows: int, rounds: int) -> None:
    print(f"\nCPU per row and step, {rows:,} rows, {STEPS} steps, 64 rows a unit, median of {rounds} interleaved rounds")
    measured: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    for _ in range(rounds):
        for name in CONTENDERS:
            measured[name].append(measure(name, rows)[0] / rows / STEPS * 1e6)
    for name, values in measured.items():
        print(f"  {name:12} {statistics.median(values):7.1f} us   (min {min(values):.1f}, max {max(values):.1f})")
    ratios = [a / b for a, b in zip(measured["chainette"], measured["bare loop"], strict=True)]
    print(f"  ratio        {statistics.median(ratios):7.2f}      (min {min(ratios):.2f}, max {max(ratios):.2f})")


def memory(sizes: list[int]) -> None:
    print("\nPeak RSS of one local run")
    for rows in sizes:
        cpu, wall, rss = measure("chainette", rows)
        print(f"  {rows:>9,} rows  {rss:6.1f} MiB   {wall:7.1f} s  {rows / wall:8.0f} rows/s  {cpu:7.1f} s CPU")


def startup(rounds: int) -> None:
    print(f"\nStart-up, median of {rounds} interleaved rounds")
    commands = {
        "chainette --help": [str(Path(sys.executable).with_name("chainette")), "--help"],
        "python -c pass": [sys.executable, "-c", "pass"],
    }
    times: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name, command in commands.items():
            began = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            times[name].append(time.perf_counter() - began)
    for name, values in times.items():
        median, least, most = (pick(values) * 1000 for pick in (statistics.median, min, max))
        print(f"  {name:18} {median:6.0f} ms   (min {least:.0f}, max {most:.0f})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes, few rounds")
    parser.add_argument("--child", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=int, default=20_000)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child, arguments.rows)
        return
    overhead(2_000 if arguments.quick else arguments.rows, 3 if arguments.quick else 7)
    memory([10_000] if arguments.quick else [10_000, 100_000, 1_000_000])
    startup(3 if arguments.quick else 15)


if __name__ == "__main__":
    main()
