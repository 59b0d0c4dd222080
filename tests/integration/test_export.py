"""Exports: the rows of a run as files for other tools, whole, sorted, and the same in every format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import duckdb
import fsspec
import pandas as pd
import polars as pl
import pyarrow.parquet as pq
import pytest
from pydantic import BaseModel

from chainette import Chain, RunResult, apply
from chainette.errors import RunDirectoryError
from chainette.io.tables import exported_files
from chainette.io.tables.exported_files import ExportFormat
from chainette.records import row_order
from tests.support.cli import Project


class Number(BaseModel):
    n: int


class Part(BaseModel):
    part: int
    note: str | None


@apply
def split(item: Number) -> list[Part]:
    return [Part(part=part, note="é,\n" if part else None) for part in range(item.n % 4)]


ROWS = 50


@pytest.fixture(scope="module", params=["jsonl", "csv", "parquet"])
def result(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> RunResult:
    chain = Chain(name="parts", steps=[split], batch_size=3)
    return chain.run(
        [Number(n=n) for n in range(ROWS)], tmp_path_factory.mktemp("runs") / "run", format=request.param, max_rows_per_file=7
    )


def expected() -> list[dict[str, Any]]:
    return [
        {"row_id": f"{n}~{part}", "part": part, "note": "é,\n" if part else None} for n in range(ROWS) for part in range(n % 4)
    ]


def read(files: list[Path]) -> list[dict[str, Any]]:
    match files[0].suffix:
        case ".jsonl":
            return [json.loads(line) for file in files for line in file.read_text().splitlines()]
        case ".parquet":
            return [row for file in files for row in pq.read_table(file).to_pylist()]
        case _:
            return [row for file in files for row in duckdb.read_csv(str(file), all_varchar=True).pl().to_dicts()]


@pytest.mark.parametrize("to", ["parquet", "jsonl"])
def test_a_sorted_export_has_every_row_once_in_the_order_of_ids(
    result: RunResult, tmp_path: Path, to: ExportFormat, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exported_files, "_SORTED_AT_ONCE", 10)  # several sorted runs that are merged
    files = result.export(tmp_path / "out", to, "split", ordered=True, rows_per_file=20)
    assert [file.name for file in files] == [f"train-{at:05}-of-00004.{to}" for at in range(4)]
    assert sorted((tmp_path / "out").iterdir()) == files  # nothing else is left
    assert read(files) == expected()


def test_an_export_in_the_order_of_the_shards_has_the_same_rows(result: RunResult, tmp_path: Path) -> None:
    files = result.export(tmp_path / "out", "csv", "split")
    found = [row | {"part": int(row["part"])} for row in read(files)]
    assert sorted(found, key=lambda row: row_order(row["row_id"])) == expected() and len(files) == 1


def test_an_export_for_hugging_face_is_a_dataset_with_a_card(result: RunResult, tmp_path: Path) -> None:
    result.export(tmp_path / "out", "hf", "split", ordered=True, rows_per_file=30)
    found = datasets.load_dataset(str(tmp_path / "out"), "split", split="train", cache_dir=str(tmp_path / "cache"))
    assert found.to_list() == expected()
    assert (tmp_path / "out/README.md").read_text().startswith("---\npretty_name: parts")


def test_a_frame_of_another_library_reads_the_files(result: RunResult, tmp_path: Path) -> None:
    result.export(tmp_path / "out", "parquet", "split", ordered=True, rows_per_file=30)
    assert pl.read_parquet(tmp_path / "out").to_dicts() == expected()
    assert pd.read_parquet(tmp_path / "out")["row_id"].tolist() == [row["row_id"] for row in expected()]


def test_a_run_without_rows_is_one_file_with_its_columns(tmp_path: Path) -> None:
    run = Chain(name="none", steps=[split]).run([Number(n=0)], tmp_path / "run")
    [file] = run.export(tmp_path / "out", "parquet", "split")
    assert pq.read_table(file).column_names == ["row_id", "part", "note"] and pq.read_table(file).num_rows == 0


def test_a_folder_with_files_and_an_unknown_format_are_refused(result: RunResult, tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("keep")
    with pytest.raises(RunDirectoryError, match="exists and is not an empty folder; name a new one"):
        result.export(tmp_path)
    with pytest.raises(RunDirectoryError, match="the format 'xlsx' is unknown; known: parquet, csv, jsonl, hf"):
        result.export(tmp_path / "out", "xlsx")  # type: ignore[arg-type]
    with pytest.raises(RunDirectoryError, match="has no rows of 'spilt'"):
        result.export(tmp_path / "out", step="spilt")


def test_the_command_writes_files_and_uploads_to_a_url(result: RunResult, tmp_path: Path) -> None:
    project = Project(tmp_path)
    done = project.chainette("export", str(result.dir), "split", "-o", "out", "--to", "jsonl", "--sorted")
    assert (done.returncode, done.stdout) == (0, "1 file in out\n"), done.stderr
    assert read(sorted((tmp_path / "out").iterdir())) == expected()
    url = f"file://{tmp_path}/bucket/here"
    again = project.chainette("export", str(result.dir), "split", "-o", url, "--to", "hf", "--sorted")
    assert again.returncode == 0, again.stderr
    system, path = fsspec.core.url_to_fs(url)
    assert read([Path(name) for name in system.glob(f"{path}/data/*.parquet")]) == expected()
    refused = project.chainette("export", str(result.dir), "-o", url)
    assert refused.returncode == 1 and "exists and is not empty; name a new folder" in refused.stderr
    unknown = project.chainette("export", str(result.dir), "-o", "nope://user:secret@host/x")
    assert unknown.returncode == 1 and "nope://host/x: cannot be written" in unknown.stderr and "secret" not in unknown.stderr
