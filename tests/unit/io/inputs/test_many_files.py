"""Several files as one input: folders, patterns and lists, numbered on from file to file."""

from __future__ import annotations

import gzip
import logging
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import BaseModel

from chainette.errors import InputError
from chainette.io.inputs.locate import InputModel, open_input
from chainette.io.inputs.readers import InputFile, Record
from chainette.io.inputs.roots import Roots
from chainette.io.inputs.text_file import JsonLinesFile


class Text(BaseModel):
    text: str


def _shard(path: Path, texts: list[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    match path.suffix:
        case ".parquet":
            pq.write_table(pa.table({"text": pa.array(texts, pa.string())}), path, row_group_size=2)
        case ".csv":
            path.write_text("text\n" + "".join(f"{text}\n" for text in texts))
        case ".tsv":
            path.write_text("n\ttext\n" + "".join(f"0\t{text}\n" for text in texts))
        case ".gz":
            path.write_bytes(gzip.compress("".join(f'{{"text":"{text}"}}\n' for text in texts).encode()))
        case ".zst":
            text = "".join(f'{{"text":"{text}"}}\n' for text in texts)
            path.write_bytes(pa.compress(text.encode(), codec="zstd", asbytes=True))
        case _:
            path.write_text("".join(f'{{"text":"{text}"}}\n' for text in texts))
    return path


def _texts(source: InputFile, start: int = 0) -> list[tuple[int, str]]:
    return [(record.index, _text(record)) for record in source.records(start)]


def _text(record: Record) -> str:
    return Text.model_validate_json(InputModel(Text).validate(record)[0]).text


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".tsv", ".parquet", ".jsonl.gz", ".jsonl.zst"])
def test_a_folder_is_read_in_the_order_of_its_numbers_and_numbered_on(tmp_path: Path, suffix: str) -> None:
    for number, count in ((10, 3), (9, 3), (2, 0), (1, 1)):
        _shard(tmp_path / f"{number}{suffix}", [f"{number}-{row}" for row in range(count)])
    _shard(tmp_path / f".hidden{suffix}", ["hidden"])
    _shard(tmp_path / f"_temporary{suffix}", ["temporary"])
    expected = list(enumerate(["1-0", "9-0", "9-1", "9-2", "10-0", "10-1", "10-2"]))
    source = open_input(tmp_path)
    assert source.count() == 7
    for start in range(9):
        assert _texts(source, start) == expected[start:]
    assert _texts(open_input(tmp_path, limit=5), 3) == expected[3:5]
    assert [file.name.partition(".")[0] for file in source.files()] == ["1", "2", "9", "10"]


def test_a_pattern_finds_files_in_numeric_order_folder_by_folder(tmp_path: Path) -> None:
    for name in ("b2/1.jsonl", "b10/1.jsonl", "b2/10.jsonl", "b2/9.jsonl", ".b/1.jsonl"):
        _shard(tmp_path / name, [name])
    found = [text for _, text in _texts(open_input(tmp_path / "b*/*.jsonl"))]
    assert found == ["b2/1.jsonl", "b2/9.jsonl", "b2/10.jsonl", "b10/1.jsonl"]
    assert [text for _, text in _texts(open_input(tmp_path / "**/9.jsonl"))] == ["b2/9.jsonl"]
    with pytest.raises(InputError, match="no file matches this pattern"):
        open_input(tmp_path / "*.csv")


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(tmp_path: Path) -> None:
    path = _shard(tmp_path / "a[1].jsonl", ["brackets"])
    _shard(tmp_path / "a1.jsonl", ["pattern"])
    assert _texts(open_input(path)) == [(0, "brackets")]


def test_files_are_read_in_the_order_given(tmp_path: Path) -> None:
    late, early = _shard(tmp_path / "b.jsonl", ["b"]), _shard(tmp_path / "a.jsonl", ["a"])
    folder = _shard(tmp_path / "c/1.jsonl", ["c"]).parent
    source = open_input([late, str(early), folder])
    assert _texts(source) == [(0, "b"), (1, "a"), (2, "c")]
    assert source.identity()["sources"] == [str(late), str(early), str(folder)]


