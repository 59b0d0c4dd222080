"""Parquet cells of every type: their values as the model gets them, and odd ones that cost their row only."""

from __future__ import annotations

import datetime as dt
import uuid
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import BaseModel, ConfigDict, create_model, model_validator

from chainette.errors import InputError
from chainette.io.inputs.locate import BadRecord, InputModel, open_input
from chainette.io.inputs.roots import Roots

_NS = 1_704_164_645_678_901_234
_AT = "2024-01-02T03:04:05.678901"


def _read(path: Path, model: type[BaseModel], key: str | None = None) -> list[Any]:
    """The dump of each record, decoded, or the message of its rejection."""
    rows = InputModel(model, key)
    found: list[Any] = []
    for record in open_input(path).records():
        try:
            found.append(msgspec.json.decode(rows.validate(record)[0]))
        except BadRecord as error:
            found.append(str(error))
    return found


def _values(path: Path, column: pa.Array, annotation: Any, config: ConfigDict | None = None) -> list[Any]:
    """The values of a column, read into a field of that type."""
    pq.write_table(pa.table({"value": column}), path / "a.parquet")
    model = create_model("In", __config__=config or ConfigDict(), value=(annotation, ...))
    return [row["value"] if isinstance(row, dict) else row for row in _read(path / "a.parquet", model)]


def _map(values: list[Any], kind: pa.DataType) -> pa.Array:
    return pa.array(values, pa.map_(pa.string(), kind))


_TYPES: dict[str, tuple[pa.Array, Any, Any]] = {
    "timestamp in ns": (pa.array([_NS], pa.timestamp("ns")), dt.datetime, _AT),
    "timestamp in ns with a zone": (
        pa.array([_NS], pa.timestamp("ns", "+05:30")),
        dt.datetime,
        "2024-01-02T08:34:05.678901+05:30",
    ),
    "timestamp in a zone nobody knows": (pa.array([_NS], pa.timestamp("ns", "Mars/Phobos")), dt.datetime, _AT + "Z"),
    "timestamp in s": (pa.array([0], pa.timestamp("s")), dt.datetime, "1970-01-01T00:00:00"),
    "list of timestamps in ns": (pa.array([[_NS]], pa.list_(pa.timestamp("ns"))), list[dt.datetime], [_AT]),
    "large list": (pa.array([[_NS]], pa.large_list(pa.timestamp("ns"))), list[dt.datetime], [_AT]),
    "fixed size list": (pa.array([[_NS]], pa.list_(pa.timestamp("ns"), 1)), tuple[dt.datetime], [_AT]),
    "struct of timestamps in ns": (
        pa.array([{"at": _NS}], pa.struct([("at", pa.timestamp("ns"))])),
        dict[str, dt.datetime],
        {"at": _AT},
    ),
    "map of timestamps in ns": (_map([[("at", _NS)]], pa.timestamp("ns")), dict[str, dt.datetime], {"at": _AT}),
    "map of lists of maps": (
        pa.array([[("a", [[("b", _NS)]])]], pa.map_(pa.string(), pa.list_(pa.map_(pa.string(), pa.timestamp("ns"))))),
        dict[str, list[dict[str, dt.datetime]]],
        {"a": [{"b": _AT}]},
    ),
    "struct of maps": (
        pa.array([{"scores": [("a", 1)]}], pa.struct([("scores", pa.map_(pa.string(), pa.int64()))])),
        dict[str, Any],
        {"scores": {"a": 1}},
    ),
    "map with whole numbers as keys": (pa.array([[(7, "a")]], pa.map_(pa.int64(), pa.string())), dict[int, str], {"7": "a"}),
    "duration in ns": (pa.array([1_500_000_001], pa.duration("ns")), dt.timedelta, "PT1.5S"),
    "list of durations": (pa.array([[1_500_000_001]], pa.list_(pa.duration("ns"))), list[dt.timedelta], ["PT1.5S"]),
    "time in ns": (pa.array([1_500_000_001], pa.time64("ns")), dt.time, "00:00:01.500000"),
    "time in ms": (pa.array([1_500], pa.time32("ms")), dt.time, "00:00:01.500000"),
    "date": (pa.array([dt.date(2024, 1, 2)]), dt.date, "2024-01-02"),
    "date64": (pa.array([dt.date(2024, 1, 2)], pa.date64()), dt.date, "2024-01-02"),
    "decimal": (pa.array([Decimal("1.10")]), Decimal, "1.10"),
    "decimal as float": (pa.array([Decimal("1.10")]), float, 1.1),
    "decimal256": (pa.array([Decimal("9" * 60)], pa.decimal256(70, 2)), Decimal, "9" * 60 + ".00"),
    "binary that is text": (pa.array([b"a\xc3\xa9"]), bytes, "aé"),
    "fixed size binary": (pa.array([b"ab"], pa.binary(2)), str, "ab"),
    "dictionary": (pa.array(["a"]).dictionary_encode(), str, "a"),
    "dictionary of timestamps": (pa.array([_NS], pa.timestamp("ns")).dictionary_encode(), dt.datetime, _AT),
    "large string": (pa.array(["a"], pa.large_string()), str, "a"),
    "string view": (pa.array(["a"], pa.string_view()), str, "a"),
    "list view": (pa.array([[1, 2]], pa.list_view(pa.int64())), list[int], [1, 2]),
    "null": (pa.nulls(1), str | None, None),
    "half float": (pa.array([1.5], pa.float16()), float, 1.5),
    "whole floats": (pa.array([2.0]), int, 2),
    "unsigned": (pa.array([2**63 - 1], pa.uint64()), int, 2**63 - 1),
    "uuid": (pa.array([uuid.UUID(int=1).bytes], pa.uuid()), uuid.UUID, str(uuid.UUID(int=1))),
    "json text": (pa.array(['{"a": 1}'], pa.json_()), dict[str, int], {"a": 1}),
    "bool8": (pa.ExtensionArray.from_storage(pa.bool8(), pa.array([1], pa.int8())), bool, True),
    "an extension type nobody knows": (
        pa.ExtensionArray.from_storage(pa.opaque(pa.int32(), "x", "y"), pa.array([1], pa.int32())),
        int,
        1,
    ),
}


