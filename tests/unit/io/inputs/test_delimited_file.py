"""CSV and TSV as programs and people write them."""

from __future__ import annotations

import csv
import io
import random
from pathlib import Path

import pytest
from pydantic import BaseModel

from chainette.errors import InputError
from chainette.io.inputs.locate import InputModel, open_input


class Text(BaseModel):
    text: str
    n: int = 0


def _write(path: Path, data: bytes | str) -> Path:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def _read(path: Path) -> list[object]:
    """The cells of each record, or the reason why it cannot be read."""
    return [record.error or record.data for record in open_input(path).records()]


_ROWS: list[object] = [{"text": "a", "n": "1"}, {"text": "b", "n": "2"}]


@pytest.mark.parametrize(
    "data",
    ["text,n\na,1\nb,2\n", "text,n\r\na,1\r\nb,2\r\n", "text,n\ra,1\rb,2\r", "text,n\r\na,1\rb,2\n", "text,n\ra,1\rb,2"],
    ids=["LF", "CRLF", "CR", "mixed", "CR without the last"],
)
def test_every_line_end_ends_a_record(tmp_path: Path, data: str) -> None:
    source = open_input(_write(tmp_path / "a.csv", data))
    assert [record.data for record in source.records()] == _ROWS
    assert [record.line for record in source.records()] == [2, 3]
    assert source.count() == 2


def test_line_ends_are_found_wherever_a_block_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [f"{number},{number}{end}" for number, end in enumerate(["\r\n", "\r", "\n"] * 20)]
    path = _write(tmp_path / "a.csv", "text,n\r\n" + "".join(rows))
    for block in range(1, 30):
        monkeypatch.setattr("chainette.io.inputs.text_file._BLOCK", block)
        records = list(open_input(path).records())
        assert [record.data for record in records] == [{"text": str(n), "n": str(n)} for n in range(60)]
        assert [record.line for record in records] == list(range(2, 62))


def test_a_lone_cr_in_a_cell_stays_in_it_if_the_lines_end_otherwise(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.csv", "text,n\na\rb,1\nc,2\n\r,3\n")
    assert _read(path) == [{"text": "a\rb", "n": "1"}, {"text": "c", "n": "2"}, {"text": "\r", "n": "3"}]
    assert [record.line for record in open_input(path).records()] == [2, 3, 4]
    assert _read(_write(tmp_path / "b.csv", "text\na\rb\n")) == [{"text": "a\rb"}]


def test_line_ends_in_quotes_are_kept_as_they_are(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.csv", 'text,n\r"a\rb\r\nc\nd",1\rb,2\r')
    assert _read(path) == [{"text": "a\rb\r\nc\nd", "n": "1"}, {"text": "b", "n": "2"}]
    assert [record.line for record in open_input(path).records()] == [2, 6]


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a"])
@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_the_separator_is_found_in_the_content(tmp_path: Path, name: str, separator: str) -> None:
    path = _write(tmp_path / name, "text,n\na,1\nb,2\n".replace(",", separator))
    assert _read(path) == _ROWS


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("id,tags (x;y;z)\n1,a\n2,b;c\n", ["id", "tags (x;y;z)"]),
        ("name;price, eur;tax\na;1,5;2\n", ["name", "price, eur", "tax"]),
        ('"a,b";c\n1;2\n', ["a,b", "c"]),
        ("id,a|b\n", ["id", "a|b"]),
        ("text\nhello, world\n", ["text"]),
    ],
)
def test_the_separator_is_the_one_that_cuts_records_as_it_cuts_the_header(
    tmp_path: Path, text: str, columns: list[str]
) -> None:
    assert open_input(_write(tmp_path / "a.csv", text)).columns() == columns


@pytest.mark.parametrize("first", ["sep=;", '"sep=;"', "SEP=;"])
def test_excels_line_about_the_separator_is_obeyed(tmp_path: Path, first: str) -> None:
    path = _write(tmp_path / "a.csv", f"\ufeff{first}\r\ntext;n\r\na,b;1\r\n")
    assert _read(path) == [{"text": "a,b", "n": "1"}]
    assert [record.line for record in open_input(path).records()] == [3]


@pytest.mark.parametrize("middle", ['1,"hello\n2,world\n3,"fine"\n', '1,"a\nb" c\n', '1,"a\nb""\n"x\n'])
def test_lines_that_a_stray_quote_joins_are_rejected_and_never_taken_for_a_row(tmp_path: Path, middle: str) -> None:
    path = _write(tmp_path / "a.csv", f"n,text\n{middle}4,last\n")
    bad, last = _read(path)
    lines = middle.count("\n")
    assert str(bad).startswith(f"it has a quote in the middle of a cell, so lines 2 to {lines + 1} were read as one")
    assert last == {"n": "4", "text": "last"}


