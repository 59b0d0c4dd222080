"""kill -9 inside a way of a route and inside round 3 of a loop, by processes of their own: resumed there, and nothing is asked
again whose answer was durable."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from chainette_workers.worker.entry import WORKER_NAME

from tests.support.cli import Project, until
from tests.support.patience import LONG
from tests.support.processes import children
from tests.support.slow_server import SlowServer
from tests.support.valkey import LEASES, Database

ROWS = 24

#: Rows that are held: one in its way, one in the third round of the loop at the end of that way.
IN_WAY, IN_ROUND = "row 10", "row 6"

CHAIN = """
import os
from pydantic import BaseModel
from chainette import Chain, Loop, Route, Step, register_engine


class Text(BaseModel):
    text: str


class Word(BaseModel):
    word: str


register_engine("slow", "m", "openai", endpoint=os.environ["SLOW_SERVER"], capacity=64, max_retries=0)


def ask(id):
    prompt = id + " {{ chain_input.text }}" + (" in round {{ round }}" if id == "draft" else "")
    return Step(id=id, input_model=Text, output_model=Word, engine_name="slow", user_prompt=prompt)


def even(item: Text) -> bool:
    return int(item.text.removeprefix("row ")) % 2 == 0


loop = Loop("revise", steps=[ask("draft")], until="{{ round == 4 }}", max_rounds=4).join("final")
check = Step(id="check", output_model=Text, engine_name="slow", user_prompt="check {{ chain_input.text }}")
route = Route("handle", when=even, then=[check, loop], default=[ask("brief")]).join("handled")
chain = Chain(name="ways", batch_size=4, steps=[route, ask("last")])
"""


class Held:
    """Answers at once, but not to these questions until the test has opened the gate."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()

    async def __call__(self, text: str) -> str:
        if text in (f"check {IN_WAY}", f"draft {IN_ROUND} in round 3"):
            await self.gate.wait()
        row = "row " + text.split(" row ")[1].split()[0]
        return json.dumps({"text": row} if text.startswith("check") else {"word": row})


class Site(Project):
    """A folder with the chain, and a server that holds two rows."""

    def __init__(self, path: Path, server: SlowServer, held: Held) -> None:
        super().__init__(path, ROWS)
        (path / "chain.py").write_text(CHAIN)
        self.server, self.held = server, held

    @property
    def environment(self) -> dict[str, str]:
        return super().environment | {"SLOW_SERVER": self.server.url}

    def given(self) -> dict[str, int]:
        """Node -> rows the log has."""
        log = self.path / "out/events.jsonl"
        lines = log.read_text().splitlines() if log.exists() else []
        found: dict[str, int] = {}
        for event in (json.loads(line) for line in lines if line.endswith("}")):
            if event["type"] == "unit_committed":
                found[event["node"]] = found.get(event["node"], 0) + event.get("given", 0)
        return found

    def wait_for_the_rest(self) -> None:
        """Until the two rows are asked about, and all others have come as far as they can: to the join beside those two."""
        half = ROWS // 2
        expected = {"check": half - 1, "draft#2": half - 1, "draft#3": half - 2, "draft#4": half - 2, "brief": half, "last": 16}
        until(lambda: expected.items() <= self.given().items())
        assert self.server.asked[f"check {IN_WAY}"] == self.server.asked[f"draft {IN_ROUND} in round 3"] == 1

    def require_asked_once(self, *, but_held: int) -> None:
        """Nothing was asked again but the two questions that had no answer."""
        assert self.ids("out", "flattened") == sorted(map(str, range(ROWS)))
        again = {text: number for text, number in self.server.asked.items() if number > 1}
        assert again == dict.fromkeys((f"check {IN_WAY}", f"draft {IN_ROUND} in round 3"), but_held)
        assert len(self.server.asked) == ROWS // 2 * 5 + ROWS // 2 + ROWS


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    held = Held()
    with SlowServer(held) as server:
        yield Site(tmp_path, server, held)


def kill(*processes: int) -> None:
    for process in processes:
        os.kill(process, signal.SIGKILL)


@pytest.mark.long
def test_a_fleet_killed_in_a_way_and_in_round_3_is_resumed_there(site: Site) -> None:
    run = site.start("run", "chain.py", "in.jsonl", "-o", "out", "--workers", "2")
    site.wait_for_the_rest()
    kill(run.pid, *children(run.pid))
    run.communicate()
    site.server.call(site.held.gate.set)
    done = site.chainette("resume", "out", SLOW_SERVER=site.server.url)
    assert done.returncode == 0, done.stderr
    site.require_asked_once(but_held=2)


@pytest.mark.long
def test_workers_killed_in_a_way_and_in_round_3_are_replaced_and_the_rows_go_on_there(site: Site) -> None:
    run = site.start("run", "chain.py", "in.jsonl", "-o", "out", "--workers", "2")
    site.wait_for_the_rest()
    kill(*children(run.pid, WORKER_NAME))
    until(lambda: site.server.asked[f"check {IN_WAY}"] == 2)
    site.server.call(site.held.gate.set)
    _, errors = run.communicate(timeout=LONG)
    assert run.returncode == 0, errors
    site.require_asked_once(but_held=2)


@pytest.mark.long
def test_processes_over_redis_killed_in_a_way_and_in_round_3_are_resumed_there(site: Site, database: Database) -> None:
    database.may_leave(*LEASES)  # until somebody reaps them
    with ExitStack() as stack:

        def started(*words: str) -> subprocess.Popen[str]:
            process = stack.enter_context(site.start(*words, "--redis", database.url))
            stack.callback(process.kill)
            return process

        workers = [started("worker", "--engine", "slow") for _ in range(2)]
        run = started("enqueue", "chain.py", "in.jsonl", "-o", "out")
        site.wait_for_the_rest()
        for process in (run, *workers):
            kill(process.pid, *children(process.pid))
            process.communicate()
        site.server.call(site.held.gate.set)
        last = started("worker", "--engine", "slow")
        done = site.chainette("resume", "out", "--redis", database.url, SLOW_SERVER=site.server.url)
        assert done.returncode == 0, done.stderr
        last.terminate()
        assert last.wait(LONG) == 0
    site.require_asked_once(but_held=2)
