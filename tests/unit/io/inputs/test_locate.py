"""Inputs of every kind, broken in every way: only the bad record is lost."""

from __future__ import annotations

import datetime as dt
import gzip
import hashlib
import os
import random
import tempfile
import tracemalloc
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import BaseModel, ConfigDict

from chainette.errors import InputError
from chainette.io.inputs.locate import BadRecord, InputModel, Record, open_input


class Product(BaseModel):
    name: str
    price: float = 0.0
    tags: list[str] = []


def _write(path: Path, data: bytes | str) -> Path:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def _validated(path: Path, model: type[BaseModel] = Product, **options: Any) -> list[tuple[int, int, str]]:
    """(index, line, dump or message) of every record."""
    rows = InputModel(model)
    found = []
    for record in open_input(path, **options).records():
        try:
            text = rows.validate(record)[0].decode()
        except BadRecord as error:
            text = str(error)
        found.append((record.index, record.line, text))
    return found


def _json(line: str) -> Record:
    return Record(0, 1, line.encode())


def test_lines_have_an_index_without_blank_lines_and_a_line_number_with_them(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.jsonl", b'\xef\xbb\xbf{"name":"a"}\r\n\r\n  \n{"name":"b"}\nnope\n{"name":"c"}')
    assert _validated(path) == [
        (0, 1, '{"name":"a","price":0.0,"tags":[]}'),
        (1, 4, '{"name":"b","price":0.0,"tags":[]}'),
        (2, 5, "not JSON: invalid character (byte 4)"),
        (3, 6, '{"name":"c","price":0.0,"tags":[]}'),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"name":"a","price":"abc"}', "price: Input should be a valid number, unable to parse string as a number, got 'abc'"),
        (b"{}", "name: Field required"),
        (b"[1]", "expected a JSON object, but this line is of type array"),
        (b"3", "expected a JSON object, but this line is of type int"),
        (b'{"name":"a","price":NaN}', "NaN and Infinity are not JSON, write null"),
        (rb'{"name":"\ud800"}', r"not JSON: half of a surrogate pair (\ud800), which is no character"),
        (rb'{"name":"a","\ud83d\ude00 \udc00":1}', r"half of a surrogate pair (\udc00)"),
        (rb'{"name":"\ud83d', "not JSON: it ends too early"),
        (rb'{"name":"\ud83d\ude00","price":nope}', "not JSON: invalid character"),
        (b'{"name":"a","price":1e999}', "price: Input should be a valid number, got None"),
        (b'{"name":"a"} {"name":"b"}', "not JSON: trailing characters (byte 14)"),
        (b'{"name":"a\x00"}', "not JSON: invalid character (byte 10)"),
        (b'{"name":"caf\xe9"}', "not UTF-8: byte 12 of the record is 0xe9"),
        (b'{"name":' + b"[" * 100_000, "nested too deeply"),
        (b'{"name":"' + b"x" * 2000 + b'"}', "2,012 bytes long, more than the 1,000 allowed"),
    ],
)
def test_a_bad_line_is_rejected_with_the_reason_and_costs_no_other(tmp_path: Path, line: bytes, message: str) -> None:
    path = _write(tmp_path / "a.jsonl", b'{"name":"a"}\n' + line + b'\n{"name":"b"}\n')
    limit = 1_000 if b"xxx" in line else 1 << 20
    before, bad, after = _validated(path, max_line_bytes=limit)
    assert message in bad[2]
    assert (before[2][:11], after[:2], after[2][:11]) == ('{"name":"a"', (2, 3), '{"name":"b"')


def test_a_line_of_50_mb_is_skipped_without_being_held(tmp_path: Path) -> None:
    with (tmp_path / "a.jsonl").open("wb") as file:
        file.write(b'{"name":"a"}\n{"name":"')
        file.writelines(b"x" * (1 << 20) for _ in range(50))
        file.write(b'"}\n{"name":"b"}\n')
    tracemalloc.start()
    records = list(open_input(tmp_path / "a.jsonl", max_line_bytes=1 << 20).records())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [record.error is None for record in records] == [True, False, True]
    assert "52,428,812 bytes long" in str(records[1].error)
    assert len(records[1].raw) == 65_536
    assert records[2].line == 3
    assert peak < 8 << 20


