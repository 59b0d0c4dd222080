"""Columns as plain data, and back again."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict

from chainette.io.tables.columns import step_columns
from chainette.io.tables.features import columns_of, dataset_features, is_loose, is_open


class Inner(BaseModel):
    day: str | None
    counts: list[list[int]]
    more: dict[str, int]


class Row(BaseModel):
    text: str
    count: int
    ratio: float
    sure: bool
    words: list[str]
    inner: Inner
    many: list[Inner]
    anything: Any


class Flat(BaseModel):
    text: str
    words: list[str]


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")
    text: str


COLUMNS = step_columns(Row, [("row_id", str), ("_attempts", int)])


def test_columns_come_back_from_their_features() -> None:
    assert columns_of(dataset_features(COLUMNS)) == COLUMNS


@pytest.mark.parametrize(("model", "open", "loose"), [(Flat, False, False), (Row, False, True), (Open, True, True)])
def test_open_and_loose_columns_are_told_apart(model: type[BaseModel], open: bool, loose: bool) -> None:
    columns = step_columns(model)
    assert (is_open(columns), is_loose(columns)) == (open, loose)
