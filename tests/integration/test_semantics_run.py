"""Ways to run, to stop and to go on, and the bounds of a run (docs/semantics.md)."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import anyio
import pytest

import chainette
from chainette import AsyncExecutor, Branch, Chain, Executor, RunResult, Step, apply, register_engine
from chainette.engine.base import Completion, Done, Request
from chainette.engine.config import EngineRegistry, using_registry
from chainette.errors import (
    DiskError,
    EngineConfigError,
    EngineRefused,
    EngineUnavailable,
    InputError,
    RunDirectoryError,
    RunDirectoryInUse,
    RunStopped,
)
from chainette.fleet.memory.memory_queue import MemoryQueue
from chainette.fleet.protocol.queue_values import Claim, Entry
from chainette.hooks import Hook
from chainette.io.rundir.events import (
    AnswersDiscarded,
    EngineLoaded,
    EngineReleased,
    Event,
    RunPaused,
    UnitCommitted,
    UnitRetried,
)
from chainette.io.rundir.live_roots import Item
from chainette.io.rundir.log import EventLog, read_log
from chainette.io.rundir.run_state import Status
from chainette.io.rundir.writer import RunWriter
from chainette.run.executor import resume
from chainette.run.local_sink import LocalSink
from tests.support.chains import Facts, Text, Word, content, everything, finished, texts, write_inputs
from tests.support.crash import copies
from tests.support.patience import LONG
from tests.support.scripted import ScriptedEngine, ask_of, row_of, scripted, user_text

SAME = '{"word": "same"}'


def asking(*ids: str, **keys: Any) -> Chain:
    """A chain of steps, each on the engine of its own name."""
    steps = [
        Step(id=one, input_model=Text if one == ids[0] else Word, output_model=Word, engine_name=one, **keys) for one in ids
    ]
    return Chain(name="asking", steps=steps, batch_size=4)


def upper(item: Text) -> Text:
    return Text(text=item.text.upper())


def python_only(batch_size: int = 4) -> Chain:
    return Chain(name="python_only", steps=[apply(upper)], batch_size=batch_size)


def events(path: Path) -> list[Event]:
    return [event for _, event in read_log(path / "events.jsonl")]


def threads() -> set[str]:
    """Threads that are not anyio's idle helpers."""
    return {thread.name for thread in threading.enumerate() if "AnyIO" not in thread.name}


class Watch(Hook):
    """Calls a function at each event, or at each answer."""

    def __init__(self, on_event: Any = lambda event: None, on_answers: Any = lambda: None) -> None:
        self._on_event, self._on_answers = on_event, on_answers

    def on_event(self, event: Event) -> None:
        self._on_event(event)

    def on_answers(self, step_id: str, requests: Any, completions: Any) -> None:
        self._on_answers()


# -- ways to run


def test_run_arun_and_the_executors_give_the_same_rows(tmp_path: Path) -> None:
    chain, inputs = everything(), texts(10)
    expected = content(chain.run(inputs, tmp_path / "run"))

    async def in_a_loop() -> list[RunResult]:
        return [await chain.arun(inputs, tmp_path / "arun"), await AsyncExecutor(chain).run(inputs, tmp_path / "async")]

    results = [*anyio.run(in_a_loop), Executor(chain).run(inputs, tmp_path / "executor")]
    assert [content(result) for result in results] == [expected] * 3
    assert all(result.status is Status.FINISHED and result.dir.is_dir() for result in results)


def test_run_works_inside_a_running_event_loop(tmp_path: Path) -> None:
    async def in_a_loop() -> RunResult:
        return python_only().run(texts(5), tmp_path / "run")

    assert len(list(asyncio.run(in_a_loop()).rows("upper"))) == 5


def test_an_error_reaches_the_caller_as_itself_inside_a_running_event_loop_too(tmp_path: Path) -> None:
    async def in_a_loop() -> None:
        python_only().run(tmp_path / "absent.jsonl", tmp_path / "run")

    with pytest.raises(InputError, match="no such file"):
        asyncio.run(in_a_loop())


