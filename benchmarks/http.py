"""Rows per second over HTTP beside a hand-written loop: `python benchmarks/http.py [--rows N] [--rounds N]`.

A raw asyncio server in a process by itself answers every chat completion at once, so that only the client's work counts.
Three contenders take the same rows through the same two steps, each round in turn, start-up included: a loop over aiohttp
that builds the requests, validates the answers and writes JSON Lines; `chainette run`; `chainette run --workers 2`.
The table has medians over the rounds: rows/s, CPU per request of all processes but the server, and rows/s over the loop's.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

#: Requests the loop and each engine have in flight.
IN_FLIGHT = 256
STEPS = 2
ANSWER = {"name": "lamp", "score": 5, "tags": ["red", "small"]}
PROMPTS = ("Extract from: {{ text }} ({{ number }})", "Improve {{ extract.name }} {{ extract.score }}")

CHAIN = f"""
from pydantic import BaseModel

from chainette import Chain, Step, register_engine


class Product(BaseModel):
    text: str
    number: int


class Facts(BaseModel):
    name: str
    score: int
    tags: list[str]


register_engine("server", "model", "openai", endpoint="http://127.0.0.1:PORT/v1", capacity={IN_FLIGHT})
extract = Step(id="extract", input_model=Product, output_model=Facts, engine_name="server", user_prompt="{PROMPTS[0]}")
improve = Step(id="improve", output_model=Facts, engine_name="server", user_prompt="{PROMPTS[1]}")
chain = Chain(name="bench", steps=[extract, improve])
"""


# -- the server


class Server(asyncio.Protocol):
    """Enough of HTTP/1.1 for clients that send whole requests with a Content-Length."""

    def __init__(self) -> None:
        usage = {"prompt_tokens": 80, "completion_tokens": 20, "total_tokens": 100}
        message = {"role": "assistant", "content": json.dumps(ANSWER)}
        chat = {"id": "1", "object": "chat.completion", "created": 1, "model": "model", "usage": usage}
        self._chat = _reply(chat | {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})
        self._models = _reply({"object": "list", "data": [{"id": "model", "object": "model"}]})
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._rest += data
        while (end := self._rest.find(b"\r\n\r\n")) >= 0:
            head = self._rest[:end].lower()
            found = head.find(b"content-length:")
            length = int(head[found + 15 :].split(b"\r\n", 1)[0]) if found >= 0 else 0
            if len(self._rest) < end + 4 + length:
                return
            self._rest = self._rest[end + 4 + length :]
            self._transport.write(self._models if head.startswith(b"get") else self._chat)


def _reply(body: dict[str, Any]) -> bytes:
    data = json.dumps(body).encode()
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(data), data)


async def serve() -> None:
    server = await asyncio.get_running_loop().create_server(Server, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


@contextmanager
def serving() -> Iterator[int]:
    """The port of a server that is gone at the end."""
    with subprocess.Popen([sys.executable, __file__, "--serve"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.terminate()


# -- the loop Chainette is compared with


async def by_hand(folder: Path, port: int) -> None:
    """The same requests, answers and files without order, retries or resume."""
    import aiohttp
    from jinja2 import Template
    from pydantic import BaseModel

    from chainette.utils.json_schema import generate_json_output_prompt

    class Product(BaseModel):
        text: str
        number: int

    class Facts(BaseModel):
        name: str
        score: int
        tags: list[str]

    templates = [Template(prompt) for prompt in PROMPTS]
    system = {"role": "system", "content": generate_json_output_prompt(Facts)}
    schema = {"name": "Facts", "schema": Facts.model_json_schema()}
    common = {
        "model": "model",
        "temperature": 0,
        "max_tokens": 1024,
        "response_format": {"type": "json_schema", "json_schema": schema},
    }
    url = f"http://127.0.0.1:{port}/v1/chat/completions"

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def ask(prompt: str) -> Facts:
            body = common | {"messages": [system, {"role": "user", "content": prompt}]}
            async with session.post(url, json=body) as response:
                answer = await response.json()
            return Facts.model_validate_json(answer["choices"][0]["message"]["content"])

        async def work(lines: Iterator[tuple[int, str]]) -> None:
            for index, line in lines:
                product = Product.model_validate_json(line)
                extract = await ask(templates[0].render(text=product.text, number=product.number))
                improve = await ask(templates[1].render(extract=extract))
                for file, row in zip(files, (extract, improve), strict=True):
                    file.write(f'{{"row_id":"{index}",{row.model_dump_json()[1:]}\n')

        with (
            (folder / "in.jsonl").open() as inputs,
            (folder / "1.jsonl").open("w") as one,
            (folder / "2.jsonl").open("w") as two,
        ):
            files, lines = (one, two), enumerate(inputs)
            await asyncio.gather(*(work(lines) for _ in range(IN_FLIGHT)))


# -- the measurement


def command(contender: str, port: int) -> list[str]:
    chainette = [sys.executable, "-m", "chainette", "run", "chain.py", "in.jsonl", "-o", contender, "--quiet"]
    return {
        # -P: the standard library's http must not be this file
        "loop": [sys.executable, "-P", str(Path(__file__).resolve()), "--loop", str(port)],
        "run": chainette,
        "fleet": [*chainette, "--workers", "2"],
    }[contender]


def measure(contender: str, folder: Path, rows: int, port: int) -> tuple[float, float]:
    """(rows/s, us of CPU per request) of one contender from start to end."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command(contender, port), cwd=folder, check=True, capture_output=True)
    seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return rows / seconds, cpu / rows / STEPS * 1e6


def prepared(folder: Path, rows: int, port: int) -> Path:
    (folder / "chain.py").write_text(CHAIN.replace("PORT", str(port)))
    lines = (
        json.dumps({"text": f"a description of about eighty characters, number {n}, and so on", "number": n})
        for n in range(rows)
    )
    (folder / "in.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--serve", action="store_true")
    parser.add_argument("--loop", type=int)
    chosen = parser.parse_args()
    if chosen.serve:
        asyncio.run(serve())
    elif chosen.loop is not None:
        asyncio.run(by_hand(Path.cwd(), chosen.loop))
    else:
        compare(chosen.rows, chosen.rounds)


def compare(rows: int, rounds: int) -> None:
    found: dict[str, list[tuple[float, float]]] = {"loop": [], "run": [], "fleet": []}
    for number in range(rounds):
        for contender, figures in found.items():
            with serving() as port, tempfile.TemporaryDirectory() as folder:
                figures.append(measure(contender, prepared(Path(folder), rows, port), rows, port))
        print(f"round {number + 1}: " + ", ".join(f"{name} {figures[-1][0]:,.0f} rows/s" for name, figures in found.items()))
    print(f"\n{rows:,} rows x {STEPS} steps, medians of {rounds} rounds\n")
    print("| | rows/s | CPU us a request | rows/s over the loop's |\n|---|---|---|---|")
    for name, figures in found.items():
        speed, cpu = (statistics.median(values) for values in zip(*figures, strict=True))
        ratios = [mine[0] / loop[0] for mine, loop in zip(figures, found["loop"], strict=True)]
        print(
            f"| {name} | {speed:,.0f} | {cpu:.0f} | {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) |"
        )


if __name__ == "__main__":
    main()
