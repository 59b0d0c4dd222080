"""A budget over a fleet whose processes are killed: what the server was asked is within it."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from pathlib import Path

import pytest
from chainette_workers.worker.entry import WORKER_NAME

from chainette import open_run
from tests.acceptance.test_local_fleet import processes_of
from tests.support.cli import Project, until
from tests.support.patience import LONG
from tests.support.slow_server import SlowServer
from tests.support.tools import many

CHAIN = """
from pydantic import BaseModel
from chainette import Chain, Step, register_engine

class Text(BaseModel):
    text: str

register_engine("server", "m", "openai", endpoint={url!r}, capacity=4)
ask = Step(id="ask", input_model=Text, output_model=Text, engine_name="server", user_prompt="{{{{ text }}}}")
chain = Chain(name="c", batch_size=4, steps=[ask])
"""

BUDGET, KILLS = 400, many(8, 8, 20)
#: Rows that two workers have in hand at most: twice the capacity of each engine.
IN_FLIGHT = 2 * 8


async def late(_text: str) -> str:
    await asyncio.sleep(0.05)
    return '{"text": "ok"}'


def asked(server: SlowServer) -> int:
    """The rows' questions; a worker's first look at the server is none."""
    return sum(count for text, count in server.asked.items() if text.startswith("row "))


@pytest.mark.long
def test_a_budget_holds_over_many_kills_of_a_fleet(tmp_path: Path) -> None:
    draw = random.Random(16)
    project = Project(tmp_path, rows=2000)
    heads = 0
    with SlowServer(late) as server:
        (tmp_path / "chain.py").write_text(CHAIN.format(url=server.url))
        words: tuple[str, ...] = ("run", "chain.py", "in.jsonl", "-o", "out", "--workers", "2", "--budget", f"{BUDGET}req")
        run = project.start(*words)
        for _ in range(KILLS):
            seen = asked(server)
            until(lambda: asked(server) > seen + draw.randint(0, 8) or run.poll() is not None)  # noqa: B023
            if run.poll() is not None:
                break
            found = processes_of(project)
            workers = [pid for pid, name in found.items() if WORKER_NAME in name]
            if workers and draw.random() < 0.5:
                os.kill(draw.choice(workers), signal.SIGKILL)
                continue
            heads += 1
            run.kill()
            run.communicate(timeout=LONG)
            until(lambda: not processes_of(project))
            run = project.start("resume", "out") if (tmp_path / "out" / "events.jsonl").exists() else project.start(*words)
        _, errors = run.communicate(timeout=LONG)
        sent = asked(server)
    assert run.returncode == 1 and f"of {BUDGET} req used" in errors, errors
    answered = open_run(tmp_path / "out").metadata["usage"]["requests"]
    print(f"{sent} requests were sent for {BUDGET}, {answered} are in the log; {heads} heads were killed")
    assert answered <= sent <= BUDGET + heads * IN_FLIGHT
    assert answered <= BUDGET
