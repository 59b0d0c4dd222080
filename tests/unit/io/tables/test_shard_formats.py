"""Sealed rows come back equal as JSON, in Parquet and in CSV."""

from __future__ import annotations

import datetime as dt
import errno
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, Json, computed_field

from chainette.errors import DamagedRun, DiskError
from chainette.io.rundir.folder_rows import cells_of
from chainette.io.tables import shard_formats
from chainette.io.tables.columns import arrow_schema, flattened_columns, step_columns
from chainette.io.tables.shard_formats import read_rows, seal_csv, seal_parquet, sealing_fault
from tests.support.tools import many

Seal = Callable[[Path, Path, pa.Schema], tuple[int, int]]
SEALS: dict[str, Seal] = {".parquet": seal_parquet, ".csv": seal_csv}
ADDED: list[tuple[str, Any]] = [("row_id", str), ("_attempts", int), ("_reasoning", str), ("_key", Any)]
BOTH = pytest.mark.parametrize("suffix", sorted(SEALS))


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Point(BaseModel):
    x: float
    label: str | None = None
    more: dict[str, int] = {}


class Everything(BaseModel):
    text: str = Field(alias="Text")
    maybe: str | None
    count: int | None
    ratio: float
    flag: bool | None
    colour: Colour
    kind: Literal["a", "b"] | None
    day: dt.date
    at: dt.datetime
    amount: Decimal
    raw: bytes
    point: Point | None
    points: list[Point]
    words: list[str | None] | None
    pair: tuple[int, int]
    mixed: tuple[int, str]
    scores: dict[str, float]
    either: int | str
    anything: Any
    nested: list[list[int]]
    parsed: Json[list[int]] | None = None

    @computed_field
    def length(self) -> int:
        return len(self.text)


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")
    name: str


class Empty(BaseModel):
    pass


class Tree(BaseModel):
    name: str
    children: list[Tree] = []


TEXT = st.text(st.characters(exclude_categories=["Cs"])) | st.sampled_from(
    ["", '"', '""', "a,b", "\r\n", "=1+1", " ", "null", "NA", "\x00"]
)
INT = st.integers(-(2**63), 2**63 - 1)
FLOAT = st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | INT | FLOAT | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
POINT = st.builds(Point, x=FLOAT, label=st.none() | TEXT, more=st.dictionaries(TEXT, INT, max_size=2))
EVERYTHING = st.builds(
    Everything,
    Text=TEXT,
    maybe=st.none() | TEXT,
    count=st.none() | INT,
    ratio=FLOAT,
    flag=st.none() | st.booleans(),
    raw=TEXT.map(str.encode),
    at=st.datetimes(timezones=st.none() | st.just(dt.timezone(dt.timedelta(hours=2)))),
    amount=st.decimals(allow_nan=False, allow_infinity=False),
    point=st.none() | POINT,
    points=st.lists(POINT, max_size=2),
    words=st.none() | st.lists(st.none() | TEXT, max_size=3),
    pair=st.tuples(INT, INT),
    mixed=st.tuples(INT, TEXT),
    scores=st.dictionaries(TEXT, FLOAT, max_size=2),
    either=INT | TEXT,
    anything=JSON,
    nested=st.lists(st.lists(INT, max_size=2), max_size=2),
    parsed=st.none() | st.lists(INT, max_size=2).map(json.dumps),
)


def _row(index: int, value: BaseModel, **added: Any) -> dict[str, Any]:
    return {"row_id": str(index), **json.loads(value.model_dump_json(by_alias=True, round_trip=True)), "_attempts": 1, **added}


def _seal(folder: Path, suffix: str, rows: list[dict[str, Any]], schema: pa.Schema) -> Path:
    journal, target = folder / "journal.jsonl", folder / f"0{suffix}"
    journal.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert SEALS[suffix](journal, target, schema) == (len(rows), target.stat().st_size)
    return target


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


@BOTH
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(values=st.lists(EVERYTHING, max_size=4), reasoning=st.none() | TEXT, key=JSON)
def test_sealed_rows_read_back_equal(
    folder: Path, suffix: str, values: list[Everything], reasoning: str | None, key: Any
) -> None:
    schema = arrow_schema(step_columns(Everything, ADDED))
    rows = [_row(index, value, _reasoning=reasoning, _key=key) for index, value in enumerate(values)]
    assert list(read_rows(_seal(folder, suffix, rows, schema), schema=schema)) == rows
    written = [json.dumps(row).encode() for row in rows]
    assert sealing_fault(written, schema, parquet=suffix == ".parquet") == ""


