"""Runs whose engines do not answer, and runs whose engines share a device."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from chainette import Branch, Chain, Step, apply, register_engine
from chainette.engine.base import Completion, Done, Request
from chainette.engine.config import EngineRegistry, using_registry
from chainette.errors import EngineConfigError, EngineRefused, EngineUnavailable, RunStopped
from chainette.fleet.memory.memory_queue import MemoryQueue
from chainette.fleet.protocol.queue_values import Claim
from chainette.io.rundir.event_types import AnswersDiscarded, EngineLoaded, EngineReleased, RunPaused, UnitRetried
from chainette.run.executor import resume
from tests.support.asking_chains import SAME, asking, events, flaky
from tests.support.chains import Text, Word, content, finished, texts, write_inputs
from tests.support.scripted import ScriptedEngine, ask_of, row_of, scripted

# -- engines that do not answer


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
def test_an_engine_that_refuses_after_answers_is_tried_again_until_patience_ends(tmp_path: Path) -> None:
    refusals = 3

    def answer(request: Request) -> str:
        nonlocal refusals
        if row_of(request) == "7" and refusals:
            refusals -= 1
            raise EngineRefused("402: no credit")
        return SAME

    with scripted(llm=answer):
        assert len(list(asking("llm").run(texts(10), tmp_path / "run").rows("llm"))) == 10
        refusals = 10_000
        with pytest.raises(RunStopped, match=r"engine 'llm' has not answered for .* 402: no credit"):
            asking("llm").run(texts(10), tmp_path / "stopped", engine_patience=0.05)


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
    monkeypatch.setattr("chainette.run.held_unit._PART", 0.0)
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