@pytest.mark.parametrize("name", _TYPES)
def test_parquet_cells_of_every_type_are_read(tmp_path: Path, name: str) -> None:
    column, annotation, expected = _TYPES[name]
    assert _values(tmp_path, column, annotation) == [expected]
    if name not in ("decimal as float", "whole floats"):
        assert _values(tmp_path, column, annotation, ConfigDict(strict=True)) == [expected]


_ODD: dict[str, tuple[pa.Array, Any, list[Any], str]] = {
    "timestamp after 9999": (
        pa.array([0, 2**62, 1_000_000], pa.timestamp("us")),
        dt.datetime,
        ["1970-01-01T00:00:00", "1970-01-01T00:00:01"],
        "value: this timestamp[us] cannot be read (value out of range: 4611686018427387904): ",
    ),
    "date before 1": (
        pa.array([0, -800_000, 1], pa.date32()),
        dt.date,
        ["1970-01-01", "1970-01-02"],
        "value: this date32[day] cannot be read (-0221-09-04): ",
    ),
    "date in a list": (
        pa.array([[0], [1, -800_000], [2]], pa.list_(pa.date32())),
        list[dt.date],
        [["1970-01-01"], ["1970-01-03"]],
        "value: this list<element: date32[day]> cannot be read",
    ),
    "date in a map in a struct": (
        pa.array([{"m": [("a", day)]} for day in (0, -800_000, 1)], pa.struct([("m", pa.map_(pa.string(), pa.date32()))])),
        dict[str, dict[str, dt.date]],
        [{"m": {"a": "1970-01-01"}}, {"m": {"a": "1970-01-02"}}],
        "value: this struct<m: map<string, date32[day]",
    ),
    "duration": (
        pa.array([1, 2**62, 2], pa.duration("ms")),
        dt.timedelta,
        ["PT0.001S", "PT0.002S"],
        "value: this duration[ms] cannot be read (4611686018427387904): ",
    ),
    "time of more than a day": (
        pa.array([1_000_000, 48 * 3600 * 1_000_000, 0], pa.time64("us")),
        dt.time,
        ["00:00:01", "00:00:00"],
        "value: this time64[us] cannot be read",
    ),
    "negative time": (pa.array([1, -1, 0], pa.time32("ms")), dt.time, ["00:00:00.001000", "00:00:00"], "not within a day"),
    "map with a key twice": (
        _map([[("a", 1)], [("a", 1), ("a", 2)], []], pa.int64()),
        dict[str, int],
        [{"a": 1}, {}],
        "a map has the same key twice",
    ),
    "text that is not UTF-8": (
        pa.array([b"a", b"\xff", b"c"]).view(pa.string()),
        str,
        ["a", "c"],
        "value: this string cannot be read: 'utf-8' codec",
    ),
    "binary that is not UTF-8": (
        pa.array([b"a", b"\xff", b"c"]),
        bytes,
        ["a", "c"],
        "value: b'\\xff' cannot be written as JSON: invalid utf-8 sequence of 1 bytes from index 0; set val_json_bytes and",
    ),
    "a number over 64 bits": (
        pa.array([1, 2**63, 2], pa.uint64()),
        int,
        [1, 2],
        "the integer 9223372036854775808 does not fit 64 bits",
    ),
}