@pytest.mark.parametrize(
    ("suffix", "value", "said"),
    [
        (".parquet", b'{"nome":"a"}', "no column 'nome'"),
        (".csv", b'{"nome":"a"}', "no column 'nome'"),
        (".parquet", b'{"x":"a text"}', "column 'x' is double"),
        (".parquet", b'{"x":' + 5000 * b"9" + b"}", "out of range"),
        (".csv", b'{"x":' + 5000 * b"9" + b"}", "out of range"),
    ],
)
def test_a_row_that_no_shard_can_hold_is_detected_before_it_is_written(suffix: str, value: bytes, said: str) -> None:
    schema = arrow_schema(step_columns(Point, [("row_id", str)]))
    assert sealing_fault([b'{"x":1.5}'], schema, parquet=suffix == ".parquet") == ""
    assert said in sealing_fault([b'{"x":1.5}', value], schema, parquet=suffix == ".parquet")


@BOTH
def test_empty_text_and_null_are_told_apart(tmp_path: Path, suffix: str) -> None:
    class Words(BaseModel):
        one: str | None
        many: list[str | None]

    schema = arrow_schema(step_columns(Words, [("row_id", str)]))
    rows = [
        {"row_id": str(n), "one": one, "many": many} for n, (one, many) in enumerate([("", [""]), (None, [None]), ("null", [])])
    ]
    assert list(read_rows(_seal(tmp_path, suffix, rows, schema), schema=schema)) == rows


@BOTH
def test_fields_that_an_open_model_does_not_list_are_kept(tmp_path: Path, suffix: str) -> None:
    schema = arrow_schema(step_columns(Open, ADDED))
    rows = [
        _row(0, Open(name="a"), _reasoning=None, _key=1),
        _row(1, Open.model_validate({"name": "b", "x": [1]}), _reasoning=None, _key=2),
    ]
    assert list(read_rows(_seal(tmp_path, suffix, rows, schema), schema=schema)) == rows


@BOTH
def test_a_model_without_fields_and_a_recursive_one_can_be_sealed(tmp_path: Path, suffix: str) -> None:
    class Both(BaseModel):
        empty: Empty
        tree: Tree

    schema = arrow_schema(step_columns(Both, [("row_id", str)]))
    tree = {"name": "a", "children": [{"name": "b", "children": []}]}
    rows = [{"row_id": "0", "empty": {}, "tree": tree}]
    assert list(read_rows(_seal(tmp_path, suffix, rows, schema), schema=schema)) == rows


@BOTH
def test_a_journal_without_rows_gives_a_shard_with_all_columns(tmp_path: Path, suffix: str) -> None:
    schema = arrow_schema(step_columns(Everything, ADDED))
    target = _seal(tmp_path, suffix, [], schema)
    assert list(read_rows(target, schema=schema)) == []
    names = pq.read_schema(target).names if suffix == ".parquet" else target.read_text().strip().split(",")
    assert names == ["row_id", "Text", *list(Everything.model_fields)[1:], "_attempts", "_reasoning", "_key"]


@BOTH
def test_any_slice_can_be_read_without_the_rest(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_formats, "_BATCH_ROWS", 3)
    schema = arrow_schema(step_columns(Open, [("row_id", str)]))
    rows = [{"row_id": str(n), "name": f"n{n}"} for n in range(10)]
    target = _seal(tmp_path, suffix, rows, schema)
    for start, count in [(0, 1), (2, 3), (3, 3), (8, 5), (10, 1), (4, None), (5, 0)]:
        assert list(read_rows(target, start, count, schema)) == rows[start : None if count is None else start + count]


def test_a_journal_is_read_like_a_shard(tmp_path: Path) -> None:
    (tmp_path / "0.jsonl").write_text('{"row_id":"0"}\n{"row_id":"1"}\n{"row_id":"2"}\n')
    assert list(read_rows(tmp_path / "0.jsonl", 1, 1)) == [{"row_id": "1"}]


def test_types_are_those_of_the_dump() -> None:
    schema = arrow_schema(step_columns(Everything, ADDED))
    types = {field.name: str(field.type) for field in schema}
    assert types["Text"] == types["at"] == types["day"] == types["amount"] == types["colour"] == types["raw"] == "string"
    assert types["count"] == types["_attempts"] == "int64"
    assert types["ratio"] == "double"
    assert types["point"] == "struct<x: double, label: string, more: string>"
    assert types["nested"] == "list<element: list<element: int64>>"
    assert types["scores"] == types["either"] == types["anything"] == types["mixed"] == "string"
    assert "length" not in types
    assert all(field.nullable for field in schema)


def test_flattened_has_a_column_per_field_and_one_for_a_list_join() -> None:
    schema = arrow_schema(
        flattened_columns({"chain_input": Open, "extract": Point, "grades": list[Point]}, [("row_id", str), ("_key", str)])
    )
    assert schema.names == [
        "row_id",
        "chain_input.name",
        "extract.x",
        "extract.label",
        "extract.more",
        "grades",
        "_extra",
        "_key",
    ]
    assert str(schema.field("grades").type).startswith("list<element: struct<")


