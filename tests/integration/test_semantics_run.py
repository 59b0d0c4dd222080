"""Ways to run, to stop and to go on, and the bounds of a run (docs/semantics.md)."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from pathlib import Path

import anyio
import pytest
from chainette_workers.sink.local_fleet import LocalFleet

from chainette import AsyncExecutor, Branch, Chain, Executor, RunResult, Step, apply, register_engine
from chainette.engine.base import Completion, Request
from chainette.engine.config import EngineRegistry, using_registry
from chainette.errors import EngineRefused, InputError, RunDirectoryError, RunDirectoryInUse, RunStopped
from chainette.hooks import Hook
from chainette.io.rundir.event_types import Event, RunPaused, UnitCommitted
from chainette.io.rundir.run_state import Status
from chainette.run.executor import resume
from tests.support.asking_chains import SAME, Watch, asking, events
from tests.support.chains import Facts, Text, Word, content, everything, finished, texts
from tests.support.crash import copies
from tests.support.scripted import row_of, scripted, user_text


def upper(item: Text) -> Text:
    return Text(text=item.text.upper())


def python_only(batch_size: int = 4) -> Chain:
    return Chain(name="python_only", steps=[apply(upper)], batch_size=batch_size)


def threads() -> set[str]:
    """Threads that are not anyio's idle helpers."""
    return {thread.name for thread in threading.enumerate() if "AnyIO" not in thread.name}


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
    with pytest.raises(InputError, match="reading stopped"):
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


@pytest.mark.parametrize("directory", ["out", None])
def test_run_iter_and_stream_refuse_workers_whose_rows_they_would_not_give(tmp_path: Path, directory: str | None) -> None:
    place = tmp_path / directory if directory else None
    with pytest.raises(InputError, match="leave out drive"):
        next(python_only().run_iter(texts(3), place, drive=LocalFleet(1)))
    with pytest.raises(InputError, match="leave out drive"):
        next(python_only().stream(Text(text="a"), drive=LocalFleet(1)))
    assert not [*tmp_path.iterdir()]


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