def test_columns_of_parquet_files_may_differ_in_order_and_number(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a"], "n": [1]}), tmp_path / "0.parquet")
    pq.write_table(pa.table({"n": [2], "text": ["b"]}), tmp_path / "1.parquet")
    pq.write_table(pa.table({"text": ["c"], "more": [None]}), tmp_path / "2.parquet")
    source = open_input(tmp_path)
    assert source.columns() == ["text", "n", "more"]
    assert [record.data for record in source.records()] == [
        {"text": "a", "n": 1},
        {"text": "b", "n": 2},
        {"text": "c", "more": None},
    ]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_a_bad_record_is_named_with_its_file_and_line(tmp_path: Path, suffix: str) -> None:
    class Number(BaseModel):
        text: int

    _shard(tmp_path / f"1{suffix}", ["1", "2"])
    _shard(tmp_path / f"2{suffix}", ["3", "four"])
    (root,) = Roots(open_input(tmp_path), InputModel(Number), 10).pending(lambda _: False)
    (bad,) = root.bad
    line = 3 if suffix == ".csv" else 2
    assert bad.message.startswith(f"2{suffix}:{line}: text: Input should be a valid integer")
    assert (bad.row_id, bad.line) == ("3", line)
    assert [(row.row_id, row.line) for row in root.rows] == [("0", line - 1), ("1", line), ("2", line - 1)]


def test_a_file_that_is_damaged_is_named(tmp_path: Path) -> None:
    _shard(tmp_path / "1.jsonl.gz", ["a"] * 10_000)
    cut = _shard(tmp_path / "2.jsonl.gz", [str(n) for n in range(100_000)])
    cut.write_bytes(cut.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"2\.jsonl\.gz: reading stopped"):
        list(open_input(tmp_path).records())


def test_a_link_whose_file_is_gone_is_missing_and_not_left_out(tmp_path: Path) -> None:
    _shard(tmp_path / "1.jsonl", ["a"])
    (tmp_path / "2.jsonl").symlink_to(tmp_path / "gone.jsonl")
    for source in (tmp_path, tmp_path / "*.jsonl"):
        with pytest.raises(InputError, match=r"2\.jsonl: no such file"):
            open_input(source)


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".tsv", ".jsonl.gz", ".jsonl.zst"])
def test_an_empty_file_among_others_is_fine(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"1{suffix}").touch()
    _shard(tmp_path / f"2{suffix}", ["a"])
    (tmp_path / f"3{suffix}").touch()
    source = open_input(tmp_path)
    assert _texts(source) == [(0, "a")]
    InputModel(Text).require_columns(source)


def test_a_folder_of_json_documents_is_one_record_each(tmp_path: Path) -> None:
    (tmp_path / "1.json").write_text('{\n  "text": "a"\n}\n')
    (tmp_path / "2.json").write_text('{"text": "b"}')
    (tmp_path / "3.jsonl").write_text('{"text": "c"}\n{"text": "d"}\n')
    assert _texts(open_input(tmp_path)) == [(0, "a"), (1, "b"), (2, "c"), (3, "d")]


def test_mixed_formats_are_refused_by_name(tmp_path: Path) -> None:
    _shard(tmp_path / "a.csv", ["a"])
    _shard(tmp_path / "b.jsonl", ["a"])
    with pytest.raises(InputError, match=r"a\.csv is csv, .*b\.jsonl is jsonl; give files of one format") as error:
        open_input(tmp_path)
    assert f"'{tmp_path}/*.csv'" in str(error.value)


def test_a_file_given_twice_is_refused(tmp_path: Path) -> None:
    path = _shard(tmp_path / "a.jsonl", ["a"])
    (tmp_path / "link.jsonl").symlink_to(path)
    with pytest.raises(InputError, match=r"a\.jsonl: given twice"):
        open_input([path, path])
    with pytest.raises(InputError, match=r"link\.jsonl: given twice, also as .*a\.jsonl"):
        open_input(tmp_path)


def test_other_files_of_a_folder_are_left_out_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _shard(tmp_path / "a.jsonl", ["a"])
    (tmp_path / "README.md").write_text("about")
    _shard(tmp_path / "more/b.jsonl", ["b"])
    with caplog.at_level(logging.WARNING):
        assert _texts(open_input(tmp_path)) == [(0, "a")]
    assert f"{tmp_path}: read without README.md, more/, which are not" in caplog.text


def test_a_folder_without_inputs_is_refused_with_its_content(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"without JSONL, CSV, TSV or Parquet files \(found: nothing\)"):
        open_input(tmp_path)
    (tmp_path / "a.txt").write_text("a")
    _shard(tmp_path / "deep/b.parquet", ["b"])
    with pytest.raises(InputError, match=r"found: a\.txt, deep/\); to read the folders below it: '.*/\*\*/\*\.jsonl'"):
        open_input(tmp_path)


def test_a_run_directory_is_refused_with_the_folders_of_its_steps(tmp_path: Path) -> None:
    _shard(tmp_path / "events.jsonl", [])
    _shard(tmp_path / "extract/0.jsonl", ["a"])
    _shard(tmp_path / "rejected/0.jsonl", [])
    with pytest.raises(InputError, match=r"a run directory; give the rows of one step: [^,]*extract$"):
        open_input(tmp_path)


def test_many_large_files_are_counted_by_some_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(40):
        _shard(tmp_path / f"{number}.jsonl", ["x" * 50] * 100)
    counted: list[Path] = []
    count = JsonLinesFile.count

    def counting(file: JsonLinesFile) -> int | None:
        counted.append(file.path)
        return count(file)

    monkeypatch.setattr(JsonLinesFile, "count", counting)
    monkeypatch.setattr("chainette.io.inputs.many_files._COUNTED_BYTES", 1000)
    assert open_input(tmp_path).count() == pytest.approx(4000, rel=0.01)
    assert len(counted) == 8


def test_texts_that_are_not_paths_are_refused_with_a_message() -> None:
    with pytest.raises(InputError, match="hello: no such file"):
        open_input(["hello", "world"])
    with pytest.raises(InputError, match="File name too long; a row is a model or a dict"):
        open_input(["hello " * 1000])
