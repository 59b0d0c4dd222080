"""Rows of a slow model: each is on the disk and at its next step soon after its own answer, whatever the batch size."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path

import pytest
from aiohttp import web
from chainette_workers.worker.entry import WORKER_NAME

from tests.support.cli import Project, until
from tests.support.patience import LONG
from tests.support.processes import children
from tests.support.slow_server import SlowServer

ROWS = 60

CHAIN = """
import os
from pydantic import BaseModel
from chainette import Chain, Step, apply, register_engine


class Text(BaseModel):
    text: str


class Word(BaseModel):
    word: str


register_engine("slow", "m", "openai", endpoint=os.environ["SLOW_SERVER"], capacity=64, max_retries=0)

first = Step(id="first", input_model=Text, output_model=Word, engine_name="slow", user_prompt="first {{ text }}")
second = Step(id="second", output_model=Word, engine_name="slow", user_prompt="second {{ word }}")
chain = Chain(name="slow", batch_size=64, steps=[first, second])
"""

FLEET = ("--workers", "1")
WAYS = pytest.mark.parametrize("way", [(), FLEET], ids=["local", "fleet"])


#: Its function waits for the file `gate` beside it from the row in the middle on.
FUNCTION = """
import time
from pathlib import Path
from pydantic import BaseModel
from chainette import Chain, apply


class Text(BaseModel):
    text: str


@apply
def wait(item: Text) -> Text:
    while int(item.text.removeprefix("row ")) >= 30 and not Path(__file__).with_name("gate").exists():
        time.sleep(0.01)
    return item


@apply
def after(item: Text) -> Text:
    return item


chain = Chain(name="function", batch_size=64, steps=[wait, after])
"""


class Slow(Project):
    """A chain of two steps on a server of the test's."""

    def __init__(self, path: Path, url: str = "") -> None:
        super().__init__(path, ROWS)
        (path / "chain.py").write_text(CHAIN)
        self.url = url

    @property
    def environment(self) -> dict[str, str]:
        return super().environment | {"SLOW_SERVER": self.url}

    def given(self, node: str) -> int:
        """Rows of a node the log has."""
        events = self.events("out") if (self.path / "out/events.jsonl").exists() else ()
        return sum(event.get("given", 0) for event in events if event["type"] == "unit_committed" and event["node"] == node)


@pytest.fixture
def slow(tmp_path: Path) -> Slow:
    return Slow(tmp_path)


def number(text: str) -> int:
    """The row a question of the first step is about; -1 for the second step."""
    return int(text.removeprefix("first row ")) if text.startswith("first row ") else -1


def answer_of(text: str) -> str:
    return json.dumps({"word": text.split(maxsplit=1)[1]})


