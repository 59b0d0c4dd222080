"""The share of vLLM's speed Chainette leaves: `python benchmarks/vllm_saturation.py [PART ...] [--rows N] [--rounds N]`.

saturation: completion tokens/s of (a) one raw `LLM.generate` over all prompts, (b) `chainette run`, (c) a fleet worker
(`run --workers 1`); the same prompts, schema, sampling and engine arguments, interleaved, medians. The clock of (a) runs
around `generate`, its engine in the same process; that of (b) and (c) from the first prompt that is rendered to the last
row that is durable. two-steps: the same with two steps that share the engine, (a) being two calls.
release: memory and child processes before, while and after an engine is loaded. prefix: 8 long contexts, their rows
interleaved, a KV cache that holds four of them: with rows sorted by prefix, unsorted, and without prefix caching.

On the CPU, one thread computes. Needs `make .venv/.vllm .models/smollm2`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

MODEL = Path(__file__).resolve().parents[1] / ".models/smollm2"

MAX_MODEL_LEN, MAX_NUM_SEQS, MAX_TOKENS = 512, 64, 40

TASKS = ("Name the thing and how many there are: {}", "Name something that goes with it, and how many: {}")

THINGS = ("red balls", "blue cars", "old hats", "small birds", "open doors", "green pens", "wet stones", "tall trees")

CHAIN = """
import sys
sys.path.insert(0, {here!r})
from vllm_saturation import steps
chain = steps({tasks})
"""


class Row(BaseModel):
    text: str


class Answer(BaseModel):
    name: str = Field(max_length=40)
    count: int = Field(ge=0, le=99)


def rows(number: int) -> list[dict[str, str]]:
    return [{"text": f"{index} {THINGS[index % len(THINGS)]} of shop {index // 8}"} for index in range(number)]


def messages(task: int, text: str) -> list[dict[str, str]]:
    instruction = f"Answer with a JSON object of this schema: {json.dumps(Answer.model_json_schema())}"
    return [{"role": "system", "content": instruction}, {"role": "user", "content": TASKS[task].format(text)}]


def steps(tasks: int) -> Any:
    """The chain of (b) and (c); notes when the first prompt is rendered."""
    from chainette import Chain, SamplingParams, Step, register_engine
    from chainette.records import Message

    register_engine("smol", str(MODEL), "vllm", max_model_len=MAX_MODEL_LEN, max_num_seqs=MAX_NUM_SEQS, threads=1)

    def builder(task: int) -> Callable[..., list[Message]]:
        def build(_step: Any, _row: Any, history: Any) -> list[Message]:
            if not Path("began").exists():
                Path("began").write_text(str(time.time()))
            return [Message(**message) for message in messages(task, history["chain_input"].text)]

        return build

    sampling = SamplingParams(max_tokens=MAX_TOKENS)
    made = [
        Step(
            id=f"step{task}",
            input_model=Answer if task else Row,
            output_model=Answer,
            engine_name="smol",
            prompt_builder=builder(task),
            sampling=sampling,
            max_attempts=1,
        )
        for task in range(tasks)
    ]
    return Chain(name="saturation", steps=made)


# -- (a)


def raw(number: int, tasks: int) -> tuple[int, float]:
    """(completion tokens, seconds) of `LLM.generate`."""
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
    os.environ |= {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    from vllm import LLM, SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    llm = LLM(
        model=str(MODEL),
        dtype="float32",
        enforce_eager=True,
        max_model_len=MAX_MODEL_LEN,
        max_num_seqs=MAX_NUM_SEQS,
        kv_cache_memory_bytes=1 << 30,
        enable_chunked_prefill=False,
        structured_outputs_config={"backend": "xgrammar", "disable_any_whitespace": True},
        disable_log_stats=True,
    )
    schema = json.dumps(Answer.model_json_schema())
    sampling = SamplingParams(temperature=0, max_tokens=MAX_TOKENS, structured_outputs=StructuredOutputsParams(json=schema))
    template = llm.get_tokenizer().apply_chat_template
    prompts = [
        [template(messages(task, row["text"]), add_generation_prompt=True, tokenize=False) for row in rows(number)]
        for task in range(tasks)
    ]
    began, tokens = time.perf_counter(), 0
    for batch in prompts:
        outputs = llm.generate([{"prompt": prompt} for prompt in batch], sampling, use_tqdm=False)
        tokens += sum(len(output.outputs[0].token_ids) for output in outputs)
    return tokens, time.perf_counter() - began


# -- (b), (c)


def chainette(number: int, tasks: int, *words: str) -> tuple[int, float]:
    """(completion tokens, seconds) of the command line."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(number)))
        (folder / "chain.py").write_text(CHAIN.format(here=str(Path(__file__).parent), tasks=tasks))
        command = [sys.executable, "-m", "chainette.cli.main", "run", "chain.py", "in.jsonl", "-o", "out", "--quiet", *words]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        assert done.returncode in (0, 3), done.stderr
        events = [json.loads(line) for line in (folder / "out/events.jsonl").read_text().splitlines()]
        committed = [event for event in events if event["type"] == "unit_committed"]
        ended = max(datetime.fromisoformat(event["at"]).timestamp() for event in committed)
        tokens = sum(event.get("usage", {}).get("completion_tokens", 0) for event in committed)
        return tokens, ended - float((folder / "began").read_text())