def test_reading_starts_at_any_index(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.jsonl", "".join(f'{{"name":"{n}"}}\n\n' for n in range(10)))
    assert [(record.index, record.line) for record in open_input(path).records(8)] == [(8, 17), (9, 19)]
    assert [record.index for record in open_input(path, limit=9).records(7)] == [7, 8]
    assert list(open_input(path, limit=3).records(5)) == []


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_records_are_the_same_wherever_reading_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr("chainette.io.inputs.text_file._HEAD", 10)  # so that a CR further on does not end lines
    rng = random.Random(name)
    parts = [b'{"a":1}', b"", b"  \t", b"\r", b"\v\f", b" " * 60, b"\xef\xbb\xbf", b'\xef\xbb\xbf{"b":2}', b"x" * 60, b'"\xff"']
    for block in (1, 2, 7, 40, 200):
        monkeypatch.setattr("chainette.io.inputs.text_file._SKIPPED", block)
        data = b'{"first":0}\n' + b"".join(rng.choice(parts) + rng.choice([b"\n", b"\r\n"]) for _ in range(40)) + b"last"
        (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
        source = open_input(tmp_path / name, max_line_bytes=50)
        every = list(source.records())
        for start in range(len(every) + 2):
            trail = source.trail()
            assert list(source.records(start, trail)) == every[start:], (block, start, data)
            assert trail.mark().digest == source.digest()


def test_lines_are_skipped_across_files(tmp_path: Path) -> None:
    for number, rows in enumerate((3, 0, 2, 4)):
        _write(tmp_path / f"{number}.jsonl", "".join(f'{{"name":"{number}.{row}"}}\n' for row in range(rows)))
    every = list(open_input(tmp_path).records())
    assert [record.index for record in every] == [*range(9)]
    for start in range(10):
        assert list(open_input(tmp_path).records(start)) == every[start:]


def test_cells_are_converted_and_empty_ones_are_missing(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.csv", 'name,price,tags\r\na,1.5,"[""x"", ""y""]"\r\nb,,\r\n\r\n"c\nc","",\r\nd\r\n')
    assert _validated(path) == [
        (0, 2, '{"name":"a","price":1.5,"tags":["x","y"]}'),
        (1, 3, '{"name":"b","price":0.0,"tags":[]}'),
        (2, 5, '{"name":"c\\nc","price":0.0,"tags":[]}'),
        (3, 7, '{"name":"d","price":0.0,"tags":[]}'),
    ]


def test_a_bad_csv_record_costs_no_other(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.csv", b'name,price\na,1,2\nb,1,,\n\xff,1\n5" pipe,2\ne,x\n"f","2"x\n')
    texts = [text for _, _, text in _validated(path)]
    assert texts[0] == "3 cells, but the header has 2; quote cells that hold ','"
    assert texts[1].startswith('{"name":"b"')
    assert texts[2].startswith("not UTF-8: byte 0")
    assert texts[3].startswith('{"name":"5\\" pipe","price":2.0')
    assert texts[4].startswith("price: Input should be a valid number")
    assert texts[5].startswith("price: Input should be a valid number, unable to parse string as a number, got '2x'")


def test_a_quote_that_is_never_closed_is_one_bad_record(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.csv", 'name,price\na,1\n"b,2\nc,3\nd,4\n')
    assert [text[:40] for _, _, text in _validated(path)] == [
        '{"name":"a","price":1.0,"tags":[]}',
        "a quoted cell in it is never closed, so ",
    ]
    long = list(open_input(path, max_line_bytes=11).records())
    assert "is a quote in it never closed?" in str(long[1].error) or "never closed" in str(long[1].error)


def test_a_cell_for_a_list_must_be_json(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.csv", "name,tags\na,x y\n")
    assert _validated(path) == [(0, 2, "tags: the cell must contain JSON, but has 'x y'")]


def test_cells_of_every_type_are_read_from_text(tmp_path: Path) -> None:
    class Typed(BaseModel):
        model_config = ConfigDict(strict=True)
        count: int
        flag: bool
        day: dt.date
        amount: Decimal
        inner: Product
        maybe: list[int] | str
        note: str | None = None

    path = _write(
        tmp_path / "a.tsv", 'count\tflag\tday\tamount\tinner\tmaybe\tnote\n7\ttrue\t2026-01-02\t1.10\t{"name": "n"}\tplain\t\n'
    )
    dump = (
        '{"count":7,"flag":true,"day":"2026-01-02","amount":"1.10","inner":{"name":"n","price":0.0,"tags":[]},'
        '"maybe":"plain","note":null}'
    )
    assert _validated(path, Typed) == [(0, 2, dump)]


@pytest.mark.parametrize(
    ("name", "text"), [("a.csv", "name;price\na;1\n"), ("a.csv", '"name","price"\n"a","1"\n'), ("a", "name\tprice\na\t1\n")]
)
def test_separators_are_found(tmp_path: Path, name: str, text: str) -> None:
    source = open_input(_write(tmp_path / name, text))
    assert source.columns() == ["name", "price"]
    assert [record.data for record in source.records()] == [{"name": "a", "price": "1"}]


def _parquet(path: Path, names: list[str], **options: Any) -> Path:
    pq.write_table(pa.table({"name": names, "price": [1.0] * len(names)}), path, **options)
    return path


def test_parquet_values_are_validated_as_they_are(tmp_path: Path) -> None:
    class Typed(BaseModel):
        at: dt.datetime
        amount: Decimal
        inner: Product
        scores: dict[str, int]
        blob: bytes
        note: str | None

    table = pa.table(
        {
            "at": pa.array([1_600_000_000_123_456_789], pa.timestamp("ns", "UTC")),
            "amount": pa.array([Decimal("1.10")]),
            "inner": [{"name": "n", "price": 2.0, "tags": ["t"]}],
            "scores": pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64())),
            "blob": [b"x"],
            "note": pa.array([None], pa.string()),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    dump = (
        '{"at":"2020-09-13T12:26:40.123456Z","amount":"1.10","inner":{"name":"n","price":2.0,"tags":["t"]},'
        '"scores":{"a":1},"blob":"x","note":null}'
    )
    assert _validated(tmp_path / "a.parquet", Typed) == [(0, 1, dump)]


def test_a_folder_of_parquet_is_read_in_the_order_of_its_numbers(tmp_path: Path) -> None:
    for number in (10, 2, 0):
        _parquet(tmp_path / f"{number}.parquet", [f"{number}-{row}" for row in range(3)], row_group_size=2)
    _write(tmp_path / "_SUCCESS", "")
    source = open_input(tmp_path)
    names = [record.data["name"] for record in source.records() if isinstance(record.data, dict)]
    assert names == ["0-0", "0-1", "0-2", "2-0", "2-1", "2-2", "10-0", "10-1", "10-2"]
    assert source.count() == 9
    assert source.columns() == ["name", "price"]
    for start in range(11):
        found = [(record.index, record.line, record.data) for record in source.records(start)]
        assert found == [(n, n % 3 + 1, {"name": names[n], "price": 1.0}) for n in range(start, 9)]


def test_a_parquet_file_that_breaks_while_it_is_read_is_an_input_error(tmp_path: Path) -> None:
    path = _parquet(
        tmp_path / "a.parquet", [os.urandom(50).hex() for _ in range(2000)], compression="none", use_dictionary=False
    )
    data = bytearray(path.read_bytes())
    data[200:90_000] = b"\xff" * (90_000 - 200)
    _write(path, bytes(data))
    with pytest.raises(InputError, match=r"a\.parquet"):
        for record in open_input(path).records():
            InputModel(Product).validate(record)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.jsonl", '{"name":"é"}\n'.encode("utf-16"), "iconv -f UTF-16LE -t UTF-8 a.jsonl > utf8-a.jsonl"),
        ("a.csv", "name,price\na,1\n".encode("utf-16-be"), "looks like UTF-16BE"),
        ("a.jsonl", '{"name":"a"}\n'.encode("utf-32"), "looks like UTF-32LE"),
        ("a.jsonl", bytes(range(256)), "binary content"),
        ("a.csv", b"PK\x03\x04rest", "save the sheet as CSV"),
        ("a.jsonl.zst", b"\x28\xb5\x2f\xfdrest", "a.jsonl.zst: cannot be read: "),
        ("a.parquet.zst", pa.compress(b"PAR1 whole", codec="zstd", asbytes=True), "is a Parquet file inside zstd"),
        ("a.jsonl.gz", b"\x1f\x8b\x08damaged", "a damaged gzip file"),
        ("a.parquet", b"", "not a Parquet file"),
        ("a.parquet", b"PAR1 torn", "cannot be read as Parquet"),
        ("a.jsonl", b"PAR1 whole", "is a Parquet file; name it .parquet"),
        ("a.jsonl", b"name,price\na,1\n", "its first line looks like the header of a CSV file: 'name,price'; name it .csv"),
        ("a.json", b"name\tprice\na\t1\n", "name it .csv"),
        ("a.csv", b"PAR1 whole", "is a Parquet file; name it .parquet"),
        (
            "a.parquet",
            gzip.compress(b"PAR1 whole", mtime=0),
            "is a Parquet file inside gzip; unpack it first",
        ),
        ("a.parquet", b'{"name":"a"}\n', "is not a Parquet file: it does not start with PAR1"),
        ("a.csv", b"\xd0\xcf\x11\xe0rest", "old Excel workbook"),
        ("a.jsonl", b"BZh9rest", "bunzip2"),
        ("a.jsonl", b"ARROW1rest", "is an Arrow (Feather) file"),
        ("a.jsonl", b"  <!DOCTYPE html><html>", "the error page of a download"),
        ("a.csv", b"version https://git-lfs.github.com/spec/v1\noid sha256:4\n", "git lfs pull"),
        ("a.jsonl", b"x" * 257 + b"ustar" + b"x" * 99, "is a tar archive"),
        ("a.csv", b"name,price,name\n", "a.csv:1: more than one column is named 'name'; rename them"),
        ("a.csv", b"nam\xe9,price\n", ":1: the header cannot be read: not UTF-8"),
        ("a.txt", b"hello\n", "name it .jsonl, .csv, .tsv or .parquet"),
    ],
)
def test_an_input_that_cannot_be_read_is_refused_with_its_format_and_the_next_step(
    tmp_path: Path, name: str, data: bytes, message: str
) -> None:
    with pytest.raises(InputError) as error:
        open_input(_write(tmp_path / name, data))
    assert message in str(error.value)
    assert str(tmp_path / name) in str(error.value)


def test_a_missing_file_is_named_with_its_nearest_neighbour(tmp_path: Path) -> None:
    _write(tmp_path / "inputs.jsonl", "")
    with pytest.raises(InputError, match=r"no such file; did you mean '.*inputs\.jsonl'"):
        open_input(tmp_path / "input.jsonl")
    with pytest.raises(InputError, match="does not exist either"):
        open_input(tmp_path / "nowhere" / "input.jsonl")


def test_a_named_pipe_is_an_input_error(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="give `-` and pipe it in"):
        open_input(tmp_path / "pipe")


@pytest.fixture
def ordinary_user() -> Iterator[None]:
    """Becomes an ordinary user, because root may read every file."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    yield
    os.seteuid(before)


@pytest.mark.usefixtures("ordinary_user")
def test_a_file_that_may_not_be_read_is_an_input_error() -> None:
    with tempfile.TemporaryDirectory() as folder:
        _write(Path(folder) / "a.jsonl", "{}").chmod(0)
        with pytest.raises(InputError, match="Permission denied"):
            open_input(Path(folder) / "a.jsonl")


@pytest.mark.parametrize(
    ("name", "data"), [("a.jsonl", ""), ("a.csv", ""), ("a.csv", "name,price\n"), ("a", "\n\n"), ("a.jsonl", " \n")]
)
def test_an_empty_file_is_an_input_of_no_records(tmp_path: Path, name: str, data: str) -> None:
    source = open_input(_write(tmp_path / name, data))
    assert list(source.records()) == []
    assert source.count() == 0


@pytest.mark.parametrize(
    ("name", "text"), [("a.jsonl.gz", '{"name":"a"}\n'), ("a.csv.gz", "name\na\n"), ("a.gz", '{"name":"a"}\n')]
)
@pytest.mark.parametrize("packing", ["gz", "zst"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_compressed_text_is_read_through(tmp_path: Path, name: str, text: str, packing: str, mark: str) -> None:
    data = (mark + text).encode()
    packed = gzip.compress(data) if packing == "gz" else pa.compress(data, codec="zstd", asbytes=True)
    path = _write(tmp_path / name.replace("gz", packing), packed)
    assert _validated(path)[0][2] == '{"name":"a","price":0.0,"tags":[]}'
    assert open_input(path).count() == 1


def test_zstd_of_several_frames_is_one_text_and_a_cut_one_is_named(tmp_path: Path) -> None:
    parts = [f'{{"name":"{number}"}}\n'.encode() * 50_000 for number in range(3)]
    whole = b"".join(pa.compress(part, codec="zstd", asbytes=True) for part in parts)
    path = _write(tmp_path / "a.jsonl.zst", whole)
    assert sum(1 for _ in open_input(path).records()) == 150_000
    path = _write(tmp_path / "b.jsonl.zst", whole[:-9])
    with pytest.raises(InputError, match=r"b\.jsonl\.zst: reading stopped: "):
        list(open_input(path).records())


def test_identity_changes_with_the_ends_of_the_file_and_digest_with_any_byte(tmp_path: Path) -> None:
    data = bytearray(b'{"name":"a"}\n' * 300_000)
    path = _write(tmp_path / "a.jsonl", bytes(data))
    first, digest = open_input(path).identity(), open_input(path).digest()
    assert digest == hashlib.sha256(data).hexdigest()
    assert (first["path"], first["kind"], first["size"], first["mtime_ns"]) == (
        str(path),
        "jsonl",
        len(data),
        path.stat().st_mtime_ns,
    )
    data[len(data) // 2] ^= 1
    _write(path, bytes(data))
    assert open_input(path).identity()["sample"] == first["sample"]
    assert open_input(path).digest() != digest
    data[-3] ^= 1
    _write(path, bytes(data))
    assert open_input(path).identity()["sample"] != first["sample"]


def test_a_large_file_is_counted_by_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chainette.io.inputs.text_file._COUNTED_BYTES", 1 << 20)
    monkeypatch.setattr("chainette.io.inputs.text_file._SAMPLE", 1 << 16)
    path = _write(tmp_path / "a.csv", "name,price\n" + "".join(f'"{n:08}\n",1\n' for n in range(200_000)))
    assert open_input(path).count() == pytest.approx(200_000, rel=0.02)
    assert open_input(path, limit=5).count() == 5
