"""`open_run`: a run directory as rows and frames, without the code of its chain."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from pydantic import BaseModel

import chainette
from chainette import Chain, RunResult, apply
from chainette.errors import RunDirectoryError
from chainette.io.rundir.run_state import Status

FORMATS = ("jsonl", "csv", "parquet")


class Number(BaseModel):
    n: int


class Half(BaseModel):
    half: int | None
    even: bool | None
    tags: list[str]
    note: str


@apply
def halve(item: Number) -> Half:
    if item.n % 7 == 6:
        raise ValueError(f"<b>{item.n}</b> is unlucky")
    even = item.n % 2 == 0
    return Half(half=item.n // 2 if even else None, even=even or None, tags=["a"] * (item.n % 3), note=f"<{item.n}>")


def halves() -> Chain:
    return Chain(name="halves", steps=[halve], batch_size=4)


@pytest.fixture(params=FORMATS)
def result(tmp_path: Path, request: pytest.FixtureRequest) -> RunResult:
    """30 rows, of which 4 are rejected, opened anew from the directory."""
    halves().run([Number(n=n) for n in range(30)], tmp_path / "run", format=request.param, max_rows_per_file=9)
    return chainette.open_run(tmp_path / "run")


def expected() -> list[dict[str, Any]]:
    kept = (n for n in range(30) if n % 7 != 6)
    rows = ((n, halve.fn(Number(n=n)).model_dump()) for n in kept)
    return [{"row_id": str(n), "chain_input.n": n} | {f"halve.{name}": value for name, value in row.items()} for n, row in rows]


def test_rows_and_tables_are_those_that_the_chain_gave(result: RunResult) -> None:
    assert result.to_arrow().to_pylist() == expected()
    assert sorted(result.rows("flattened"), key=lambda row: int(row["row_id"])) == expected()
    assert {row["row_id"] for row in result.rejected} == {"6", "13", "20", "27"}
    assert result.counts["halve"]["rejected"] == 4 and result.status is Status.FINISHED


def test_pandas_keeps_whole_numbers_and_booleans_that_may_be_missing(result: RunResult) -> None:
    frame = result.to_pandas("halve")
    assert (frame["half"].dtype, frame["even"].dtype) == (pd.Int64Dtype(), pd.BooleanDtype())
    assert frame["row_id"].tolist() == [row["row_id"] for row in expected()]
    assert frame["half"].isna().sum() == 13 and frame["half"].max() == 14


def test_every_library_that_takes_arrow_streams_reads_a_run(result: RunResult) -> None:
    rows = expected()
    assert result.to_polars().to_dicts() == rows
    assert pl.DataFrame(result).to_dicts() == rows
    assert pa.table(result).to_pylist() == rows
    with duckdb.connect() as database:
        database.register("run", pa.table(result))
        assert database.execute('select count("halve.half"), count(*) from run').fetchone() == (13, 26)


def test_a_notebook_shows_counts_reasons_and_rows_as_text(result: RunResult) -> None:
    page = result._repr_html_()
    assert "finished, 26 rows from 30 records, 4 rejected" in page
    assert "<td>apply_error</td><td>4</td>" in page
    assert re.search(r"<td>&lt;\d+&gt;</td>", page) and not re.search(r"<\d+>", page)  # whichever rows were written first
    assert repr(result) == f"RunResult({str(result.dir)!r}: finished, 26 rows from 30 records, 4 rejected)"


def test_a_notebook_shows_no_command_and_no_reversed_text_of_a_row(tmp_path: Path) -> None:
    class Said(BaseModel):
        text: str

    def say(item: Number) -> Said:
        return Said(text="\x1b[2J\u202e<img src=x onerror=alert(1)>")

    page = Chain(name="says", steps=[apply(say)]).run([Number(n=1)], tmp_path / "run")._repr_html_()
    assert "\\x1b[2J\\u202e&lt;img" in page
    assert not {"\x1b", "\u202e"} & {*page} and "<img" not in page


def test_a_run_whose_rows_were_all_rejected_says_so_and_shows_them(tmp_path: Path) -> None:
    result = halves().run([Number(n=6)], tmp_path / "run")
    assert repr(result).endswith("finished, but no row reached the end: 0 rows from 1 record, 1 rejected)")
    assert "<th>message</th>" in result._repr_html_()
    assert chainette.open_run(tmp_path / "run").to_arrow().num_rows == 0


def test_a_notebook_shows_rows_of_the_last_step_without_flattened_ones_and_cuts_long_cells(tmp_path: Path) -> None:
    class Long(BaseModel):
        text: str

    def same(item: Long) -> Long:
        return item

    chain = Chain(name="long", steps=[apply(same)])
    page = chain.run([Long(text="x" * 100_000)], tmp_path / "run", flattened=False)._repr_html_()
    assert f"<td>{'x' * 299}…</td>" in page and len(page) < 2000


def test_a_stopped_run_is_read_as_far_as_it_is_durable(tmp_path: Path) -> None:
    halves().run([Number(n=n) for n in range(30)], tmp_path / "run")
    log = tmp_path / "run/events.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    kept = [index for index, line in enumerate(lines) if json.loads(line)["type"] == "unit_committed"][2]
    log.write_bytes(b"".join(lines[: kept + 1]))
    result = chainette.open_run(tmp_path / "run")
    assert result.status is Status.RUNNING
    ids = [int(row["row_id"]) for row in result.to_arrow("halve").to_pylist()]
    assert 8 <= len(ids) <= 12 and ids == sorted(ids)


def test_no_code_of_the_chain_is_imported(tmp_path: Path) -> None:
    (tmp_path / "chain.py").write_text("import sys\nfrom tests.integration.test_open_run import halves\nchain = halves()\n")
    halves().run([Number(n=1)], tmp_path / "run")
    code = "import sys, chainette; print(chainette.open_run(sys.argv[1]).to_polars('halve').height, 'chain' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "run")], capture_output=True, text=True, check=True)
    assert done.stdout == "1 False\n"


def test_what_is_not_there_is_named(tmp_path: Path, result: RunResult) -> None:
    with pytest.raises(RunDirectoryError, match="holds no run"):
        chainette.open_run(tmp_path / "nowhere")
    with pytest.raises(RunDirectoryError, match="no rows of 'halv'; it has halve, rejected, flattened"):
        result.to_arrow("halv")


def test_the_package_lists_its_names_and_its_version() -> None:
    assert set(chainette.__all__) < set(dir(chainette))
    assert chainette.__version__ and chainette.__version__[0].isdigit()