def in_child(part: str, *words: object) -> list[float]:
    """The output of a function of this file in a separate process."""
    command = [sys.executable, __file__, "--child", part, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [float(word) for word in done.stdout.splitlines()[-1].split()]


def saturation(arguments: argparse.Namespace, tasks: int = 1) -> None:
    number = arguments.rows // tasks
    contenders: dict[str, Callable[[], tuple[float, ...]]] = {
        "(a) LLM.generate": lambda: tuple(in_child("raw", number, tasks)),
        "(b) chainette run": lambda: chainette(number, tasks),
        "(c) fleet worker": lambda: chainette(number, tasks, "--workers", "1"),
    }
    print(f"\nCompletion tokens/s, {number} rows, {tasks} step(s), {arguments.rounds} interleaved rounds")
    speeds: dict[str, list[float]] = {name: [] for name in contenders}
    tokens: dict[str, float] = {}
    for _ in range(arguments.rounds):
        for name, measure in contenders.items():
            tokens[name], seconds = measure()
            speeds[name].append(tokens[name] / seconds)
            print(f"    {name:18} {tokens[name]:6.0f} tokens in {seconds:6.1f} s", flush=True)
    base = speeds["(a) LLM.generate"]
    for name, found in speeds.items():
        ratios = [speed / other for speed, other in zip(found, base, strict=True)]
        spread = f"({min(ratios):.3f} to {max(ratios):.3f})"
        print(f"  {name:18} {statistics.median(found):7.1f} tokens/s   ratio {statistics.median(ratios):.3f} {spread}")


# -- release


def release(_arguments: argparse.Namespace) -> None:
    print("\nResident MiB of this process and of its children, twice: before, loaded, closed")
    for line in subprocess.run(
        [sys.executable, __file__, "--child", "cycles"], capture_output=True, text=True, check=True
    ).stdout.splitlines():
        print(f"  {line}")


def cycles() -> None:
    import asyncio

    from chainette.engine.vllm.async_llm import VllmEngine

    async def run() -> None:
        print(*memory())
        for _ in range(2):
            engine = VllmEngine(engine_config())
            await engine.open()
            print(*memory())
            await engine.close()
            print(*memory())

    asyncio.run(run())


def memory() -> Iterator[str]:
    """Resident MiB of this process, then of each child."""
    own = os.getpid()
    yield f"{resident(own)} MiB;"
    children = [int(pid) for pid in Path(f"/proc/{own}/task/{own}/children").read_text().split()]
    for thread in Path(f"/proc/{own}/task").iterdir():
        children += [int(pid) for pid in (thread / "children").read_text().split() if int(pid) not in children]
    yield f"children: {[f'{resident(pid)} MiB' for pid in children] or 'none'}"


def resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20


def engine_config(**keys: Any) -> Any:
    from chainette.engine.config import make_config

    return make_config("smol", str(MODEL), "vllm", threads=1, **{"max_model_len": MAX_MODEL_LEN} | keys)


# -- prefix


def prefix(arguments: argparse.Namespace) -> None:
    print("\n64 rows of 8 contexts of 400 tokens, units of 32, 8 tokens each; KV cache for 1,760 tokens; median of rounds")
    ways = ("sorted", "unsorted", "uncached")
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(arguments.rounds):
        for way in ways:
            seconds[way] += in_child("prefixed", way)
            print(f"    {way:9} {seconds[way][-1]:6.1f} s", flush=True)
    best = statistics.median(seconds["sorted"])
    for way, found in seconds.items():
        print(f"  {way:9} {statistics.median(found):6.1f} s   {statistics.median(found) / best:.2f} times the sorted")


def prefixed(way: str) -> float:
    """Seconds for two units side by side, as a local run sends them."""
    import asyncio

    import chainette.engine.vllm.async_llm as module
    from chainette.engine.base import Request, SamplingParams
    from chainette.records import Message

    if way == "unsorted":
        setattr(module, "prefix_order", lambda prompts: list(range(len(prompts))))  # noqa: B010
    contexts = [f"Shop {number}: " + " ".join(f"{THINGS[number]} {word}" for word in range(80)) for number in range(8)]
    sampling, schema = SamplingParams(max_tokens=8), Answer.model_json_schema()
    requests = [
        Request((Message("user", f"{contexts[index % 8]}\nQuestion {index}: what is there?"),), sampling, 1, schema, "answer")
        for index in range(64)
    ]

    async def run() -> float:
        keys = {"enable_prefix_caching": way != "uncached", "max_num_seqs": 4, "max_model_len": 640}
        engine = module.VllmEngine(engine_config(**keys, extra={"block_size": 32, "num_gpu_blocks_override": 56}))
        await engine.open()
        await engine.generate([Request((Message("user", "hello"),), sampling, 1, schema, "answer")])
        began = time.perf_counter()
        units = await asyncio.gather(engine.generate(requests[:32]), engine.generate(requests[32:]))
        seconds = time.perf_counter() - began
        assert all(answer.usage.completion_tokens for unit in units for answer in unit)
        await engine.close()
        return seconds

    return asyncio.run(run())


PARTS: dict[str, Callable[[argparse.Namespace], None]] = {
    "saturation": saturation,
    "two-steps": lambda arguments: saturation(arguments, 2),
    "release": release,
    "prefix": prefix,
}


def child(part: str, *words: str) -> None:
    match part:
        case "raw":
            print(*raw(int(words[0]), int(words[1])))
        case "cycles":
            cycles()
        case "prefixed":
            print(prefixed(words[0]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(*arguments.child)
        return
    for part in arguments.parts or PARTS:
        PARTS[part](arguments)


if __name__ == "__main__":
    main()
