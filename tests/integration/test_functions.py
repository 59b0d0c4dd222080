"""Functions in processes of their own: they may print, sleep, hang and die; the worker and the other rows go on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import msgspec
import pytest
from chainette_workers.worker.enqueued_chains import ChainDiffers, Chains
from chainette_workers.worker.function_pool import Children

from chainette.core.compile import compile_chain
from chainette.core.plan import Plan
from chainette.core.usercode.loading import load_chain
from chainette.errors import EngineUnavailable
from chainette.hooks import Hook
from chainette.io.rundir.chain_marks import marks_of
from chainette.records import CHAIN_INPUT, Outcome, Reason, Row, Unit
from chainette.run.unit_result import UnitResult
from chainette.utils.event_loop import run_loop
from tests.support.cli import until
from tests.support.fleet import record
from tests.support.outcomes import process
from tests.support.patience import LONG
from tests.support.processes import children

CHAIN = """
import asyncio, os, signal, subprocess, sys, threading, time
from pathlib import Path

from pydantic import BaseModel

from chainette import BatchApply, Chain, apply
import helper


class Text(BaseModel):
    text: str


HERE = Path(__file__).parent
calls = 0


@apply
def letters(item: Text) -> list[Text]:
    global calls
    calls += 1
    text = item.text
    if text.startswith("print"):
        print("noise from a function", flush=True)
        os.write(1, b"\\x00\\x00\\x00\\x05bytes")
        sys.stdin.read()
    if text.startswith("segv"):
        os.kill(os.getpid(), signal.SIGSEGV)
    if text.startswith("exit"):
        os._exit(3)
    if text.startswith("interrupt"):
        raise KeyboardInterrupt
    if text.startswith("once") and not (HERE / "died").exists():
        (HERE / "died").touch()
        os._exit(3)
    if text.startswith("raise"):
        raise ValueError("no")
    if text.startswith("hang"):
        (HERE / "pid").write_text(str(os.getpid()))
        time.sleep(600)
    if text.startswith("wait"):
        while not (HERE / "go").exists():
            time.sleep(0.01)
    if text.startswith("fork"):
        subprocess.Popen(["sleep", "5"], pass_fds=())
        if os.fork() == 0:
            time.sleep(5)
            os._exit(0)
        os._exit(4)
    if text == "environment":
        return [Text(text=name) for name in sorted(os.environ) if name.startswith(("CHAINETTE_", "MY_"))]
    if text.startswith("calls"):
        return [Text(text=str(calls)), Text(text=str(os.getpid()))]
    return [Text(text=letter) for letter in text[:2]] if text != "drop" else []


loop = None


@apply
async def slowly(item: Text) -> Text | None:
    global loop
    await asyncio.sleep(0.001)
    if item.text == "die":
        os._exit(5)
    if item.text == "interrupt":
        raise KeyboardInterrupt
    same = loop is None or loop is asyncio.get_running_loop()
    loop = asyncio.get_running_loop()
    return Text(text=f"{item.text} {same} {helper.WORD}") if item.text != "drop" else None


@BatchApply
def together(items: list[Text]) -> list[Text | None]:
    if any(item.text == "die" for item in items):
        os._exit(5)
    if any(item.text == "raise" for item in items):
        raise ValueError("no")
    return [Text(text=f"{item.text} of {len(items)}") if item.text != "drop" else None for item in items]


chain = Chain(name="functions", batch_size=8, steps=[letters, slowly, together])
"""


class Site:
    """A chain's folder, its plan, and processes for its functions."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "chain.py").write_text(CHAIN)
        (path / "helper.py").write_text("WORD = 'helped'\n")
        loaded = load_chain("chain.py", path)
        self.plan: Plan = compile_chain(loaded.chain)
        marks = msgspec.json.encode(marks_of(self.plan)).decode()
        self.info = record(
            "run", chain_ref="chain.py", digest=loaded.digest, files=json.dumps(loaded.names), batch_size="8", marks=marks
        )
        self.children = Children(path, width=2)

    def unit(self, *texts: str, node: str = "letters") -> Unit:
        source = {"letters": CHAIN_INPUT, "slowly": "letters", "together": "slowly"}[node]
        rows = [Row(str(number), {source: json.dumps({"text": text}).encode()}) for number, text in enumerate(texts)]
        return Unit(node, 0, "", "", rows)

    async def run(self, *texts: str, node: str = "letters") -> Outcome:
        unit = self.unit(*texts, node=node)
        result = UnitResult(self.plan, self.plan.nodes[node], Hook())
        await self.children.run(self.info, result, unit)
        return result.take(unit)

    def hanging(self) -> str:
        """The id of the process whose function hangs; "" where none does yet."""
        pid = self.path / "pid"
        return pid.read_text() if pid.exists() else ""

    def go(self, work: Callable[[], Awaitable[Any]]) -> Any:
        async def all_of_it() -> Any:
            with anyio.fail_after(LONG):
                try:
                    return await work()
                finally:
                    await self.children.aclose()

        return anyio.run(all_of_it)

    def outcome(self, *texts: str, node: str = "letters") -> Outcome:
        found = self.go(lambda: self.run(*texts, node=node))
        assert isinstance(found, Outcome)
        return found


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    yield Site(tmp_path)