def test_a_mistyped_input_leaves_no_directory_behind(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        python_only().run(tmp_path / "absent.jsonl", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_input_that_breaks_while_it_is_read_stops_the_run_resumably_and_keeps_what_was_read(tmp_path: Path) -> None:
    import gzip

    whole = gzip.compress("".join(f'{{"text": "{os.urandom(40).hex()}"}}\n' for _ in range(4000)).encode())
    path = tmp_path / "in.jsonl.gz"
    path.write_bytes(whole[: len(whole) - 2000])
    with pytest.raises(InputError, match="cannot be read on"):
        python_only(batch_size=100).run(path, tmp_path / "run")
    kept = len((tmp_path / "run" / "upper" / "0.jsonl").read_text().splitlines())
    assert kept >= 100  # at least a root; rows in flight are given up
    assert isinstance(events(tmp_path / "run")[-1], RunPaused)


def test_results_are_read_by_step_and_name_what_there_is(tmp_path: Path) -> None:
    result = python_only().run(texts(2), tmp_path / "run")
    assert sorted(row["text"] for row in result.rows("upper")) == ["TEXT NUMBER 0", "TEXT NUMBER 1"]
    with pytest.raises(RunDirectoryError, match="no rows of 'lower'; it has upper, rejected, flattened"):
        list(result.rows("lower"))


# -- run_iter


def test_run_iter_yields_finished_rows_only_and_no_empty_lists(tmp_path: Path) -> None:
    def refuse_low(item: Text) -> Text:
        if int(item.text.split()[-1]) < 4:
            raise ValueError("low")
        return item

    chain = Chain(name="iter", steps=[apply(refuse_low)], batch_size=4)
    batches = list(chain.run_iter(texts(10)))
    assert all(batches)
    assert sorted(int(row.row_id) for row in finished(iter(batches))) == [4, 5, 6, 7, 8, 9]
    assert finished(iter(batches))[0]["refuse_low"]["text"].startswith("text number")


def test_run_iter_gives_models_by_node(tmp_path: Path) -> None:
    node = apply(upper)
    (row,) = finished(Chain(name="iter", steps=[node]).run_iter(texts(1)))
    assert row[node] == Text(text="TEXT NUMBER 0")


def test_run_iter_writes_nothing_without_an_output_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", None)
    assert len(finished(python_only().run_iter(texts(9)))) == 9
    assert [path for path in tmp_path.rglob("*") if path.name != "temporary"] == []


def test_run_iter_with_an_output_dir_writes_what_run_writes(tmp_path: Path) -> None:
    chain, inputs = everything(), texts(12)
    expected = content(chain.run(inputs, tmp_path / "run"))
    rows = finished(chain.run_iter(inputs, tmp_path / "iter"))
    result = resume(tmp_path / "iter", chain)
    assert content(result) == expected
    assert {row.row_id for row in rows} == {row["row_id"] for row in result.rows("flattened")}


def test_a_caller_that_does_not_take_its_rows_holds_the_run_back() -> None:
    seen = 0

    def count(item: Text) -> Text:
        nonlocal seen
        seen += 1
        return item

    chain = Chain(name="held", steps=[apply(count)], batch_size=1)
    rows = chain.run_iter(texts(500), window=5)
    next(rows)
    seen_then = seen
    assert seen_then < 100
    assert len(finished(rows)) == 499


def test_closing_run_iter_early_stops_the_run_and_its_thread(tmp_path: Path) -> None:
    before, cancelled = threads(), threading.Event()

    async def answer(request: Request) -> str:
        if row_of(request) != "0":
            try:
                await anyio.sleep_forever()
            finally:
                cancelled.set()
        return SAME

    with scripted(llm=answer) as scripts:
        chain = Chain(
            name="closed", steps=[Step(id="ask", input_model=Text, output_model=Word, engine_name="llm")], batch_size=1
        )
        rows = chain.run_iter(texts(50), tmp_path / "run")
        assert [row.row_id for row in next(rows)] == ["0"]
        rows.close()  # type: ignore[attr-defined]
    assert cancelled.is_set()
    assert threads() == before
    assert scripts["llm"].calls[-1] == "close"
    assert isinstance(events(tmp_path / "run")[-1], RunPaused)


def test_an_error_in_a_run_reaches_the_iterator() -> None:
    def answer(request: Request) -> str:
        raise EngineRefused("401: no key")

    with scripted(llm=answer), pytest.raises(RunStopped, match="401: no key"):
        finished(asking("llm").run_iter(texts(3)))


# -- directories


def test_a_directory_that_holds_a_run_is_refused_with_the_command_that_resumes_it(tmp_path: Path) -> None:
    python_only().run(texts(2), tmp_path / "run")
    for again in (python_only().run, lambda *arguments: finished(python_only().run_iter(*arguments))):
        with pytest.raises(RunDirectoryError, match=rf"python_only.*finished.*`chainette resume {tmp_path / 'run'}`"):
            again(texts(2), tmp_path / "run")


def test_a_directory_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(RunDirectoryError, match=r"not empty and holds no run \(thesis\.tex\)"):
        python_only().run(texts(2), tmp_path)


def test_resume_true_goes_on_and_begins_where_there_is_nothing(tmp_path: Path) -> None:
    chain = python_only()
    first = chain.run(texts(4), tmp_path / "run", resume=True)
    again = chain.run(texts(4), tmp_path / "run", resume=True)
    assert content(first) == content(again)
    assert again.status is Status.FINISHED


def test_a_directory_in_use_is_refused_to_a_second_run(tmp_path: Path) -> None:
    chain = python_only()
    chain.run(texts(2), tmp_path / "done")

    def second(event: Event) -> None:
        if isinstance(event, UnitCommitted):
            with pytest.raises(RunDirectoryInUse, match="another process writes to it"):
                resume(tmp_path / "run", chain)

    chain.run(texts(2), tmp_path / "run", hooks=(Watch(second),))


def test_a_run_directory_may_be_resumed_from_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chain = python_only()
    chain.run(texts(2), tmp_path / "run")
    monkeypatch.chdir(tmp_path / "run")
    assert resume(".", chain).status is Status.FINISHED


# -- a step that keeps its rows to itself


def hidden_chain() -> Chain:
    with using_registry(EngineRegistry()):
        register_engine("llm", "none", "simulated")
        return Chain(
            name="hidden",
            batch_size=4,
            steps=[
                Step(id="secret", input_model=Text, output_model=Facts, engine_name="llm", yield_output=False),
                Step(id="open", output_model=Word, engine_name="llm", user_prompt="{{ secret.name }}"),
            ],
        )


def test_a_hidden_step_is_seen_by_prompts_and_by_nothing_on_disk(tmp_path: Path) -> None:
    prompts: list[tuple[Request, Completion]] = []
    hook = Hook()
    hook.on_answers = lambda step_id, requests, completions: prompts.extend(zip(requests, completions, strict=True))  # type: ignore[method-assign]
    result = hidden_chain().run(texts(5), tmp_path / "run", hooks=(hook,))
    names = [json.loads(completion.text)["name"] for request, completion in prompts if request.schema_name == "secret"]
    assert sorted(user_text(request) for request, _ in prompts if request.schema_name == "open") == sorted(names)
    assert not (result.dir / "secret").exists() and not (result.dir / ".held").exists()
    assert list(next(result.rows("flattened"))) == ["row_id", "chain_input.text", "open.word"]
    assert "secret" not in (result.dir / "README.md").read_text()
    with pytest.raises(RunDirectoryError, match="no rows of 'secret'"):
        list(result.rows("secret"))


def test_the_rows_of_a_hidden_step_survive_a_crash(tmp_path: Path) -> None:
    chain = hidden_chain()
    whole = chain.run(texts(12), tmp_path / "whole")
    with copies(tmp_path / "run", tmp_path / "copies", every=5) as taken:
        chain.run(texts(12), tmp_path / "run")
    held = [copy for copy in taken if (copy / ".held").exists()]
    assert held
    for copy in held:
        again = Chain.run(chain, texts(12), copy, resume=True)
        assert content(again) == content(whole), copy.name
        assert again.metadata["usage"]["requests"] == whole.metadata["usage"]["requests"] == 24


# -- a run that stops itself


def test_too_many_rejections_pause_the_run_after_200_rows(tmp_path: Path) -> None:
    with scripted(llm=lambda request: SAME if int(row_of(request)) % 2 else "no") as scripts:
        chain = asking("llm", max_attempts=1)
        with pytest.raises(RunStopped, match=r"step 'llm' rejected \d+ of \d+ rows, which reaches --max-reject-rate 0.5"):
            chain.run(texts(2000), tmp_path / "run", max_reject_rate=0.5, window=20)
        asked = len(scripts["llm"].requests)
        assert 200 <= asked < 400
        assert isinstance(events(tmp_path / "run")[-1], RunPaused)
        result = resume(tmp_path / "run", chain)
        assert len(scripts["llm"].requests) == 2000
    assert result.metadata["rows_rejected"] == 1000 and result.metadata["balanced"]


def test_fewer_than_200_rows_or_a_lower_rate_pause_nothing(tmp_path: Path) -> None:
    with scripted(llm=lambda request: SAME if int(row_of(request)) % 2 else "no"):
        chain = asking("llm", max_attempts=1)
        assert chain.run(texts(150), tmp_path / "few", max_reject_rate=0.1).status is Status.FINISHED
        assert chain.run(texts(300), tmp_path / "lower", max_reject_rate=0.6).status is Status.FINISHED


# -- engines that do not answer


def flaky(failures: int, error: type[EngineUnavailable] = EngineUnavailable) -> Any:
    """Answers after it failed that many times."""
    left = [failures]

    def answer(request: Request) -> str:
        if left[0]:
            left[0] -= 1
            raise error("503: overloaded")
        return SAME

    return answer


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Backs off for hundredths of seconds."""
    monkeypatch.setattr("chainette.run.in_flight._FIRST_REST", 0.01)
    monkeypatch.setattr("chainette.run.in_flight._LONGEST_REST", 0.02)


@pytest.mark.usefixtures("impatient")
def test_an_engine_that_does_not_answer_is_tried_again_and_costs_no_row(tmp_path: Path) -> None:
    with scripted(llm=flaky(4)):
        result = asking("llm").run(texts(10), tmp_path / "run")
    assert len(list(result.rows("llm"))) == 10 and not list(result.rows("rejected"))
    assert result.metadata["units_retried"] == sum(isinstance(event, UnitRetried) for event in events(result.dir)) == 4
    assert {row["_attempts"] for row in result.rows("llm")} == {1}


@pytest.mark.usefixtures("impatient")
def test_an_engine_that_never_answers_stops_the_run_once_patience_ends_and_it_can_be_resumed(tmp_path: Path) -> None:
    with scripted(llm=flaky(10_000)) as scripts:
        chain = asking("llm")
        with pytest.raises(RunStopped, match=r"engine 'llm' has not answered for .* 503: overloaded"):
            chain.run(texts(10), tmp_path / "run", engine_patience=0.1)
        assert isinstance(events(tmp_path / "run")[-1], RunPaused)
        scripts["llm"].answer = lambda request: SAME
        result = resume(tmp_path / "run", chain)
    assert len(list(result.rows("llm"))) == 10 and not list(result.rows("rejected"))


def test_answers_that_were_asked_in_vain_are_counted_if_patience_ends(tmp_path: Path) -> None:
    def answer(request: Request) -> str:
        if ask_of(request) > 1:
            raise EngineUnavailable("gone")
        return "no JSON"

    with scripted(llm=answer), pytest.raises(RunStopped, match="gone"):
        asking("llm").run(texts(4), tmp_path / "run", engine_patience=0)
    [discarded] = [event for event in events(tmp_path / "run") if isinstance(event, AnswersDiscarded)]
    assert discarded.usage.requests == 4


@pytest.mark.usefixtures("impatient")
def test_an_engine_that_refuses_from_the_start_stops_the_run_at_once_and_rejects_nothing(tmp_path: Path) -> None:
    with scripted(llm=flaky(10_000, EngineRefused)) as scripts:
        chain = asking("llm")
        with pytest.raises(RunStopped, match="engine 'llm' refuses to answer: 503"):
            chain.run(texts(10), tmp_path / "run")
        scripts["llm"].answer = lambda request: SAME
        assert len(list(resume(tmp_path / "run", chain).rows("llm"))) == 10


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("lazy", [True, False])
def test_an_engine_that_is_not_ready_at_first_is_opened_again(tmp_path: Path, lazy: bool) -> None:
    with scripted({"lazy": lazy}, llm=lambda request: SAME) as scripts:
        scripts["llm"].open_errors = [EngineUnavailable("refused"), EngineUnavailable("refused")]
        result = asking("llm").run(texts(3), tmp_path / "run")
    assert scripts["llm"].calls[:6] == ["open", "close", "open", "close", "open", "generate"]
    assert len(list(result.rows("llm"))) == 3


def test_an_engine_that_can_never_open_stops_the_run_with_its_reason(tmp_path: Path) -> None:
    with scripted(llm=lambda request: SAME) as scripts:
        scripts["llm"].open_errors = [EngineConfigError("no such model file")]
        chain = asking("llm")
        with pytest.raises(EngineConfigError, match="no such model file"):
            chain.run(texts(3), tmp_path / "run")
        assert len(list(resume(tmp_path / "run", chain).rows("llm"))) == 3


@pytest.mark.usefixtures("impatient")
def test_one_dead_engine_does_not_hold_back_another(tmp_path: Path) -> None:
    first_done: list[str] = []

    def second(request: Request) -> str:
        if len(first_done) < 10:
            raise EngineUnavailable("not yet")
        return SAME

    def first(request: Request) -> str:
        first_done.append(row_of(request))
        return SAME

    with scripted(first=first, second=second):
        result = asking("first", "second").run(texts(10), tmp_path / "run")
    assert len(list(result.rows("second"))) == 10


def test_a_unit_that_was_put_off_goes_on_though_its_engine_answered_another_meanwhile(tmp_path: Path) -> None:
    failed = asyncio.Event()

    async def answer(request: Request) -> str:
        if row_of(request) == "0" and not failed.is_set():
            failed.set()
            raise EngineUnavailable("503: overloaded")
        await failed.wait()
        return SAME

    with scripted(llm=answer):
        result = asking("llm").run(texts(8), tmp_path / "run")
    assert len(list(result.rows("llm"))) == 8 and result.metadata["units_retried"] == 1


@pytest.mark.usefixtures("impatient")
def test_units_go_on_behind_one_whose_last_rows_were_committed_before_its_engine_was_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    async def generate(self: ScriptedEngine, requests: Sequence[Request], done: Done) -> list[Completion]:
        calls.append(len(requests))
        if len(calls) <= 2:
            raise EngineUnavailable("503: overloaded")  # so that it is tried with one unit
        for index in range(len(requests)):
            done(index, Completion(SAME))
        await asyncio.sleep(0.2)
        return [Completion(SAME)] * len(requests)

    monkeypatch.setattr(ScriptedEngine, "generate", generate)
    monkeypatch.setattr("chainette.run.unit_worker._PART", 0.0)
    monkeypatch.setattr("chainette.run.unit_worker._LOOK", 0.01)
    with scripted(llm=lambda request: SAME):
        result = asking("llm").run(texts(8), tmp_path / "run")
    assert len(list(result.rows("llm"))) == 8 and calls == [4] * 4


def test_an_engine_that_gives_fewer_answers_than_it_was_asked_for_stops_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def generate(self: ScriptedEngine, requests: Sequence[Request], done: Done | None = None) -> list[Completion]:
        return [Completion(SAME) for _ in requests[1:]]

    monkeypatch.setattr(ScriptedEngine, "generate", generate)
    with scripted(llm=lambda request: SAME), pytest.raises(RuntimeError, match="engine 'llm' gave 3 answers to 4 requests"):
        asking("llm").run(texts(8), tmp_path / "run")


# -- runs that are interrupted


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


# -- sizes


def fan(item: Text) -> list[Text]:
    return [Text(text=f"{item.text}.{index}") for index in range(50)]


@pytest.mark.parametrize("window", [1, 7, 64])
def test_a_fan_out_larger_than_the_window_finishes(tmp_path: Path, window: int) -> None:
    steps = [apply(fan), Branch("b", [apply(fan, id="again")]).join("more"), apply(upper)]
    result = Chain(name="fan", steps=steps, batch_size=3).run(texts(4), tmp_path / "run", window=window)
    assert result.counts["again"]["out"] == 4 * 50 * 50
    assert result.counts["upper"]["out"] == sum(1 for _ in result.rows("flattened")) == 200
    assert result.metadata["balanced"]


def test_batch_size_is_the_rows_of_a_root_and_the_most_of_a_unit(tmp_path: Path) -> None:
    sizes: list[int] = []
    hook = Hook()
    hook.on_generating = lambda engine, requests: sizes.append(requests)  # type: ignore[method-assign]
    with scripted(llm=lambda request: SAME):
        step = Step(id="ask", input_model=Text, output_model=Word, engine_name="llm")
        chain = Chain(name="sizes", steps=[apply(fan), step], batch_size=64)
        result = chain.run(texts(5), tmp_path / "run", batch_size=4, hooks=(hook,))
    assert max(sizes) == 4 and sum(sizes) == 250
    roots = {event.root for event in events(result.dir) if isinstance(event, UnitCommitted)}
    assert roots == {0, 1}


# -- engines that share a device


@contextmanager
def sharing(names: str, **settings: Any) -> Iterator[dict[str, Any]]:
    """Engines on one device that answer with their own name and check that they are alone."""
    open_now: set[str] = set()
    with scripted(
        {"exclusive": True} | settings, **{name: lambda request, name=name: json.dumps({"word": name}) for name in names}
    ) as scripts:
        yield scripts
    assert not open_now


def loads(path: Path) -> list[str]:
    found = []
    for event in events(path):
        if isinstance(event, EngineLoaded):
            found.append(f"+{event.engine}")
        elif isinstance(event, EngineReleased):
            found.append(f"-{event.engine}")
    return found


def phased(names: str, *, branches: bool = False) -> Chain:
    steps: list[Any] = [Step(id=f"s{index}{name}", output_model=Word, engine_name=name) for index, name in enumerate(names)]
    if branches:
        steps = [
            steps[0],
            [Branch("x", [apply(lambda w: [w, w], id="two", output_model=Word), steps[1]]).join("xs")],
            *steps[2:],
        ]
    return Chain(name="phased", steps=steps, batch_size=3, input_model=Text)


@pytest.mark.parametrize("branches", [False, True])
def test_engines_that_share_a_device_run_in_phases_and_open_once(tmp_path: Path, branches: bool) -> None:
    with sharing("abc") as scripts:
        result = phased("abc", branches=branches).run(texts(20), tmp_path / "run", window=4)
    assert loads(result.dir) == ["+a", "-a", "+b", "-b", "+c", "-c"]
    assert [script.calls.count("open") for script in scripts.values()] == [1, 1, 1]
    with sharing("abc", exclusive=False):
        plain = phased("abc", branches=branches).run(texts(20), tmp_path / "plain", window=4)
    assert content(result) == content(plain)
    assert result.metadata["balanced"]


@pytest.mark.parametrize("lazy", [True, False])
def test_an_engine_that_is_needed_twice_is_opened_twice_and_never_beside_another(tmp_path: Path, lazy: bool) -> None:
    with sharing("ab", lazy=lazy):
        result = phased("aba").run(texts(10), tmp_path / "run")
    assert loads(result.dir) == ["+a", "-a", "+b", "-b", "+a", "-a"]
    assert len(list(result.rows("s2a"))) == 10


def test_a_run_in_phases_can_be_stopped_in_any_phase_and_resumed(tmp_path: Path) -> None:
    with sharing("abc") as scripts:
        chain = phased("abc", branches=True)
        whole = content(chain.run(texts(20), tmp_path / "whole"))
        for engine in "abc":
            answer, left = scripts[engine].answer, [7]

            def stop(request: Request, answer: Any = answer, left: list[int] = left) -> Any:
                left[0] -= 1
                if left[0] < 0:
                    raise EngineRefused("gone") if left[0] < -1 else RuntimeError("dies")
                return answer(request)

            scripts[engine].answer = stop
            with pytest.raises(RuntimeError, match="dies"):
                chain.run(texts(20), tmp_path / engine)
            scripts[engine].answer = answer
            before = [len(script.requests) for script in scripts.values()]
            result = resume(tmp_path / engine, chain)
            assert content(result) == whole
            again = [len(script.requests) - count for script, count in zip(scripts.values(), before, strict=True)]
            assert sum(again) < 20 + 40 + 20


def test_bad_lines_are_recorded_once_although_phases_read_the_input_again(tmp_path: Path) -> None:
    inputs = write_inputs(tmp_path / "in.jsonl", 12, bad=(0, 5, 11))
    with sharing("abc"):
        result = phased("abc").run(inputs, tmp_path / "run")
    assert sorted(row["row_id"] for row in result.rows("rejected")) == ["0", "11", "5"]
    assert result.metadata["records"] == 12 and result.metadata["balanced"]


def test_run_iter_gives_the_same_rows_in_phases() -> None:
    with sharing("abc"):
        rows = finished(phased("abc").run_iter(texts(10)))
    assert sorted(row["s2c"]["word"] for row in rows) == ["c"] * 10


def test_engines_are_closed_when_the_run_ends_however_it_ends(tmp_path: Path) -> None:
    with scripted(llm=lambda request: SAME) as scripts:
        asking("llm").run(texts(2), tmp_path / "run")
    assert scripts["llm"].calls == ["open", "generate", "close"]
    assert loads(tmp_path / "run") == ["+llm", "-llm"]


def test_no_engine_is_opened_that_no_row_needs(tmp_path: Path) -> None:
    with scripted(llm=lambda request: SAME) as scripts:
        asking("llm").run([], tmp_path / "run")
    assert scripts["llm"].calls == []


def test_memory_is_bounded_where_rows_are_expanded_faster_than_they_are_answered(tmp_path: Path) -> None:
    """A function that makes 100 rows of one waits while the window is full; one unit of it may go beyond."""
    with using_registry(EngineRegistry()):
        register_engine("slow", "none", "simulated", latency=0.005, capacity=20)
        chain = Chain(
            name="wide",
            batch_size=2,
            steps=[apply(hundred), Step(id="ask", output_model=Text, engine_name="slow", user_prompt="{{ text }}")],
        )
    peak = 0

    def watched(self: MemoryQueue, claim: Claim, *arguments: Any) -> bool:
        nonlocal peak
        done = commit(self, claim, *arguments)
        peak = max(peak, self.live_rows(claim.run))
        return done

    commit = MemoryQueue.commit
    with mock.patch.object(MemoryQueue, "commit", watched):
        result = chain.run(texts(20), tmp_path / "run", window=300)
    assert result.metadata["rows_finished"] == 2000
    assert 300 < peak <= 300 + 200 + 20


def hundred(item: Text) -> list[Text]:
    return [Text(text=f"{item.text} {index}") for index in range(100)]
