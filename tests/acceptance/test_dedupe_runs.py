"""`dedupe` against a real server that counts: a question is asked once, by one process or by a fleet."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections import Counter
from pathlib import Path

import pytest

from chainette import open_run
from tests.acceptance.test_local_fleet import processes_of
from tests.support.cli import Project, until
from tests.support.patience import LONG
from tests.support.processes import children, holder
from tests.support.slow_server import SlowServer
from tests.support.tools import some

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


@pytest.mark.parametrize(("rows", "distinct"), some([(1000, 100), (10_000, 1000)], 2, 2))
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


@pytest.mark.long
def test_another_worker_asks_if_the_one_that_asks_is_killed(tmp_path: Path) -> None:
    """All rows ask the same, so that one worker asks, and the other one waits for it."""
    text = "question 0"
    open_ = asyncio.Event()

    async def answer(asked: str) -> str:
        if asked == text:
            await open_.wait()
        return json.dumps({"word": asked})

    with SlowServer(answer) as server:
        project = Repeats(tmp_path, server, rows=60, distinct=1, batch=4)
        run = project.start("run", "chain.py", "in.jsonl", "-o", "out", "--dedupe", "--workers", "2")
        until(lambda: server.asked[text])
        workers = children(run.pid, "worker")
        asker = holder(server.ports[text], workers)
        assert asker is not None and len(workers) == 2 and server.asked[text] == 1
        os.kill(asker, signal.SIGKILL)
        until(lambda: server.asked[text] == 2)  # its lease is over: the other worker asks
        assert holder(server.ports[text], children(run.pid, "worker")) not in (None, asker)  # or the one that replaces it
        server.call(open_.set)
        out, err = run.communicate(timeout=LONG)
    assert run.returncode == 0, out + err
    assert server.asked[text] == 2
    assert len([*open_run(tmp_path / "out").rows("ask")]) == 60
    assert open_run(tmp_path / "out").metadata["rows_shared"] == 59


@pytest.mark.long
@pytest.mark.parametrize("way", [(), ("--workers", "2")], ids=["local", "fleet"])
def test_a_killed_run_asks_again_only_what_was_not_durable(tmp_path: Path, way: tuple[str, ...]) -> None:
    with SlowServer(echo) as server:
        project = Repeats(tmp_path, server, rows=4000, distinct=400)
        run = project.start("run", "chain.py", "in.jsonl", "-o", "out", "--dedupe", *way)
        until(lambda: len(questions(server)) > 200 and b"unit_committed" in (tmp_path / "out/events.jsonl").read_bytes())
        run.kill()
        run.communicate(timeout=LONG)
        durable = {row["word"] for row in open_run(tmp_path / "out").rows("ask")}
        resumed = project.chainette("resume", "out")
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    asked = questions(server)
    assert durable and {text: asked[text] for text in durable} == dict.fromkeys(durable, 1)
    assert len(asked) == 400 and max(asked.values()) <= 2
    assert len([*open_run(tmp_path / "out").rows("ask")]) == 4000


@pytest.mark.long
def test_a_valkey_that_is_killed_costs_second_asks_and_no_row(tmp_path: Path) -> None:
    """Nobody waits for an answer that it has forgotten."""
    open_ = asyncio.Event()

    async def answer(text: str) -> str:
        if text == "question 399":
            await open_.wait()
        return await echo(text)

    with SlowServer(answer) as server:
        project = Repeats(tmp_path, server, rows=4000, distinct=400)
        run = project.start("run", "chain.py", "in.jsonl", "-o", "out", "--dedupe", "--workers", "2")
        until(lambda: len(questions(server)) > 100)
        found = [pid for pid, words in processes_of(project).items() if "valkey-server" in words]
        assert found
        for pid in found:
            os.kill(pid, signal.SIGKILL)
        server.call(open_.set)
        out, err = run.communicate(timeout=LONG)
    assert run.returncode == 0, out + err
    assert len(questions(server)) == 400 and max(questions(server).values()) <= 1 + 2  # by each of the workers
    assert len([*open_run(tmp_path / "out").rows("ask")]) == 4000
