"""Columns of the input that fill fields of other names: `columns={"text": "body"}` and `--columns text=body`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pytest
from pydantic import BaseModel, ConfigDict, Field

from chainette import Chain, apply, open_run
from chainette.errors import InputError
from chainette.hooks import Hook
from chainette.io.inputs.locate import open_input
from chainette.io.inputs.renaming import Renaming
from chainette.io.inputs.validate import InputModel
from chainette.io.rundir.event_types import Event, UnitCommitted
from chainette.run.executor import resume
from tests.support.cli import Project


class Post(BaseModel):
    text: str
    stars: int = 0


def same(item: Post) -> Post:
    return item


CHAIN = Chain(name="posts", steps=[apply(same)], batch_size=2)

#: `text` is a column of another meaning.
ROWS: list[dict[str, Any]] = [{"body": f"b{at}", "text": None, "rating": at, "sku": f"s{at}"} for at in range(5)]
COLUMNS = {"text": "body", "stars": "rating"}
READ = [(str(at), f"b{at}", at) for at in range(5)]


def jsonl(folder: Path) -> Path:
    path = folder / "in.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def csv(folder: Path) -> Path:
    pl.DataFrame(ROWS).write_csv(folder / "in.csv")
    return folder / "in.csv"


def parquet(folder: Path) -> Path:
    pl.DataFrame(ROWS).write_parquet(folder / "in.parquet")
    return folder / "in.parquet"


def read(directory: Path) -> list[tuple[str, str, int]]:
    rows = open_run(directory).rows("same")
    return sorted((row["row_id"], row["text"], row["stars"]) for row in rows)


@pytest.mark.parametrize("given", [jsonl, csv, parquet, lambda _: pd.DataFrame(ROWS), lambda _: ROWS, lambda _: iter(ROWS)])
def test_every_kind_of_input_fills_fields_from_other_columns(tmp_path: Path, given: Any) -> None:
    result = CHAIN.run(given(tmp_path), tmp_path / "out", columns=COLUMNS, key="sku")
    assert read(tmp_path / "out") == READ
    assert sorted(row["_key"] for row in result.rows("same")) == [f"s{at}" for at in range(5)]
    found = [row["same"]["text"] for rows in CHAIN.run_iter(given(tmp_path), columns=COLUMNS) for row in rows]
    assert sorted(found) == [text for _, text, _ in READ]


class _Stop(Hook):
    def on_event(self, event: Event) -> None:
        if isinstance(event, UnitCommitted):
            raise RuntimeError("stopped here")


def test_a_resume_reads_the_columns_of_the_log(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="stopped here"):
        CHAIN.run(jsonl(tmp_path), tmp_path / "out", columns=COLUMNS, hooks=(_Stop(),))
    resume(tmp_path / "out", CHAIN)
    assert read(tmp_path / "out") == READ


def test_run_and_plan_take_them_as_flags(tmp_path: Path) -> None:
    project = Project(tmp_path, rows=0)
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"body": f"b{at}"}) + "\n" for at in range(5)))
    words = ("chain.py", "in.jsonl", "--columns", "text=body", "--simulate")
    done = project.chainette("run", *words, "-o", "out")
    assert done.returncode == 0, done.stderr
    assert project.ids("out", "extract") == [str(at) for at in range(5)]
    planned = project.chainette("plan", *words, "--sample", "2", "-o", "planned")
    assert planned.returncode == 0 and "sample of 2 of 5 records" in planned.stdout, planned.stderr
    wrong = project.chainette("run", *words[:2], "--columns", "text=bdy", "--simulate", "-o", "wrong")
    assert (wrong.returncode, wrong.stderr.strip()) == (
        1,
        "error: --columns text=bdy: in.jsonl has no column 'bdy'; it has 'body'; did you mean 'body'?",
    )
    assert not (tmp_path / "wrong").exists()


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"text": "bodi"}, r"in\.\w+ has no column 'bodi'; it has .*'body'.*; did you mean 'body'\?"),
        ({"text": "zzz"}, r"has no column 'zzz'; it has 'body', [^;]*'sku'[^;]*$"),
        ({"txt": "body"}, r"--columns txt=body: Post has no field 'txt'; did you mean 'text'\?"),
        ("text", "columns is 'text'; write FIELD=COLUMN, such as text=body"),
        (["text=body", "text=sku"], "the field 'text' is filled from 'body' and from 'sku'; leave one out"),
    ],
)
@pytest.mark.parametrize("kind", [jsonl, csv])
def test_a_wrong_name_is_told_with_the_columns_before_anything_is_made(
    tmp_path: Path, kind: Any, columns: Any, words: str
) -> None:
    with pytest.raises(InputError, match=words):
        CHAIN.run(kind(tmp_path), tmp_path / "out", columns=columns)
    assert not (tmp_path / "out").exists()


def test_an_input_without_any_known_column_names_the_way_to_rename(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("body\nb\n")
    with pytest.raises(InputError, match=r"it has 'body'.*--columns text=body"):
        CHAIN.run(tmp_path / "in.csv", tmp_path / "out")


def test_a_renamed_column_loses_its_name_and_the_others_keep_theirs() -> None:
    class Whole(BaseModel):
        model_config = ConfigDict(extra="allow")

        a: int = Field(alias="A")

    assert Renaming({"A": "b", "c": "b"}).apply({"A": 1, "b": 2, "d": 4}) == {"d": 4, "A": 2, "c": 2}
    assert Renaming({"a": "b", "b": "a"}).apply({"a": 1, "b": 2}) == {"a": 2, "b": 1}
    assert Renaming({"a": "b"}).apply({"a": 1}) == {}
    source = next(iter(open_input(Path(__file__).parent.parent / "golden/inputs.jsonl").records()))
    assert isinstance(source.data, bytes)
    dump, _ = InputModel(Whole, renaming=Renaming({"A": "n"})).validate(
        type(source)(index=0, line=1, data=b'{"n": 1, "A": "x", "e": [1.0]}')
    )
    assert json.loads(dump) == {"A": 1, "e": [1.0]}
