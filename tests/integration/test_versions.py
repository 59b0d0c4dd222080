"""`--from` and `--retry` keep the directory they replace; `rollback` swaps with the newest that is kept."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from chainette import Chain, SamplingParams, Step, apply
from chainette.core.run_settings import Format
from chainette.engine.base import Completion, Request
from chainette.errors import EngineUnavailable, RunDirectoryError, RunDirectoryInUse, RunStopped
from chainette.io.rundir.event_log import EventLog
from chainette.io.rundir.open import read_state
from chainette.io.rundir.paths import RunDir
from chainette.io.rundir.result import RunResult
from chainette.io.rundir.versions import version_numbers
from chainette.run.executor import resume, retry_rejected, rollback
from tests.support.chains import Text, Word, content, texts
from tests.support.scripted import Script, row_of, scripted

FORMATS = pytest.mark.parametrize("format", ["jsonl", "parquet", "csv"])

ROWS = 20


def files(directory: Path) -> dict[str, bytes]:
    """Every file of a directory but for its versions."""
    paths = (path for path in sorted(directory.rglob("*")) if path.is_file())
    names = {str(path.relative_to(directory)): path for path in paths}
    return {name: path.read_bytes() for name, path in names.items() if not name.startswith(".versions/")}


def numbers(directory: Path) -> list[int]:
    return version_numbers(RunDir(directory))


@pytest.fixture
def script() -> Iterator[Script]:
    """Refuses every third row; answers with the number of the call otherwise, so that no two runs are alike."""
    calls = iter(range(10**6))

    def answer(request: Request) -> str:
        return "no" if int(row_of(request)) % 3 == 0 else f'{{"word": "{next(calls)}"}}'

    with scripted(llm=answer) as scripts:
        yield scripts["llm"]


def loud(item: Word) -> Word:
    return Word(word=item.word.upper())


def chain(hidden: bool = False) -> Chain:
    sampling = SamplingParams(temperature=1)
    first = Step(id="first", input_model=Text, output_model=Word, engine_name="llm", max_attempts=1, sampling=sampling)
    second = Step(id="second", output_model=Word, engine_name="llm", max_attempts=1, yield_output=not hidden)
    return Chain(name="kept", batch_size=4, steps=[first, second, apply(loud)])


def begun(path: Path, format: Format = "jsonl") -> RunResult:
    return chain().run(texts(ROWS), path / "run", format=format, max_rows_per_file=6)


def answers_all(request: Request) -> str:
    return '{"word": "now"}'


@FORMATS
@pytest.mark.parametrize("how", ["from", "retry"])
def test_rollback_brings_back_every_byte_and_once_more_swaps_again(
    tmp_path: Path, script: Script, format: Format, how: str
) -> None:
    run = begun(tmp_path, format)
    before = files(run.dir)
    script.answer = answers_all
    again = resume(run.dir, chain(), from_step="second") if how == "from" else retry_rejected(run.dir, chain())
    after = files(run.dir)
    assert after != before and files(run.dir / ".versions/1") == before
    for expected, other, number in ((before, after, 2), (after, before, 3)):
        rollback(run.dir)
        assert files(run.dir) == expected and numbers(run.dir) == [number]
        assert files(run.dir / f".versions/{number}") == other
    assert content(resume(run.dir, chain())) == content(again)


@FORMATS
@pytest.mark.parametrize("hidden", [False, True])
def test_shards_that_are_open_when_they_are_replaced_stay_as_they_were(
    tmp_path: Path, script: Script, format: Format, hidden: bool
) -> None:
    answer = script.answer

    def dies(request: Request) -> Completion | str:
        if int(row_of(request)) >= 12:
            raise EngineUnavailable("gone")
        found = answer(request)
        assert isinstance(found, str)
        return found

    script.answer = dies
    with pytest.raises(RunStopped):
        chain(hidden).run(texts(ROWS), tmp_path / "run", format=format, max_rows_per_file=7, engine_patience=0)
    before = files(tmp_path / "run")
    assert any(name.endswith(".jsonl") and "first" in name for name in before)
    script.answer = answers_all
    again = retry_rejected(tmp_path / "run", chain(hidden))
    assert again.status == "finished" and len([*again.rows("first")]) == ROWS
    assert files(tmp_path / "run/.versions/1") == before
    rollback(tmp_path / "run")
    assert files(tmp_path / "run") == before
    script.answer = answer
    finished = resume(tmp_path / "run", chain(hidden))
    assert finished.status == "finished" and finished.metadata["balanced"]
    assert len([*finished.rows("rejected")]) == ROWS // 3 + 1
    assert content(resume(tmp_path / "run", chain(hidden))) == content(finished)


def test_the_last_two_versions_are_kept(tmp_path: Path, script: Script) -> None:
    run = begun(tmp_path)
    states = [files(run.dir)]
    for count in range(1, 5):
        resume(run.dir, chain(), from_step="first")
        states.append(files(run.dir))
        assert numbers(run.dir) == [number for number in (count - 1, count) if number]
        for number in numbers(run.dir):
            assert files(run.dir / f".versions/{number}") == states[number - 1]
    rollback(run.dir)
    assert numbers(run.dir) == [3, 5] and files(run.dir) == states[3] and files(run.dir / ".versions/5") == states[4]


def test_a_recomputation_that_is_interrupted_costs_no_old_row(tmp_path: Path, script: Script) -> None:
    run = begun(tmp_path)
    before, rows = files(run.dir), content(run)

    def dies(request: Request) -> str:
        if int(row_of(request)) > 9:
            raise EngineUnavailable("gone")
        return '{"word": "new"}'

    script.answer = dies
    with pytest.raises(RunStopped):
        resume(run.dir, chain(), from_step="first", engine_patience=0)
    assert files(run.dir / ".versions/1") == before
    rollback(run.dir)
    assert files(run.dir) == before and content(resume(run.dir, chain())) == rows
    rollback(run.dir)
    script.answer = answers_all
    assert {row["word"] for row in resume(run.dir, chain()).rows("first")} == {"new", "now"}


def test_shards_that_are_complete_are_shared_and_not_copied(tmp_path: Path, script: Script) -> None:
    run = begun(tmp_path)
    version = run.dir / ".versions/1"
    shard, log = (run.dir / "first/0.jsonl").stat().st_ino, (run.dir / "events.jsonl").stat().st_ino
    resume(run.dir, chain(), from_step="second")
    assert (run.dir / "first/0.jsonl").stat().st_ino == (version / "first/0.jsonl").stat().st_ino == shard
    assert (version / "events.jsonl").stat().st_ino == log != (run.dir / "events.jsonl").stat().st_ino


def test_a_file_system_without_hard_links_gets_copies(tmp_path: Path, script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **keys: object) -> None:
        raise OSError("no links here")

    run = begun(tmp_path)
    before = files(run.dir)
    monkeypatch.setattr(os, "link", refuse)
    resume(run.dir, chain(), from_step="second")
    rollback(run.dir)
    assert files(run.dir) == before


def test_rollback_without_a_version_or_beside_a_process_at_work_changes_nothing(tmp_path: Path, script: Script) -> None:
    run = begun(tmp_path)
    before = files(run.dir)
    with pytest.raises(RunDirectoryError, match="has no earlier version to restore"):
        rollback(run.dir)
    with pytest.raises(RunDirectoryError, match="nowhere holds no run"):
        rollback(tmp_path / "nowhere")
    assert files(run.dir) == before and not (tmp_path / "nowhere").exists()
    resume(run.dir, chain(), from_step="second")
    after = files(run.dir)
    with closing(EventLog(RunDir(run.dir).log)), pytest.raises(RunDirectoryInUse):
        rollback(run.dir)
    (run.dir / ".versions/1/events.jsonl").unlink()
    with pytest.raises(RunDirectoryError, match=r"\.versions/1 holds no run"):
        rollback(run.dir)
    assert files(run.dir) == after and numbers(run.dir) == [1] and not (tmp_path / ".run.fork").exists()


def test_a_link_to_a_directory_stays_one(tmp_path: Path, script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    run = begun(tmp_path / "disk")
    before = files(run.dir)
    (tmp_path / "out").symlink_to(run.dir)
    for _ in range(2):
        resume(tmp_path / "out", chain(), from_step="second")
    run.dir.rename(tmp_path / "disk/.run.old")  # as kill -9 in the middle of a swap would leave it
    shutil.copytree(tmp_path / "disk/.run.old", tmp_path / "disk/.run.fork")
    for _ in range(2):
        rollback(tmp_path / "out")
    assert (tmp_path / "out").is_symlink() and sorted(path.name for path in tmp_path.iterdir()) == ["disk", "out"]
    assert files(run.dir / ".versions/1") == before
    monkeypatch.chdir(run.dir)
    rollback(".")
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["run"]


def test_derived_files_that_a_killed_run_left_behind_are_written_again(tmp_path: Path, script: Script) -> None:
    run = begun(tmp_path)
    metadata = (run.dir / "metadata.json").read_bytes()
    resume(run.dir, chain(), from_step="second")
    (run.dir / ".versions/1/metadata.json").unlink()
    rollback(run.dir)
    assert (run.dir / "metadata.json").read_bytes() == metadata


@pytest.mark.parametrize("format", ["jsonl", "parquet"])
def test_readers_of_a_directory_see_none_of_its_versions(tmp_path: Path, script: Script, format: Format) -> None:
    duckdb, datasets, polars = (pytest.importorskip(name) for name in ("duckdb", "datasets", "polars"))
    run = begun(tmp_path, format)
    script.answer = answers_all
    run = resume(run.dir, chain(), from_step="first")
    glob = str(run.dir / f"first/*.{format}")
    scan: Callable[..., object] = polars.scan_ndjson if format == "jsonl" else polars.scan_parquet
    assert scan(glob).collect().height == ROWS  # type: ignore[attr-defined]
    assert duckdb.sql(f"select count(*) from '{glob}' where word = 'now'").fetchall() == [(ROWS,)]
    for name in ("first", "second", "loud", "flattened"):
        assert datasets.load_dataset(str(run.dir), name, cache_dir=str(tmp_path / "cache"))["train"].num_rows == ROWS
    assert read_state(RunDir(run.dir / ".versions/1"))[0].finished_rows < ROWS