def rejections(outcome: Outcome) -> list[tuple[str, str]]:
    return [(one.row_id, one.reason) for one in outcome.rejected]


@pytest.mark.parametrize("node", ["letters", "slowly", "together"])
def test_a_unit_comes_to_the_same_as_in_the_process_itself(site: Site, node: str) -> None:
    texts = ("ab", "drop", "cd") + (("raise",) if node != "slowly" else ())
    assert site.outcome(*texts, node=node) == anyio.run(process, site.plan, site.unit(*texts, node=node), None)


def test_a_function_sees_no_password_in_its_environment(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHAINETTE_REDIS_URL", "redis://:CANARY@127.0.0.1:1/0")
    monkeypatch.setenv("CHAINETTE_FLEET_KEY", "CANARY")
    monkeypatch.setenv("MY_API_KEY", "needed")
    found = [json.loads(output.value)["text"] for output in site.outcome("environment").outputs]
    assert "MY_API_KEY" in found and not {"CHAINETTE_REDIS_URL", "CHAINETTE_FLEET_KEY"} & {*found}


def test_what_a_function_prints_and_reads_is_not_the_workers_talk(site: Site, capfd: pytest.CaptureFixture[str]) -> None:
    outcome = site.outcome("print", "ab")
    assert [output.row_id for output in outcome.outputs] == ["0~0", "0~1", "1~0", "1~1"]
    assert "noise from a function" in capfd.readouterr().err


@pytest.mark.long
@pytest.mark.parametrize(("text", "how"), [("segv", "signal SIGSEGV"), ("exit", "exit code 3"), ("fork", "exit code 4")])
def test_a_row_that_ends_its_process_twice_is_rejected_and_its_neighbours_finish(site: Site, text: str, how: str) -> None:
    outcome = site.outcome("ab", text, "cd")
    assert rejections(outcome) == [("1", Reason.POISON)] and how in outcome.rejected[0].message
    assert [output.row_id for output in outcome.outputs] == ["0~0", "0~1", "2~0", "2~1"]
    assert [row.row_id for unit in outcome.effects.units for row in unit.rows] == ["0~0", "0~1", "2~0", "2~1"]


def test_a_batch_runs_in_one_call_and_a_row_that_ends_its_process_costs_no_other(site: Site) -> None:
    whole = site.outcome("a", "b", "c", node="together")
    assert [json.loads(output.value)["text"] for output in whole.outputs] == ["a of 3", "b of 3", "c of 3"]
    broken = site.outcome("a", "die", "c", node="together")
    assert rejections(broken) == [("1", Reason.POISON)]
    assert [json.loads(output.value)["text"] for output in broken.outputs] == ["a of 1", "c of 1"]


@pytest.mark.long
@pytest.mark.parametrize("text", ["die", "interrupt"])
def test_a_coroutine_that_ends_its_process_is_found_too(site: Site, text: str) -> None:
    assert rejections(site.outcome("ab", text, "cd", node="slowly")) == [("1", Reason.POISON)]


def test_a_function_that_interrupts_itself_costs_its_row_only(site: Site) -> None:
    assert rejections(site.outcome("ab", "interrupt", "cd")) == [("1", Reason.APPLY_ERROR)]


def test_a_unit_that_is_cancelled_while_its_process_starts_leaves_none(site: Site) -> None:
    async def cancelled(turns: int) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(site.run, "ab")
            for _ in range(turns):
                await anyio.lowlevel.checkpoint()
            group.cancel_scope.cancel()
        await site.children.aclose()
        assert not children(os.getpid(), "function_child")

    for turns in range(1, 12):
        run_loop(cancelled, turns)


@pytest.mark.long
def test_one_death_costs_no_row(site: Site) -> None:
    assert not site.outcome("ab", "once").rejected
    (site.path / "died").unlink()
    assert not site.outcome("once").rejected


def test_a_function_that_takes_its_time_keeps_no_other_unit_waiting(site: Site) -> None:
    async def both() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(site.run, "wait")
            outcome = await site.run("ab")
            assert len(outcome.outputs) == 2
            (site.path / "go").touch()

    site.go(both)


def test_processes_start_when_they_are_needed_and_are_used_again(site: Site) -> None:
    async def three() -> list[bytes]:
        assert not site.children._all
        found = [await site.run("calls") for _ in range(3)]
        assert len(site.children._all) == 1
        return [output.value for outcome in found for output in outcome.outputs]

    values = [json.loads(value)["text"] for value in site.go(three)]
    assert values[::2] == ["1", "2", "3"] and len({*values[1::2]}) == 1 and values[1] != str(os.getpid())


def test_a_chain_whose_files_changed_since_is_not_run_and_both_digests_are_said(site: Site) -> None:
    (site.path / "helper.py").write_text("WORD = 'other'\n")
    with pytest.raises(ChainDiffers, match=r"has digest \w{12} here, but \w{12} where"):
        site.outcome("ab")
    assert Chains(site.path, (), None).plan_of(site.info) is None


def test_a_process_that_does_not_come_up_is_no_rows_fault(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(EngineUnavailable, match="did not come up"):
        site.outcome("ab")


def test_a_unit_that_is_given_up_ends_its_process_and_another_takes_the_next(site: Site) -> None:
    async def give_up() -> int:
        with anyio.move_on_after(600) as scope:
            async with anyio.create_task_group() as group:
                group.start_soon(site.run, "hang")
                await anyio.to_thread.run_sync(until, site.hanging)
                scope.cancel()
        assert len((await site.run("ab")).outputs) == 2
        return int(site.hanging())

    pid = site.go(give_up)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_worker_that_is_killed_leaves_no_process_behind(site: Site) -> None:
    script = f"""
import anyio
from pathlib import Path
from tests.integration.test_functions import Site
site = Site(Path({str(site.path)!r}))
anyio.run(site.run, "hang")
"""
    worker = subprocess.Popen([sys.executable, "-c", script], env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})
    pid = int(until(site.hanging))
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    until(lambda: not Path(f"/proc/{pid}").exists())


ALARM = """
import asyncio, signal, time
from pydantic import BaseModel
from chainette import Chain, apply


class Text(BaseModel):
    text: str


def late(*_):
    raise TimeoutError("too slow")


@apply
def judge(item: Text) -> Text:
    signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, 60 if item.text != "slow" else 0.2)
    if item.text == "slow":
        time.sleep(120)
    if item.text == "loop":
        asyncio.run(asyncio.sleep(0))
    if item.text == "forgets":
        signal.setitimer(signal.ITIMER_REAL, 60)
        return item
    signal.setitimer(signal.ITIMER_REAL, 0)
    return item


chain = Chain(name="case", steps=[judge])
"""


def _judged(folder: Path, *more: str) -> tuple[int, dict[str, str]]:
    """Rows as `run` has them, and the messages of those that were rejected."""
    (folder / "chain.py").write_text(ALARM)
    texts = ["a", "slow", "loop", "forgets", "b"]
    (folder / "in.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    command = [sys.executable, "-m", "chainette", "run", "chain.py", "in.jsonl", "-o", "out", "--quiet", *more]
    subprocess.run(command, cwd=folder, capture_output=True, timeout=LONG, check=False)
    kept = [line for file in (folder / "out/judge").glob("*.jsonl") for line in file.read_text().splitlines()]
    rejected = (folder / "out/rejected/0.jsonl").read_text().splitlines()
    return len(kept), {row["row_id"]: row["message"] for row in map(json.loads, rejected)}


@pytest.mark.long
def test_a_function_in_a_process_of_its_own_may_bound_its_time_by_an_alarm(tmp_path: Path) -> None:
    kept, rejected = _judged(tmp_path, "--workers", "1")
    assert kept == 4
    assert rejected.keys() == {"1"} and "TimeoutError: too slow" in rejected["1"]


def test_a_function_of_a_local_run_that_sets_a_signal_is_told_why_it_cannot_and_what_to_do(tmp_path: Path) -> None:
    kept, rejected = _judged(tmp_path)
    assert kept == 0 and len(rejected) == 5
    assert all("called in threads, which cannot set signals: use `--workers 1`" in message for message in rejected.values())
