"""A run's reading of its inputs: several files, wrong names, odd cells. The rows come from real runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from chainette import Chain, apply
from chainette.errors import InputError
from chainette.hooks import Hook
from chainette.io.rundir.event_types import Event, UnitCommitted
from chainette.io.rundir.result import RunResult
from chainette.run.executor import resume
from tests.support.chains import Text, content, write_inputs


def upper(item: Text) -> Text:
    return Text(text=item.text.upper())


CHAIN = Chain(name="inputs", steps=[apply(upper)], batch_size=3)


def read(result: RunResult, step: str = "upper") -> list[tuple[str, str]]:
    """(row id, text) in the order of the ids."""
    return sorted(((row["row_id"], row["text"]) for row in result.rows(step)), key=lambda row: int(row[0]))


def test_several_inputs_are_one_run_whose_row_ids_number_on(tmp_path: Path) -> None:
    paths: list[Any] = [write_inputs(tmp_path / "b.jsonl", 4), str(write_inputs(tmp_path / "a.jsonl", 3, bad=(1,)))]
    result = CHAIN.run(paths, tmp_path / "run")
    assert [row_id for row_id, _ in read(result)] == ["0", "1", "2", "3", "4", "6"]
    (bad,) = result.rows("rejected")
    assert (bad["row_id"], bad["line"], bad["message"]) == ("5", 2, "a.jsonl:2: text: Field required")
    assert result.metadata["records"] == 7 and result.metadata["balanced"]


class _Stop(Hook):
    def on_event(self, event: Event) -> None:
        if isinstance(event, UnitCommitted) and event.root == 2:
            raise RuntimeError("stopped here")


@pytest.mark.parametrize("inputs", ["several", "folder", "pattern"])
def test_a_run_over_several_files_is_resumed_where_it_stopped(tmp_path: Path, inputs: str) -> None:
    shards = [write_inputs(tmp_path / f"shards/{number}.jsonl", number) for number in (9, 10)]
    given: Any = {"several": shards, "folder": tmp_path / "shards", "pattern": str(tmp_path / "shards" / "*.jsonl")}[inputs]
    expected = content(CHAIN.run(given, tmp_path / "whole"))
    with pytest.raises(RuntimeError, match="stopped here"):
        CHAIN.run(given, tmp_path / "run", hooks=(_Stop(),))
    assert content(resume(tmp_path / "run", CHAIN)) == expected


def test_a_file_added_to_a_folder_is_a_changed_input(tmp_path: Path) -> None:
    write_inputs(tmp_path / "shards/1.jsonl", 20)
    with pytest.raises(RuntimeError, match="stopped here"):
        CHAIN.run(tmp_path / "shards", tmp_path / "run", hooks=(_Stop(),))
    write_inputs(tmp_path / "shards/2.jsonl", 1)
    with pytest.raises(InputError, match="has changed since the run"):
        resume(tmp_path / "run", CHAIN)


def test_the_rows_of_one_run_are_the_input_of_the_next(tmp_path: Path) -> None:
    first = CHAIN.run([{"text": f"t{n}"} for n in range(10)], tmp_path / "first", max_rows_per_file=4)
    second = CHAIN.run(tmp_path / "first" / "upper", tmp_path / "second")
    assert sorted(text for _, text in read(second)) == sorted(text for _, text in read(first))
    assert len(read(second)) == 10


def test_standard_input_among_files_is_refused(tmp_path: Path) -> None:
    path = write_inputs(tmp_path / "a.jsonl", 1)
    with pytest.raises(InputError, match=r"- \(standard input\) cannot be read together with files"):
        CHAIN.run([str(path), "-"], tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_file_without_a_header_is_refused_and_leaves_no_directory(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("hello,1\nworld,2\n")
    with pytest.raises(
        InputError, match=r"none of its columns is a field of Text \('text'\): it has 'hello', '1'; is the first"
    ):
        CHAIN.run(tmp_path / "in.csv", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_rows_of_python_are_json_whatever_they_hold(tmp_path: Path) -> None:
    rows = [{"text": "a;b\tc|d"}, {"text": "\r\n\x00\ufeff"}, {"text": "sep=;"}]
    assert [text for _, text in read(CHAIN.run(rows, tmp_path / "run"))] == [row["text"].upper() for row in rows]
