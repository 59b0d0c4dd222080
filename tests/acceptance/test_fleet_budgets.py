"""Budgets of runs and of engines over services that are killed; a server counts the questions."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from chainette import open_run
from chainette.fleet.redis.fleet_view import look
from tests.acceptance.test_services import Site
from tests.support.cli import Project, until
from tests.support.slow_server import SlowServer
from tests.support.valkey import LEASES, Database

CHAIN = """
from pydantic import BaseModel
from chainette import Chain, Step

class Text(BaseModel):
    text: str

ask = Step(id="ask", input_model=Text, output_model=Text, engine_name="server", user_prompt="{{ text }}")
chain = Chain(name="c", batch_size=4, steps=[ask])
"""

#: Rows of each run, and rows a killed worker takes with it at most: of two units it asks about, and of two that
#: are on their way to be committed.
ROWS, IN_FLIGHT = 120, 16


class Fleet(Site):
    """Runs of one chain, whose engine is declared in a file, for a server that counts."""

    def __init__(self, path: Path, url: str, server: SlowServer, stack: ExitStack) -> None:
        super().__init__(Project(path, rows=ROWS), url, stack)
        self.server = server
        (path / "chain.py").write_text(CHAIN)

    def declare(self, **keys: str) -> None:
        """Writes the engine file."""
        lines = {"model": "m", "backend": "openai", "endpoint": self.server.url, "capacity": "4", **keys}
        text = "engines:\n  server:\n" + "".join(f"    {key}: {value}\n" for key, value in lines.items())
        (self.project.path / "engines.yml").write_text(text)

    def worker(self) -> None:
        self.process = self.start("worker", "--engine", "server", "--engines", "engines.yml")

    @property
    def sent(self) -> int:
        """The rows' questions; a worker's first look at the server is none."""
        return sum(count for text, count in self.server.asked.items() if text.startswith("row "))

    def answered(self, *directories: str) -> int:
        """The requests of runs, by their logs."""
        return sum(open_run(self.project.path / each).metadata["usage"]["requests"] for each in directories)

    def pauses(self, run: str) -> str:
        """The reason of a run's pause, as soon as a sink has written all that came before."""

        def reason() -> str:
            live = next(iter(look(self.client, run).runs), None)
            return live.info.reason if live is not None and live.info.state == "paused" and not live.results else ""

        return str(until(reason))


async def late(_text: str) -> str:
    await asyncio.sleep(0.03)
    return '{"text": "ok"}'


@pytest.fixture
def fleet(tmp_path: Path, database: Database) -> Iterator[Fleet]:
    database.may_leave(*LEASES)
    with SlowServer(late) as server, ExitStack() as stack:
        yield Fleet(tmp_path, database.url, server, stack)


@pytest.mark.long
def test_a_run_of_services_pauses_at_its_budget_and_goes_on_with_a_larger_one_whoever_is_killed(fleet: Fleet) -> None:
    fleet.declare()
    services = [fleet.start(name) for name in ("coordinator", "sink")]
    fleet.worker()
    run = fleet.detach("out", "--engines", "engines.yml", "--budget", "60req")
    until(lambda: fleet.sent > 15)
    for process in (*services, fleet.process):
        process.kill()  # SIGKILL
    for name in ("coordinator", "sink"):
        fleet.start(name)
    fleet.worker()
    assert "60 of 60 req used" in fleet.pauses(run)
    answered, sent = fleet.answered("out"), fleet.sent
    assert 60 - IN_FLIGHT <= answered <= sent <= 60
    assert fleet.project.chainette("resume", "out", "--redis", fleet.url, "--budget", "1000req").returncode == 0
    fleet.finished(run)
    assert len(fleet.project.ids("out", "ask")) == ROWS == fleet.answered("out")
    assert fleet.sent == sent + ROWS - answered


@pytest.mark.long
def test_the_budget_of_an_engine_holds_over_the_runs_of_a_fleet_whoever_is_killed(fleet: Fleet) -> None:
    fleet.declare(budget="90req")
    for name in ("coordinator", "sink"):
        fleet.start(name)
    fleet.worker()
    runs = {name: fleet.detach(name, "--engines", "engines.yml") for name in ("one", "two")}
    until(lambda: fleet.sent > 30)
    fleet.process.kill()  # SIGKILL
    fleet.worker()
    for run in runs.values():
        assert "the budget of engine 'server' is spent: 90 of 90 req used" in fleet.pauses(run)
        assert "engine 'server' is spent" in fleet.why(run)
    assert 90 - IN_FLIGHT <= fleet.answered(*runs) <= fleet.sent <= 90
    for name in runs:
        assert fleet.project.chainette("resume", name, "--redis", fleet.url, "--budget", "server=1000req").returncode == 0
    for name, run in runs.items():
        fleet.finished(run)
        assert len(fleet.project.ids(name, "ask")) == ROWS
    assert fleet.answered(*runs) == 2 * ROWS <= fleet.sent <= 2 * ROWS + IN_FLIGHT
    third = fleet.detach("three", "--engines", "engines.yml")  # the spending of closed runs counts on
    assert "engine 'server' is spent: " in fleet.pauses(third)
    assert fleet.answered("three") == 0
    assert fleet.project.chainette("cancel", third, "--redis", fleet.url).returncode == 0
    fleet.finished(third)
