"""JSON arrays and pretty-printed JSON, cut into records in bounded memory; JSON under other names."""

from __future__ import annotations

import io
import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from chainette.errors import InputError
from chainette.io.inputs.json_values import values
from chainette.io.inputs.locate import BadRecord, InputModel, open_input


class Text(BaseModel):
    text: str = "nothing"
    more: Any = None


def _read(path: Path) -> list[str]:
    """The text of each record, or its rejection."""
    model = InputModel(Text)

    def read() -> Iterator[str]:
        for record in open_input(path).records():
            try:
                yield Text.model_validate_json(model.validate(record)[0]).text
            except BadRecord as error:
                yield str(error)

    return list(read())


_ODD: list[dict[str, Any]] = [
    {"text": 'a "quoted" [bracket] {brace} \\', "more": [[1, 2], {"x": []}]},
    {"text": "b,\nc"},
    {},
    {"text": "ü" * 50},
]
_EXPECTED = [row.get("text", "nothing") for row in _ODD]


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.csv", "a.tsv", "a", "a.txt"])
@pytest.mark.parametrize(
    "text",
    [
        "".join(json.dumps(row) + "\n" for row in _ODD),
        "".join(json.dumps(row) + "\r" for row in _ODD),
        "\n".join("\ufeff" + json.dumps(row) for row in _ODD),
        json.dumps(_ODD),
        json.dumps(_ODD, indent=2),
        json.dumps(_ODD, indent=2).replace("\n", "\r\n"),
        "\n".join(json.dumps(row, indent=4) for row in _ODD),
        "".join(json.dumps(row, indent=4) for row in _ODD),
        "[" + "\n,".join(json.dumps(row) for row in _ODD) + "]",
        json.dumps(_ODD[:2]) + "\n\n" + json.dumps(_ODD[2:], indent=1),
    ],
    ids=["lines", "CR", "marks", "array", "pretty", "CRLF", "objects", "joined", "rows in an array", "two arrays"],
)
def test_json_is_read_however_it_is_laid_out_and_named(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8", newline="")
    assert _read(path) == _EXPECTED
    assert open_input(path).count() == 4
    assert [record.index for record in open_input(path).records(2)] == [2, 3]


@pytest.mark.parametrize("text", ['{"data": [{"text": "a"}]}', '{"txt": "a"}\n{"txt": "b"}\n', '[{"txt": "a"}]'])
def test_json_that_would_be_rows_of_defaults_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(
        InputError, match=r"a\.json: none of its columns is a field of Text \('more', 'text'\): it has '(data|txt)'"
    ):
        InputModel(Text).require_columns(open_input(tmp_path / "a.json"))
    (tmp_path / "a.json").write_text("{}\n{}\n")
    InputModel(Text).require_columns(open_input(tmp_path / "a.json"))


@pytest.mark.parametrize("text", ["[]", "[\n]\n", " [ ] "])
def test_an_empty_array_holds_no_records(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    assert _read(tmp_path / "a.json") == []


def test_values_are_the_same_wherever_a_block_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    data = json.dumps(_ODD, indent=1).encode() + b'\n7, "x,\\", y", {"text": "\\\\"}\n}\n'
    whole = list(values(io.BytesIO(data), 1000))
    assert [line.number for line in whole] == [2, 14, 17, 18, 22, 22, 22, 23]
    for block in range(1, 40):
        monkeypatch.setattr("chainette.io.inputs.json_values._BLOCK", block)
        assert list(values(io.BytesIO(data), 1000)) == whole


def test_members_that_are_not_objects_are_rejected_one_by_one(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[{"text": "a"}, 1, null, "x, \\", y", [2, 3], nope, {"text": "b"}]')
    kind = "expected a JSON object, but this line is of type "
    first, number, null, text, array, garbage, last = _read(tmp_path / "a.json")
    assert [first, last] == ["a", "b"]
    assert [number, null, text, array] == [kind + "int", kind + "null", kind + "str", kind + "array"]
    assert garbage.startswith("not JSON")


@pytest.mark.parametrize("rows", [1, 20_000])
def test_a_member_that_is_not_an_object_costs_no_other_one_however_large_the_array_is(tmp_path: Path, rows: int) -> None:
    (tmp_path / "a.json").write_text(json.dumps([{"text": "a"}] * rows + [None]))
    *good, null = _read(tmp_path / "a.json")
    assert good == ["a"] * rows and null.endswith("of type null")


def test_an_array_that_is_cut_off_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('[{"text": "a"},\n{"text": "b"},\n')
    assert _read(path) == ["a", "b", "the file ends inside its array; was it cut off?"]
    path.write_text('[{"text": "a"},\n{"text": "b')
    assert _read(path) == ["a", "the file ends inside this value, which lacks a bracket or a quote"]
    assert [record.line for record in open_input(path).records()] == [1, 2]


@pytest.mark.parametrize("inside", ["text", "list"])
def test_a_value_of_50_mb_is_skipped_without_being_held(inside: str) -> None:
    long = b'"' + b'x\\"\n' * (12 << 20) + b'"' if inside == "text" else b"[" + b"1,\n" * (17 << 20) + b"1]"
    stream = io.BytesIO(b'[{"text": "a"},\n{"text": ' + long + b'},\n{"text": "b"}]')
    del long
    tracemalloc.start()
    first, bad, last = values(stream, 1 << 20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (first.data, last.data) == (b'{"text": "a"}', b'{"text": "b"}')
    assert "bytes long, more than the 1,048,576 allowed" in bad.error
    assert (first.number, bad.number, last.number) == (1, 2, 3 + stream.getvalue().count(b"\n") - 2)
    assert len(bad.data) == 65_536 and peak < 8 << 20


def test_a_first_line_that_is_broken_costs_itself_only(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"\n{"text": "b"}\n{"text": "c"}\n')
    broken, *others = _read(path)
    assert broken.startswith("not JSON: it ends too early") and others == ["b", "c"]


def test_a_table_whose_header_has_brackets_is_a_table(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("[text],{more}\na,1\n")
    assert open_input(tmp_path / "a.csv").columns() == ["[text]", "{more}"]


def test_a_first_object_longer_than_the_examined_part_is_read(tmp_path: Path) -> None:
    row = {"text": "x" * 100_000}
    for text in (json.dumps(row) + "\n" + json.dumps(row) + "\n", json.dumps([row, row]), json.dumps(row, indent=1) * 2):
        (tmp_path / "a.json").write_text(text)
        assert _read(tmp_path / "a.json") == [row["text"]] * 2


def test_a_large_array_is_counted_by_its_beginning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chainette.io.inputs.text_file._COUNTED_BYTES", 1 << 10)
    (tmp_path / "a.json").write_text(json.dumps([{"text": f"{n:08}"} for n in range(20_000)]))
    assert open_input(tmp_path / "a.json").count() == pytest.approx(20_000, rel=0.02)
