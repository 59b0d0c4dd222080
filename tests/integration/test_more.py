"""`resume --more`: files that are appended to the input of a finished run."""

from __future__ import annotations

from pathlib import Path

import pytest

from chainette import Chain, RunResult, Step, apply, register_engine
from chainette.core.run_settings import Format
from chainette.engine.config import EngineRegistry, using_registry
from chainette.errors import InputError, RunDirectoryError, RunStopped
from chainette.hooks import Hook
from chainette.io.rundir.event_types import Event, UnitCommitted
from chainette.run import executor
from tests.support.chains import Text, Word
from tests.support.cli import Project


def both(item: Word) -> list[Word]:
    return [item, item]


FOLDERS = ("first", "both", "last", "flattened")


def chain() -> Chain:
    with using_registry(EngineRegistry()):
        register_engine("writer", "w", "simulated")
        first = Step(id="first", input_model=Text, output_model=Word, engine_name="writer", user_prompt="{{ text }}")
        last = Step(id="last", output_model=Word, engine_name="writer", user_prompt="{{ word }}")
        return Chain(name="case", steps=[first, apply(both), last], batch_size=8)


def file(path: Path, first: int, records: int) -> Path:
    path.write_text("".join(f'{{"text": "row {number}"}}\n' for number in range(first, first + records)))
    return path


def rows(result: RunResult) -> dict[str, list[str]]:
    return {step: sorted(str(row) for row in result.rows(step)) for step in FOLDERS}


@pytest.mark.parametrize("format", ["jsonl", "parquet", "csv"])
def test_appended_files_give_the_rows_of_a_run_over_all_files(tmp_path: Path, format: Format) -> None:
    files = [file(tmp_path / "a.jsonl", 0, 11), file(tmp_path / "b.jsonl", 11, 20), file(tmp_path / "c.jsonl", 31, 3)]
    chain().run(files[0], tmp_path / "out", format=format)
    executor.resume(tmp_path / "out", chain(), more=files[1])
    result = executor.resume(tmp_path / "out", chain(), more=[files[2]])
    assert (result.status, result.metadata["records"], result.metadata["balanced"]) == ("finished", 34, True)
    assert rows(result) == rows(chain().run(files, tmp_path / "whole", format=format))
    assert executor.resume(tmp_path / "out", chain()).status == "finished"


class StopAfter(Hook):
    def __init__(self, units: int) -> None:
        self.left = units

    def on_event(self, event: Event) -> None:
        self.left -= isinstance(event, UnitCommitted)
        if self.left < 0:
            raise RunStopped("enough")


@pytest.mark.parametrize("units", [0, 1, 3])
def test_a_run_that_stops_within_appended_files_is_resumed_as_any_other(tmp_path: Path, units: int) -> None:
    files = [file(tmp_path / "a.jsonl", 0, 11), file(tmp_path / "b.jsonl", 11, 20)]
    chain().run(files[0], tmp_path / "out")
    with pytest.raises(RunStopped, match="enough"):
        executor.resume(tmp_path / "out", chain(), more=files[1], hooks=(StopAfter(units),), window=8)
    with pytest.raises(RunDirectoryError, match="--more appends to a finished run, and this one is not"):
        executor.resume(tmp_path / "out", chain(), more=files[1])
    result = executor.resume(tmp_path / "out", chain())
    assert rows(result) == rows(chain().run(files, tmp_path / "whole"))


def test_rows_of_python_may_be_followed_by_a_file(tmp_path: Path) -> None:
    chain().run([{"text": "row 0"}], tmp_path / "out")
    result = executor.resume(tmp_path / "out", chain(), more=file(tmp_path / "b.jsonl", 1, 2))
    assert sorted(row["row_id"] for row in result.rows("first")) == ["0", "1", "2"]


def test_what_cannot_be_appended_is_refused_and_nothing_is_changed(tmp_path: Path) -> None:
    first, second = file(tmp_path / "a.jsonl", 0, 11), file(tmp_path / "b.jsonl", 11, 20)
    chain().run(first, tmp_path / "out")
    log = (tmp_path / "out/events.jsonl").read_bytes()
    with pytest.raises(InputError, match="twice"):
        executor.resume(tmp_path / "out", chain(), more=first)
    with pytest.raises(InputError, match=r"nowhere\.jsonl"):
        executor.resume(tmp_path / "out", chain(), more=tmp_path / "nowhere.jsonl")
    assert (tmp_path / "out/events.jsonl").read_bytes() == log
    chain().run(first, tmp_path / "limited", limit=5)
    with pytest.raises(RunDirectoryError, match="nothing can follow its input"):
        executor.resume(tmp_path / "limited", chain(), more=second)
    with first.open("a") as changed:
        changed.write('{"text": "late"}\n')
    with pytest.raises(InputError, match="it seems to have grown"):
        executor.resume(tmp_path / "out", chain(), more=second)


def test_the_command_appends_a_file(tmp_path: Path) -> None:
    project = Project(tmp_path, rows=3)
    assert project.chainette("run", "chain.py", "in.jsonl", "-o", "out", "--quiet").returncode == 0
    (tmp_path / "more.jsonl").write_text('{"text": "late"}\n')
    done = project.chainette("resume", "out", "--more", "more.jsonl")
    assert done.returncode == 0 and "4 of 4" in project.chainette("status", "out").stdout, done.stdout + done.stderr
    assert project.ids("out", "extract") == ["0", "1", "2", "3"]
    told = project.chainette("resume", "out", "--more", "more.jsonl", "--from", "grade")
    assert told.returncode == 2 and "give one after the other" in told.stderr
