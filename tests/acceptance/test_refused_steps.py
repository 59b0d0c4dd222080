"""A server that refuses a step as it is declared, or everybody: runs and fleets stop after a few requests, and go on later."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests.support.cli import until
from tests.support.patience import LONG
from tests.support.server_project import ServerProject
from tests.support.slow_server import SlowServer
from tests.support.tools import some
from tests.support.valkey import Database

ROWS = 200

#: The fault of a declaration, or of an account -> the server's answer to every request, and the words about what to change.
FAULTS: dict[str, tuple[int, dict[str, str], str]] = {
    "temperature": (
        400,
        {"message": "Unsupported value: 'temperature' does not support 0.3 with this model.", "code": "unsupported_value"},
        "set SamplingParams(temperature=...) of the step",
    ),
    "model": (404, {"message": "The model `m` does not exist", "code": "model_not_found"}, "model 'm' is not there"),
    "schema": (422, {"message": "Invalid schema for response_format 'ask'"}, "response_format"),
    "credit": (402, {"message": "Insufficient credits"}, "Insufficient credits"),
    "quota": (429, {"message": "You exceeded your quota", "code": "insufficient_quota"}, "You exceeded your quota"),
}


class FaultyServer(SlowServer):
    """Answers every question with a fault, until it is mended. Questions with a wrong key get a 401."""

    def __init__(self, fault: str = "") -> None:
        super().__init__(_word)
        self.fault = fault
        #: Status -> questions that got it.
        self.answers: Counter[int] = Counter()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        if request.method == "GET":
            return await super()._handle(request)
        response = await self._answer(request)
        self.answers[response.status] += 1
        return response

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        if request.headers.get("Authorization") != "Bearer good":
            return web.json_response({"error": {"message": "no such key"}}, status=401)
        if not self.fault:
            return await super()._handle(request)
        status, error, _ = FAULTS[self.fault]
        return web.json_response({"error": error}, status=status)


class NewParameters(SlowServer):
    """Wants `max_completion_tokens`, and says so."""

    def __init__(self) -> None:
        super().__init__(_word)
        self.refusals = 0

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        if request.method == "POST" and "max_tokens" in await request.json():
            self.refusals += 1
            said = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
            return web.json_response({"error": {"message": said, "code": "unsupported_parameter"}}, status=400)
        return await super()._handle(request)


async def _word(_text: str) -> str:
    return json.dumps({"word": "w"})


@pytest.fixture
def project(tmp_path: Path) -> ServerProject:
    found = ServerProject(tmp_path, ROWS)
    found.temperature = 0.3
    return found


def require_each_row_once(project: ServerProject, server: SlowServer) -> None:
    assert project.ids("out", "ask") == sorted(str(row) for row in range(ROWS)) and not project.rejected()
    assert {server.asked[f"row {row}"] for row in range(ROWS)} == {1}


WAYS = [
    pytest.param("temperature", (), id="temperature-local"),
    *(pytest.param(fault, (), id=f"{fault}-local", marks=pytest.mark.long) for fault in FAULTS if fault != "temperature"),
    *(pytest.param(fault, ("--workers", "3"), id=f"{fault}-fleet", marks=pytest.mark.long) for fault in some([*FAULTS], 2)),
]


@pytest.mark.parametrize(("fault", "way"), WAYS)
def test_a_fault_of_the_declaration_stops_after_eight_requests_and_once_mended_the_run_goes_on(
    project: ServerProject, fault: str, way: tuple[str, ...]
) -> None:
    with FaultyServer(fault) as server:
        project.url = server.url
        stopped = project.chainette("run", "chain.py", "in.jsonl", "-o", "out", "--engine-patience", "3", *way)
        assert stopped.returncode == 1, stopped.stdout + stopped.stderr
        assert server.answers.total() <= 8, server.answers
        assert FAULTS[fault][2] in stopped.stderr and "chainette resume out" in stopped.stderr, stopped.stderr
        assert json.loads((project.path / "out/metadata.json").read_text())["status"] == "paused"
        server.fault = ""
        resumed = project.chainette("resume", "out", *([] if way else ["--quiet"]))
        assert resumed.returncode == 0, resumed.stderr
    require_each_row_once(project, server)


class Fleet:
    """Workers and `enqueue` on a Redis, gone at the end."""

    def __init__(self, project: ServerProject, url: str, stack: ExitStack) -> None:
        self.project, self.url, self._stack = project, url, stack

    def worker(self, **variables: str) -> Any:
        words = ("worker", "--engine", "server", "--redis", self.url)
        process = self.project.start(*words, env=self.project.environment | variables)
        self._stack.enter_context(process)
        self._stack.callback(process.terminate)
        assert process.stderr is not None
        said = process.stderr
        until(lambda: "serving" in next(said))
        return process

    def chainette(self, *words: str) -> Any:
        return self.project.chainette(*words, "--redis", self.url)


@pytest.fixture
def fleet(project: ServerProject, database: Database) -> Iterator[Fleet]:
    with ExitStack() as stack:
        yield Fleet(project, database.url, stack)


@pytest.mark.long
@pytest.mark.parametrize("fault", some(["credit", "temperature"], 2))
def test_workers_that_were_refused_ask_again_once_the_run_is_resumed(fleet: Fleet, fault: str) -> None:
    with FaultyServer(fault) as server:
        fleet.project.url = server.url
        for _ in range(3):
            fleet.worker()
        stopped = fleet.chainette("enqueue", "chain.py", "in.jsonl", "-o", "out", "--engine-patience", "3")
        assert stopped.returncode == 1 and FAULTS[fault][2] in stopped.stderr, stopped.stderr
        assert server.answers.total() <= 8, server.answers
        server.fault = ""
        resumed = fleet.chainette("resume", "out")
        assert resumed.returncode == 0, resumed.stderr
    require_each_row_once(fleet.project, server)
    types = [event["type"] for event in fleet.project.events("out")]
    assert "unit_retried" in types and "unit_retried" not in types[types.index("run_resumed") :]  # no note counts twice


@pytest.mark.long
def test_a_worker_with_a_wrong_key_withdraws_and_the_others_do_its_work(fleet: Fleet) -> None:
    with FaultyServer() as server:
        fleet.project.url = server.url
        stranger = fleet.worker(SERVER_KEY="bad")
        run = fleet.project.start("enqueue", "chain.py", "in.jsonl", "-o", "out", "--redis", fleet.url)
        withdrew = until(lambda: next((line for line in stranger.stderr if "withdrew" in line), ""))
        assert "answered 401" in withdrew and server.answers == {401: 1}
        fleet.worker()
        out, err = run.communicate(timeout=LONG)
        assert run.returncode == 0, out + err
        assert server.answers[401] == 1 and server.answers[200] == ROWS
    require_each_row_once(fleet.project, server)


@pytest.mark.long
def test_a_parameter_that_a_server_refuses_by_name_is_changed_once_in_each_worker_and_recorded(project: ServerProject) -> None:
    with NewParameters() as server:
        project.url = server.url
        run = project.chainette("run", "chain.py", "in.jsonl", "-o", "out", "--workers", "2")
        assert run.returncode == 0, run.stderr
    require_each_row_once(project, server)
    assert server.refusals <= 8
    [engine] = json.loads((project.path / "out/metadata.json").read_text())["engines"].values()
    assert "max_tokens" in json.dumps(engine["adapted"])