def test_well_quoted_cells_of_several_lines_are_kept(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.csv", 'n,text,more\n1,"a ""b""\n\n,c","""d\n"""\n,"e\n",\n')
    assert _read(path) == [{"n": "1", "text": 'a "b"\n\n,c', "more": '"d\n"'}, {"text": "e\n"}]


def test_byte_order_marks_are_skipped_at_the_start_and_between_concatenated_files(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.csv", '\ufefftext,n\na,1\n\ufeff"b",2\n')
    assert _read(path) == _ROWS
    inside = _write(tmp_path / "b.csv", '\ufefftext,n\n"\ufeffa\n\ufeffb",1\n')
    assert _read(inside) == [{"text": "\ufeffa\n\ufeffb", "n": "1"}]


def test_a_header_in_the_middle_is_rejected(tmp_path: Path) -> None:
    one, header, two = _read(_write(tmp_path / "a.csv", "text,n\na,1\n\ufefftext,n\nb,2\n"))
    assert [one, two] == _ROWS
    assert str(header).startswith("this is the header again; if two files were concatenated, give them as separate inputs")


def test_nul_bytes_reject_their_record(tmp_path: Path) -> None:
    one, bad, two = _read(_write(tmp_path / "a.csv", b"text,n\na,1\nx\0,1\nb,2\n"))
    assert [one, two] == _ROWS and "NUL bytes" in str(bad)


def test_a_byte_of_another_encoding_is_named_with_the_command_that_converts_it(tmp_path: Path) -> None:
    one, bad = _read(_write(tmp_path / "a.csv", b"text,n\na,1\ncaf\xe9,2\n"))
    assert one == _ROWS[0]
    assert bad == (
        "not UTF-8: byte 3 of the record is 0xe9; convert the file to UTF-8 "
        "(iconv -f WINDOWS-1252 -t UTF-8, if that byte stands for 'é')"
    )


def test_short_records_lack_cells_and_long_ones_are_rejected(tmp_path: Path) -> None:
    short, empty, long = _read(_write(tmp_path / "a.csv", "text,n\na\nb,2,,\nc,3,4\n"))
    assert [short, empty] == [{"text": "a"}, {"text": "b", "n": "2"}]
    assert long == "3 cells, but the header has 2; quote cells that hold ','"


def test_columns_without_a_name_are_called_by_their_position(tmp_path: Path) -> None:
    source = open_input(_write(tmp_path / "a.csv", ",text,,\n0,a,,\n1,b,,\n"))
    assert source.columns() == ["column_1", "text", "column_3", "column_4"]
    assert [record.data for record in source.records()] == [{"column_1": "0", "text": "a"}, {"column_1": "1", "text": "b"}]


def test_a_very_long_cell_is_read_and_a_longer_one_costs_its_record(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.csv", f"text,n\n{'x' * 300_000},1\n{'y' * 600_000},2\nb,2\n")
    long, longer, last = [record.error or record.data for record in open_input(path, max_line_bytes=500_000).records()]
    assert isinstance(long, dict) and long["text"] == "x" * 300_000
    assert longer == "the line is 600,003 bytes long, more than the 500,000 allowed; split or shorten it"
    assert last == _ROWS[1]


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("without a header", "hello,1\nworld,2\n"),
        ("one line", "hello,1\n"),
        ("plain text", "hello\nworld\n"),
        ("another separator", "text^n\na^1\n"),
        ("another table", "name,price\na,1\n"),
    ],
)
def test_a_file_without_any_column_of_the_model_is_refused(tmp_path: Path, name: str, data: str) -> None:
    path = _write(tmp_path / "a.csv", data)
    with pytest.raises(
        InputError, match=r"none of its columns is a field of Text \('n', 'text'\): it has .*is the first line its"
    ):
        InputModel(Text).require_columns(open_input(path))


def test_a_model_that_takes_any_column_takes_any_header(tmp_path: Path) -> None:
    class Open(BaseModel, extra="allow"):
        text: str = ""

    InputModel(Open).require_columns(open_input(_write(tmp_path / "a.csv", "a,b\n1,2\n")))


def test_each_file_of_several_needs_its_header(tmp_path: Path) -> None:
    _write(tmp_path / "0.csv", "text,n\na,1\n")
    _write(tmp_path / "1.csv", "b,2\nc,3\n")  # as `split` cuts a file
    with pytest.raises(InputError, match=r"1\.csv: none of its columns"):
        InputModel(Text).require_columns(open_input(tmp_path))


def test_files_of_pythons_csv_module_are_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(10)
    alphabet = ["a", "b", '"', ",", "\n", "\r", "\r\n", " ", "é", ";"]
    for _ in range(500):
        end = chance.choice(["\n", "\r\n", "\r"])
        rows = [["".join(chance.choices(alphabet, k=chance.randint(0, 5))) for _ in range(3)] for _ in range(4)]
        rows = [[one, two, three.rstrip("\r")] for one, two, three in rows]  # Python does not quote it, and no reader sees it
        text = io.StringIO()
        writer = csv.writer(text, lineterminator=end, quoting=csv.QUOTE_MINIMAL if end == "\n" else csv.QUOTE_ALL)
        writer.writerows([["x", "y", "z"], *rows])
        monkeypatch.setattr("chainette.io.inputs.text_file._BLOCK", chance.choice([1, 2, 7, 1 << 16]))
        expected = [{name: cell for name, cell in zip("xyz", row, strict=True) if cell} for row in rows]
        assert _read(_write(tmp_path / "a.csv", text.getvalue())) == expected, text.getvalue()
