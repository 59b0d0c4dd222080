"""Rows whose requests always fail: each ends as one rejected row with the server's words, and costs its neighbours nothing."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from pathlib import Path

import pytest
from aiohttp import web
from chainette_workers.worker.entry import WORKER_NAME

from tests.support.cli import until
from tests.support.patience import LONG
from tests.support.processes import children
from tests.support.server_project import ServerProject, row_asked
from tests.support.slow_server import SlowServer
from tests.support.tools import crossed


@pytest.mark.long
@pytest.mark.parametrize(("bad", "way"), crossed([1, 40, 2], [(), ("--workers", "2")], 2, 1))
def test_of_1920_rows_some_of_which_always_fail_all_others_are_asked_once(
    tmp_path: Path, way: tuple[str, ...], bad: int, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = 1920
    failing = {13 + step * (rows // bad) for step in range(bad)}

    async def answer(text: str) -> str | web.Response:
        await asyncio.sleep(0.05)
        if row_asked(text) in failing:
            return web.json_response({"error": {"message": "Internal server error"}}, status=500)
        return json.dumps({"word": "w"})

    project = ServerProject(tmp_path, rows)
    with SlowServer(answer) as server:
        project.url = server.url
        began = time.monotonic()
        run = project.chainette("run", "chain.py", "in.jsonl", "-o", "out", *way)
        seconds = time.monotonic() - began
    asked = {row_asked(text): times for text, times in server.asked.items()}
    probes = asked.pop(-1, 0)
    with capsys.disabled():
        most = max(asked[row] for row in failing)
        print(f"\n{' '.join(way) or 'local'}: {bad} of {rows} fail: {seconds:.1f} s, each asked {most} times, {probes} probes")
    assert run.returncode == 3, run.stdout + run.stderr
    assert {row: asked[row] for row in range(rows) if row not in failing} == dict.fromkeys(set(range(rows)) - failing, 1)
    assert {int(row) for row in project.rejected()} == failing
    assert {reason for reason, _ in project.rejected().values()} == {"engine_error"}
    assert all("500 (Internal server error)" in message for _, message in project.rejected().values())


@pytest.mark.parametrize("way", [(), ("--workers", "1")], ids=["local", "fleet"])
def test_a_hanging_last_row_ends(tmp_path: Path, way: tuple[str, ...]) -> None:
    async def answer(text: str) -> str | web.Response:
        if row_asked(text) == 9:
            await asyncio.Event().wait()
        return json.dumps({"word": "w"})

    project = ServerProject(tmp_path, 10)
    with SlowServer(answer) as server:
        project.url, project.timeout = server.url, 2.0  # long enough for the answers to the other rows
        run = project.chainette("run", "chain.py", "in.jsonl", "-o", "out", *way)
    assert run.returncode == 3, run.stdout + run.stderr
    assert list(project.rejected()) == ["9"] and "gave no answer in 2 s" in project.rejected()["9"][1]
    metadata = json.loads((tmp_path / "out/metadata.json").read_text())
    assert metadata["probes"]["requests"] == 1 and metadata["usage"]["requests"] == 10


@pytest.mark.long
def test_failures_that_a_killed_worker_has_handed_back_count_on(tmp_path: Path) -> None:
    async def answer(text: str) -> str | web.Response:
        if row_asked(text) == 3:
            return web.json_response({"error": {"message": "Internal server error"}}, status=500)
        return json.dumps({"word": "w"})

    project = ServerProject(tmp_path, 10)
    with SlowServer(answer) as server:
        project.url = server.url
        run = project.start("run", "chain.py", "in.jsonl", "-o", "out", "--workers", "1")
        until(lambda: server.asked["row 3"] == 3)
        [worker] = children(run.pid, WORKER_NAME)
        os.kill(worker, signal.SIGKILL)
        out, err = run.communicate(timeout=LONG)
    assert run.returncode == 3, out + err
    assert list(project.rejected()) == ["3"]
    assert server.asked["row 3"] <= 9  # two were left of the failures before, and the new worker needs its own evidence
    assert all(times == 1 for text, times in server.asked.items() if row_asked(text) not in (3, -1))
