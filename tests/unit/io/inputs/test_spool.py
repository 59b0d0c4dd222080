"""An input that can be read once becomes a file that can be read again, whole or not at all."""

from __future__ import annotations

import datetime as dt
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from chainette.errors import InputError
from chainette.io.inputs.locate import BadRecord, InputModel, Record, open_input, spool


class Product(BaseModel):
    name: str
    price: float = 0.0
    tags: list[str] = []


def _row(record: Record) -> str:
    try:
        return InputModel(Product).validate(record)[0].decode()
    except BadRecord as error:
        return str(error)


def _rows(path: Path) -> list[str]:
    return [_row(record) for record in open_input(path).records()]


def test_models_and_dicts_are_spooled_and_read_back(tmp_path: Path) -> None:
    def items() -> Iterator[Any]:
        yield Product(name="a", price=1)
        yield {"name": "b", "day": dt.date(2026, 1, 2)}

    path = spool(items(), tmp_path / "inputs" / "0.jsonl")
    assert _rows(path) == [
        '{"name":"a","price":1.0,"tags":[]}',
        '{"name":"b","price":0.0,"tags":[]}',
    ]
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("stream", [io.BytesIO(b"name,price\na,1\n"), io.StringIO("name,price\na,1\n")])
def test_a_stream_is_spooled_byte_by_byte(tmp_path: Path, stream: Any) -> None:
    assert spool(stream, tmp_path / "stdin").read_bytes() == b"name,price\na,1\n"
    assert open_input(tmp_path / "stdin").kind == "csv"


@pytest.mark.parametrize("item", [{"name": "a", "price": float("nan")}, Product(name="a", price=float("inf"))])
def test_a_value_that_json_lacks_becomes_a_bad_record(tmp_path: Path, item: Any) -> None:
    path = spool([item, Product(name="b")], tmp_path / "a.jsonl")
    bad, good = _rows(path)
    assert "NaN and Infinity are not JSON" in bad
    assert good.startswith('{"name":"b"')


@pytest.mark.parametrize("item", [3, {"name": object()}])
def test_an_item_that_is_not_a_row_is_an_input_error_and_leaves_no_file(tmp_path: Path, item: Any) -> None:
    with pytest.raises(InputError, match="item 1 of the input"):
        spool([Product(name="a"), item], tmp_path / "a.jsonl")
    assert list(tmp_path.iterdir()) == []
