"""`--reuse` over a Redis, in the foreground and by services, while processes are killed; a server counts the questions."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.test_reuse_runs import CHAIN, Notes, reuse_in_every_way
from tests.acceptance.test_services import Site
from tests.support.cli import until
from tests.support.patience import LONG
from tests.support.slow_server import SlowServer
from tests.support.tools import many
from tests.support.valkey import LEASES, Database

HOT = "SamplingParams(temperature=0.5)"


class Fleet(Site):
    """Processes of one Redis that ask a server which counts, and are gone at the end."""

    def __init__(self, notes: Notes, url: str, stack: ExitStack) -> None:
        super().__init__(notes, url, stack)
        self.notes = notes

    def worker(self) -> subprocess.Popen[str]:
        return self.start("worker", "--engine", "llm")

    def asked_about(self, number: str) -> int:
        return sum(times for text, times in self.notes.server.asked.items() if text[:2] == f"{number} ")

    def origins(self, directory: str, step: str) -> list[str]:
        shards = (self.notes.path / directory / step).glob("*.jsonl")
        return [json.loads(line).get("_reused_from", "") for shard in shards for line in shard.read_text().splitlines()]

    def metadata(self, directory: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.notes.path / directory / "metadata.json").read_text())
        return found


class _Pace:
    """Answers at once, slowly from the moment when the test says so, and not at all while it holds the gate closed."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.gate = asyncio.Event()
        self.gate.set()

    async def answer(self, text: str) -> str:
        await asyncio.sleep(self.seconds)
        await self.gate.wait()
        return json.dumps({"note": f"about {text}"[:60]})


@pytest.fixture
def pace() -> _Pace:
    return _Pace()


@pytest.fixture
def fleet(tmp_path: Path, database: Database, pace: _Pace) -> Iterator[Fleet]:
    database.may_leave(*LEASES)
    with SlowServer(pace.answer) as server, ExitStack() as stack:
        yield Fleet(Notes(tmp_path, server, rows=40), database.url, stack)


@pytest.mark.long
def test_a_fleet_asks_for_what_is_new(fleet: Fleet) -> None:
    fleet.worker()
    reuse_in_every_way(fleet.notes, 40, 3, "--redis", fleet.url)


@pytest.mark.long
def test_a_fleet_of_two_asks_for_what_is_new_of_many_rows(fleet: Fleet) -> None:
    rows = many(1_000, 1_000, 10_000)
    fleet.notes.write("in.jsonl", map(str, range(rows)))
    for _ in range(2):
        fleet.worker()
    reuse_in_every_way(fleet.notes, rows, 100, "--redis", fleet.url)


@pytest.mark.long
def test_services_take_from_earlier_runs_below_their_root(fleet: Fleet) -> None:
    notes = fleet.notes
    assert notes.chainette("run", "chain.py", "in.jsonl", "-o", "a", "--quiet").returncode == 0
    for service in ("coordinator", "sink"):
        fleet.start(service)
    fleet.worker()
    notes.declare(CHAIN.replace("3 {{", "3 in short: {{"))
    notes.server.asked.clear()
    for directory, way in (("b", "--detach"), ("c", "--no-sink")):
        words = ("enqueue", "chain.py", "in.jsonl", "-o", directory, way, "--quiet", "--redis", fleet.url)
        done = notes.chainette(*words, "--reuse", "a", "--no-reuse", "second")
        assert done.returncode == 0, done.stderr
        if way == "--detach":
            fleet.finished(done.stdout.splitlines()[-1])
        assert [fleet.asked_about(number) for number in "123"] == [0, 40, 40]
        assert fleet.metadata(directory)["rows_reused"] == 80 and fleet.metadata(directory)["status"] == "finished"
        notes.server.asked.clear()
    outside = notes.chainette("enqueue", "chain.py", "in.jsonl", "-o", "d", "--detach", "--reuse", "/tmp", "--redis", fleet.url)
    assert outside.returncode == 1 and "services take relative paths below their roots only" in outside.stderr


@pytest.mark.long
def test_whoever_is_killed_each_answer_serves_one_row_and_nothing_else_is_asked_twice(fleet: Fleet, pace: _Pace) -> None:
    notes, rows = fleet.notes, 800
    hot = CHAIN.replace('output_format_instruction=""', f'output_format_instruction="", sampling={HOT}').replace(
        'name="notes"', 'name="notes", batch_size=16'
    )
    notes.declare(hot)
    notes.write("in.jsonl", ["the same text"] * rows)
    assert notes.chainette("run", "chain.py", "in.jsonl", "-o", "a", "--quiet").returncode == 0
    notes.declare(hot.replace("3 {{", "3 in short: {{"))
    notes.server.asked.clear()
    pace.seconds = 0.4
    pace.gate.clear()  # so that the run cannot end before the kills
    workers = [fleet.worker(), fleet.worker()]
    words = ("--quiet", "--redis", fleet.url)
    sink = notes.start("enqueue", "chain.py", "in.jsonl", "-o", "b", "--reuse", "a", *words)
    until(lambda: fleet.asked_about("3") > 100)
    workers[0].kill()  # SIGKILL
    workers.append(fleet.worker())
    done = fleet.committed("b")
    notes.server.call(pace.gate.set)
    until(lambda: fleet.committed("b") > done)
    sink.kill()
    sink.communicate()
    assert (code := notes.chainette("resume", "b", "--quiet", "--redis", fleet.url)).returncode == 0, code.stderr
    for step in ("first", "second"):
        origins = fleet.origins("b", step)
        assert len(origins) == rows and "" not in origins and len({*origins}) == rows
    assert fleet.metadata("b")["rows_reused"] == 3 * rows
    assert [fleet.asked_about(number) for number in "12"] == [0, 0]
    in_flight = 128  # of the worker that was killed
    assert rows <= fleet.asked_about("3") <= rows + in_flight
    assert {worker.poll() for worker in workers[1:]} == {None} and workers[0].wait(LONG) == -9