class HalfLater:
    """Answers the second half of the rows only after the test has opened the gate."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()

    def open(self, server: SlowServer) -> None:
        server.call(self.gate.set)

    async def __call__(self, text: str) -> str | web.Response:
        if number(text) >= ROWS // 2:
            await self.gate.wait()
        return answer_of(text)


@WAYS
def test_a_request_that_was_never_sent_is_not_discarded_and_costs_no_budget(slow: Slow, way: tuple[str, ...]) -> None:
    (slow.path / "chain.py").write_text(CHAIN.replace("capacity=64", "capacity=8"))
    later = HalfLater()
    with SlowServer(later) as server:
        slow.url = server.url
        run = slow.start("run", "chain.py", "in.jsonl", "-o", "out", "--budget", f"{2 * ROWS + 8}req", *way)
        until(lambda: sum(1 for text in server.asked if number(text) >= ROWS // 2) == 8)
        until(lambda: slow.given("first") == ROWS // 2)
        run.send_signal(signal.SIGINT)
        out, err = run.communicate(timeout=LONG)
        assert run.returncode == 130, out + err
        assert json.loads((slow.path / "out/metadata.json").read_text())["discarded"]["requests"] == 8
        later.open(server)
        resumed = slow.chainette("resume", "out")
    assert resumed.returncode == 0, resumed.stderr
    assert slow.ids("out", "flattened") == sorted(map(str, range(ROWS)))
    assert sum(server.asked.values()) == 2 * ROWS + 8


@WAYS
def test_a_row_is_on_the_disk_and_at_its_next_step_while_its_unit_goes_on(slow: Slow, way: tuple[str, ...]) -> None:
    later = HalfLater()
    with SlowServer(later) as server:
        slow.url = server.url
        run = slow.start("run", "chain.py", "in.jsonl", "-o", "out", *way)
        until(lambda: slow.given("first") == ROWS // 2 and slow.given("second") == ROWS // 2)
        later.open(server)
        out, err = run.communicate(timeout=LONG)
    assert run.returncode == 0, out + err
    assert slow.ids("out", "flattened") == sorted(map(str, range(ROWS)))
    assert set(server.asked.values()) == {1}


@pytest.mark.parametrize(
    ("way", "sent"),
    [
        ((), signal.SIGINT),
        (FLEET, signal.SIGTERM),
        pytest.param((), signal.SIGTERM, marks=pytest.mark.long),
        pytest.param(FLEET, signal.SIGINT, marks=pytest.mark.long),
    ],
)
def test_a_signal_keeps_every_answer_that_has_arrived(slow: Slow, way: tuple[str, ...], sent: signal.Signals) -> None:
    later = HalfLater()
    with SlowServer(later) as server:
        slow.url = server.url
        run = slow.start("run", "chain.py", "in.jsonl", "-o", "out", *way)
        until(lambda: sum(text.startswith("second") for text in server.asked) == ROWS // 2 or slow.given("second"))
        run.send_signal(sent)
        out, err = run.communicate(timeout=LONG)
        assert run.returncode != 0, out + err
        assert slow.given("first") >= ROWS // 2
        later.open(server)
        resumed = slow.chainette("resume", "out")
    discarded = json.loads((slow.path / "out/metadata.json").read_text())["discarded"]
    assert discarded["requests"] >= ROWS // 2  # those that the signal cancelled
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert slow.ids("out", "flattened") == sorted(map(str, range(ROWS)))
    assert {text: times for text, times in server.asked.items() if times > 1 and 0 <= number(text) < ROWS // 2} == {}


@pytest.mark.parametrize("way", [(), pytest.param(FLEET, marks=pytest.mark.long)], ids=["local", "fleet"])
def test_a_request_that_fails_again_and_again_costs_its_neighbours_nothing(slow: Slow, way: tuple[str, ...]) -> None:
    failures = 0

    async def fails_four_times(text: str) -> str | web.Response:
        nonlocal failures
        if number(text) == 13 and failures < 4:
            failures += 1
            return web.json_response({"error": {"message": "Internal server error"}}, status=500)
        await asyncio.sleep(0.2)
        return answer_of(text)

    with SlowServer(fails_four_times) as server:
        slow.url = server.url
        run = slow.chainette("run", "chain.py", "in.jsonl", "-o", "out", *way)
    assert run.returncode == 0, run.stdout + run.stderr
    assert server.asked.pop("first row 13") == 5
    assert set(server.asked.values()) == {1}


@WAYS
def test_rows_of_a_slow_function_do_not_wait_for_their_unit(slow: Slow, way: tuple[str, ...]) -> None:
    (slow.path / "chain.py").write_text(FUNCTION)
    run = slow.start("run", "chain.py", "in.jsonl", "-o", "out", *way)
    until(lambda: slow.given("wait") == slow.given("after") == ROWS // 2)
    (slow.path / "gate").touch()
    out, err = run.communicate(timeout=LONG)
    assert run.returncode == 0, out + err
    assert slow.ids("out", "flattened") == sorted(map(str, range(ROWS)))


@pytest.mark.long
def test_rows_that_a_killed_worker_has_committed_are_not_asked_again(slow: Slow) -> None:
    later = HalfLater()
    with SlowServer(later) as server:
        slow.url = server.url
        run = slow.start("run", "chain.py", "in.jsonl", "-o", "out", "--workers", "1")
        until(lambda: slow.given("second") == ROWS // 2)
        [worker] = children(run.pid, WORKER_NAME)
        os.kill(worker, signal.SIGKILL)
        later.open(server)
        out, err = run.communicate(timeout=LONG)
    assert run.returncode == 0, out + err
    assert slow.ids("out", "flattened") == sorted(map(str, range(ROWS)))
    assert all(times == 1 for text, times in server.asked.items() if number(text) < ROWS // 2)
