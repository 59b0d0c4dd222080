"""Runs that are interrupted can be resumed, and lose nothing."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio
import pytest

import chainette
from chainette.engine.base import Request
from chainette.errors import DiskError
from chainette.fleet.protocol.queue_values import Entry
from chainette.hooks import Hook
from chainette.io.rundir.event_log import EventLog
from chainette.io.rundir.event_types import Event, RunPaused, UnitCommitted
from chainette.io.rundir.live_roots import Item
from chainette.io.rundir.writer import RunWriter
from chainette.run.executor import resume
from chainette.run.local_sink import LocalSink
from tests.support.asking_chains import SAME, Watch, asking, events, flaky
from tests.support.chains import content, everything, texts
from tests.support.patience import LONG
from tests.support.scripted import scripted


def test_a_hook_that_raises_stops_the_run_and_costs_no_row(tmp_path: Path) -> None:
    def refuse(event: Event) -> None:
        if isinstance(event, UnitCommitted) and event.root == 2:
            raise RuntimeError("the hook is broken")

    chain = everything()
    expected = content(chain.run(texts(20), tmp_path / "whole"))
    with pytest.raises(RuntimeError, match="the hook is broken"):
        chain.run(texts(20), tmp_path / "run", hooks=(Watch(refuse),))
    assert content(resume(tmp_path / "run", chain)) == expected


@pytest.mark.parametrize("hook", ["event", "answers"])
def test_a_run_interrupted_by_the_keyboard_can_be_resumed(tmp_path: Path, hook: str) -> None:
    left = 5

    def interrupt(*_: object) -> None:
        nonlocal left
        left -= 1
        if not left:
            signal.raise_signal(signal.SIGINT)

    watch = Watch(on_event=interrupt) if hook == "event" else Watch(on_answers=interrupt)
    chain = everything()
    whole = chain.run(texts(40), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        chain.run(texts(40), tmp_path / "run", hooks=(watch,))
    last = events(tmp_path / "run")[-1]
    assert isinstance(last, RunPaused) and "interrupted" in last.reason
    result = resume(tmp_path / "run", chain)
    assert content(result) == content(whole)
    assert result.metadata["balanced"]


def test_a_cancelled_arun_keeps_finished_work_and_can_be_resumed(tmp_path: Path) -> None:
    with scripted(first=lambda request: SAME, second=flaky(0)) as scripts:
        chain = asking("first", "second")

        reached = asyncio.Event()

        async def wait(request: Request) -> str:
            reached.set()
            await anyio.sleep_forever()
            return SAME

        scripts["second"].answer = wait

        async def in_a_loop() -> None:
            task = asyncio.ensure_future(chain.arun(texts(8), tmp_path / "run"))
            await reached.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        asyncio.run(in_a_loop())
        assert scripts["second"].calls[-1] == "close"
        asked = len(scripts["first"].requests)
        scripts["second"].answer = lambda request: SAME
        result = resume(tmp_path / "run", chain)
        assert len(list(result.rows("second"))) == 8
        assert len(scripts["first"].requests) == asked == 8


def test_a_cancel_on_the_way_to_the_disk_loses_no_finished_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chain, take, taken = everything(), LocalSink.take, 0
    scopes: list[anyio.CancelScope] = []

    def taking(self: LocalSink) -> tuple[Sequence[Item], list[Entry]]:
        nonlocal taken
        group = take(self)
        taken += any(group)
        if taken == 4:
            scopes[0].cancel()
        return group

    async def in_a_scope() -> None:
        with anyio.CancelScope() as scope:
            scopes.append(scope)
            await chain.arun(texts(40), tmp_path / "run", hooks=(counting,))

    asked: list[str] = []
    counting = Hook()
    counting.on_answers = lambda step_id, requests, completions: asked.extend(one.label for one in requests)  # type: ignore[method-assign]
    whole = content(chain.run(texts(40), tmp_path / "whole"))
    with monkeypatch.context() as patched:
        patched.setattr(LocalSink, "take", taking)
        anyio.run(in_a_scope)
    assert scopes[0].cancelled_caught
    assert isinstance(events(tmp_path / "run")[-1], RunPaused)
    assert content(resume(tmp_path / "run", chain, hooks=(counting,))) == whole
    assert len(asked) == len(set(asked))


PROGRAM = """
import sys, time
from pydantic import BaseModel
from chainette import Chain, apply

class Text(BaseModel):
    text: str

def slow(item: Text) -> Text:
    print(item.text, flush=True)
    time.sleep(0.05)
    return item

chain = Chain(name="slow", steps=[apply(slow)], batch_size=200)
if __name__ == "__main__":
    chain.run([Text(text=str(number)) for number in range(400)], sys.argv[1], resume=True)
"""


def test_ctrl_c_ends_a_process_within_a_row_and_leaves_a_resumable_directory(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    environment = os.environ | {"PYTHONPATH": str(Path(chainette.__file__).parents[1])}
    with subprocess.Popen(
        [sys.executable, tmp_path / "program.py", tmp_path / "run"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        text=True,
    ) as process:
        assert process.stdout is not None
        seen = [process.stdout.readline() for _ in range(3)]
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=LONG)
    assert process.returncode == -signal.SIGINT and "KeyboardInterrupt" in errors
    assert len(seen) + len(rest.splitlines()) < 100
    last = events(tmp_path / "run")[-1]
    assert isinstance(last, RunPaused) and "interrupted" in last.reason


def test_a_disk_that_fills_stops_the_run_with_what_to_do_and_it_can_be_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain, calls = everything(), 0
    expected = content(chain.run(texts(20), tmp_path / "whole"))
    append = EventLog.append

    def full(self: EventLog, group: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls < 6:
            return append(self, group)
        os.write(self._file, b'{"type":"unit_committed","half a li')
        raise DiskError(f"no space left for {self.path}")

    with monkeypatch.context() as patched:
        patched.setattr(EventLog, "append", full)
        with pytest.raises(DiskError, match="no space left"):
            chain.run(texts(20), tmp_path / "run")
    assert content(resume(tmp_path / "run", chain)) == expected


def test_nothing_is_written_behind_a_commit_that_failed_half_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chain, commit, calls = everything(), RunWriter._write, 0
    expected = content(chain.run(texts(20), tmp_path / "whole"))

    def broken(self: RunWriter, *arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        written = commit(self, *arguments)
        if calls == 9:
            raise RuntimeError("rows are in the shard and not in the log")
        return written

    with monkeypatch.context() as patched:
        patched.setattr(RunWriter, "_write", broken)
        with pytest.raises(RuntimeError, match="rows are in the shard"):
            chain.run(texts(20), tmp_path / "run")
    assert calls == 9
    assert content(resume(tmp_path / "run", chain)) == expected


def test_a_stopped_run_leaves_no_file_open(tmp_path: Path) -> None:
    def refuse(event: Event) -> None:
        if isinstance(event, UnitCommitted):
            raise RuntimeError("stop")

    def opened() -> int:
        return sum("stopped" in str(entry.readlink()) for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink())

    with pytest.raises(RuntimeError, match="stop"):
        everything().run(texts(20), tmp_path / "stopped", hooks=(Watch(refuse),))
    assert opened() == 0
