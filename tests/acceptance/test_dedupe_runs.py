"""`dedupe` against a real server that counts: each question is asked once, by one process and by a fleet, whatever is killed."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections import Counter
from pathlib import Path

import pytest

from chainette import open_run
from tests.support.cli import Project, until
from tests.support.patience import LONG
from tests.support.processes import children
from tests.support.slow_server import SlowServer

CHAIN = """
from pydantic import BaseModel
from chainette import Chain, Step, register_engine

class Text(BaseModel):
    text: str

class Word(BaseModel):
    word: str

register_engine("server", "m", "openai", endpoint={url!r}, capacity=16)
ask = Step(id="ask", input_model=Text, output_model=Word, engine_name="server", user_prompt="{{{{ text }}}}")
chain = Chain(name="repeats", batch_size={batch}, steps=[ask])
"""


class Repeats(Project):
    """Rows of which the n-th asks the same as the n + `distinct`-th."""

    def __init__(self, path: Path, server: SlowServer, rows: int, distinct: int, batch: int = 64) -> None:
        super().__init__(path)
        (path / "chain.py").write_text(CHAIN.format(url=server.url, batch=batch))
        texts = (f"question {number % distinct}" for number in range(rows))
        (path / "in.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def questions(server: SlowServer) -> Counter[str]:
    """Without the workers' first looks at the server."""
    return Counter({text: count for text, count in server.asked.items() if text.startswith("question")})


async def echo(text: str) -> str:
    await asyncio.sleep(0.005)
    return json.dumps({"word": text})


@pytest.mark.parametrize(
    ("rows", "distinct"), [(1000, 100), pytest.param(10_000, 1000, marks=pytest.mark.long)], ids=["small", "large"]
)
@pytest.mark.parametrize("way", [(), ("--workers", "2")], ids=["local", "fleet"])
def test_every_question_is_asked_exactly_once(tmp_path: Path, way: tuple[str, ...], rows: int, distinct: int) -> None:
    with SlowServer(echo) as server:
        project = Repeats(tmp_path, server, rows, distinct)
        run = project.chainette("run", "chain.py", "in.jsonl", "-o", "out", "--dedupe", *way)
    assert run.returncode == 0, run.stdout + run.stderr
    assert f"answered with equal requests: {rows - distinct:,} of {rows:,} rows of ask" in run.stdout
    assert {*questions(server).values()} == {1} and len(questions(server)) == distinct
    result = open_run(tmp_path / "out")
    assert {row["row_id"]: row["word"] for row in result.rows("ask")} == {
        str(number): f"question {number % distinct}" for number in range(rows)
    }
    assert result.metadata["usage"]["requests"] == distinct and result.metadata["rows_shared"] == rows - distinct