def test_a_value_that_does_not_fit_names_the_line_and_the_column(tmp_path: Path) -> None:
    schema = arrow_schema(step_columns(None, [("row_id", str), ("line", int)]))
    with pytest.raises(DamagedRun, match=r"journal.jsonl:2: column 'line' is int64, but the row has \"x\""):
        _seal(tmp_path, ".parquet", [{"row_id": "0", "line": 1}, {"row_id": "1", "line": "x"}], schema)
    assert not (tmp_path / "0.parquet").exists()


@BOTH
def test_a_column_that_the_schema_lacks_is_never_lost(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(DamagedRun, match="no column 'new'"):
        _seal(tmp_path, suffix, [{"row_id": "0", "new": 1}], arrow_schema(step_columns(None, [("row_id", str)])))


@BOTH
def test_a_torn_journal_line_is_damage(tmp_path: Path, suffix: str) -> None:
    (tmp_path / "j.jsonl").write_text('{"row_id": "0"}\n{"row_id": ')
    with pytest.raises(DamagedRun, match=r"j.jsonl:2: not a row"):
        SEALS[suffix](tmp_path / "j.jsonl", tmp_path / "out", arrow_schema(step_columns(None, [("row_id", str)])))


@BOTH
def test_a_full_disk_is_a_disk_error(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "j.jsonl").write_text('{"row_id": "0"}\n')

    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskError):
        SEALS[suffix](tmp_path / "j.jsonl", tmp_path / "out", arrow_schema(step_columns(None, [("row_id", str)])))
    assert not (tmp_path / "out").exists()


@BOTH
def test_a_link_in_place_of_the_target_is_replaced_and_its_file_stays(tmp_path: Path, suffix: str) -> None:
    (tmp_path / "j.jsonl").write_text('{"row_id": "0"}\n')
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "out").symlink_to(tmp_path / "precious")
    SEALS[suffix](tmp_path / "j.jsonl", tmp_path / "out", arrow_schema(step_columns(None, [("row_id", str)])))
    assert (tmp_path / "precious").read_text() == "mine" and not (tmp_path / "out").is_symlink()


@BOTH
def test_a_byte_that_was_changed_is_damage_or_other_rows_but_never_an_error_of_a_library(tmp_path: Path, suffix: str) -> None:
    schema = arrow_schema(step_columns(Point, [("row_id", str)]))
    rows = [{"row_id": str(n), "x": n / 2, "label": "é, ü", "more": {"a": n}} for n in range(4)]
    target = _seal(tmp_path, suffix, rows, schema)
    data = target.read_bytes()
    refused = 0
    places = range(0, len(data), many(9, 5, 1))
    for at in places:
        target.write_bytes(data[:at] + bytes([data[at] ^ 128]) + data[at + 1 :])
        try:
            [*read_rows(target, schema=schema), *(cells_of(target) if suffix == ".csv" else ())]
        except DamagedRun as error:
            assert str(target) in str(error)
            refused += 1
    assert refused > len(places) / 4


def test_a_file_that_is_not_parquet_is_damage(tmp_path: Path) -> None:
    (tmp_path / "0.parquet").write_bytes(b"PAR1 torn")
    with pytest.raises(DamagedRun, match="not a complete Parquet file"):
        list(read_rows(tmp_path / "0.parquet"))


def test_csv_leaves_formula_characters_and_plain_text_alone(tmp_path: Path) -> None:
    schema = arrow_schema(step_columns(Open, [("row_id", str)]))
    target = _seal(tmp_path, ".csv", [{"row_id": "0", "name": "=SUM(A1)"}, {"row_id": "1", "name": 'a "b", c'}], schema)
    assert target.read_text() == 'row_id,name,_extra\n0,=SUM(A1),\n1,"a ""b"", c",\n'


def test_polars_duckdb_and_pandas_read_both_formats(tmp_path: Path) -> None:
    import duckdb
    import pandas
    import polars

    schema = arrow_schema(step_columns(Point, [("row_id", str)]))
    rows = [{"row_id": "0", "x": 0.5, "label": "é, ü", "more": {"a": 1}}, {"row_id": "1", "x": 2.0, "label": None, "more": {}}]
    for suffix, reads in {
        ".parquet": [polars.read_parquet, pandas.read_parquet],
        ".csv": [polars.read_csv, pandas.read_csv],
    }.items():
        target = _seal(tmp_path, suffix, rows, schema)
        for read in reads:
            assert list(read(target)["x"]) == [0.5, 2.0]
        assert duckdb.execute(f"SELECT label FROM '{target}' ORDER BY row_id").fetchall() == [("é, ü",), (None,)]