@pytest.mark.parametrize("name", _ODD)
def test_an_odd_parquet_cell_costs_its_row_only(tmp_path: Path, name: str) -> None:
    column, annotation, expected, message = _ODD[name]
    first, bad, last = _values(tmp_path, column, annotation)
    assert [first, last] == expected
    assert message in bad


class _In(BaseModel):
    value: int


def _with_bad_date(path: Path) -> Path:
    table = pa.table({"value": [1, 2], "day": pa.array([0, -800_000], pa.date32())})
    pq.write_table(table, path / "a.parquet")
    return path / "a.parquet"


def test_an_odd_cell_in_an_ignored_column_costs_nothing(tmp_path: Path) -> None:
    path = _with_bad_date(tmp_path)
    assert _read(path, _In) == [{"value": 1}, {"value": 2}]
    (root,) = Roots(open_input(path), InputModel(_In), 10).pending(lambda _: False)
    assert len(root.rows) == 2 and not root.bad


@pytest.mark.parametrize("used", ["extra", "key", "validator"])
def test_an_odd_cell_in_a_column_that_is_used_without_a_field_rejects_its_row(tmp_path: Path, used: str) -> None:
    class Allowing(_In):
        model_config = ConfigDict(extra="allow")

    class Looking(_In):
        @model_validator(mode="before")
        @classmethod
        def _look(cls, data: Any) -> Any:
            return data

    model = {"extra": Allowing, "key": _In, "validator": Looking}[used]
    rows = InputModel(model, "day" if used == "key" else None)
    (root,) = Roots(open_input(_with_bad_date(tmp_path)), rows, 10).pending(lambda _: False)
    assert [row.row_id for row in root.rows] == ["0"]
    assert "day: this date32[day] cannot be read" in root.bad[0].message


def test_ignored_columns_are_not_even_decoded_and_are_named_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = open_input(_with_bad_date(tmp_path))
    list(Roots(source, InputModel(_In), 1).pending(lambda _: False))
    assert [record.data for record in source.records()] == [{"value": 1}, {"value": 2}]
    assert caplog.text.count("ignored: 'day'") == 1


def test_values_without_a_field_of_their_type_are_kept_as_json_has_them(tmp_path: Path) -> None:
    class Anything(BaseModel):
        model_config = ConfigDict(extra="allow")
        value: Any

    table = pa.table({"value": pa.array([_NS], pa.timestamp("ns")), "amount": [Decimal("1.10")], "n": [1]})
    pq.write_table(table, tmp_path / "a.parquet")
    assert _read(tmp_path / "a.parquet", Anything) == [{"value": _AT, "amount": "1.10", "n": 1}]


def test_binary_is_base64_if_the_model_says_so(tmp_path: Path) -> None:
    config = ConfigDict(val_json_bytes="base64", ser_json_bytes="base64")
    assert _values(tmp_path, pa.array([b"\xff\xfe"]), bytes, config) == ["__4="]


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"]), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"a\.parquet: more than one column is named 'a'"):
        open_input(tmp_path / "a.parquet")


def test_a_parquet_file_without_rows_is_an_input_of_no_records(tmp_path: Path) -> None:
    pq.write_table(pa.table({"value": pa.array([], pa.int64())}), tmp_path / "a.parquet")
    assert _read(tmp_path / "a.parquet", _In) == []
