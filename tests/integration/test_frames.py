"""Data frames, Arrow tables and datasets as the input of a run: the same rows as from a file."""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from pydantic import BaseModel, ConfigDict, RootModel

import chainette
from chainette import Chain, apply
from chainette.errors import InputError
from chainette.run.executor import resume


class Item(BaseModel):
    model_config = ConfigDict(ser_json_inf_nan="strings")

    name: str
    day: datetime.date
    size: float | None
    tags: list[str]


class Whole(RootModel[dict[str, Any]]):
    pass


class Seen(BaseModel):
    name: str
    is_number: bool
    year: int
    tags: int


@apply
def see(item: Item) -> Seen:
    return Seen(name=item.name, is_number=item.size is not None, year=item.day.year, tags=len(item.tags))


def seeing() -> Chain:
    return Chain(name="seeing", steps=[see], batch_size=2)


ROWS: list[dict[str, Any]] = [
    {"name": f"n{at}", "day": datetime.date(2020 + at, 1, 2), "size": None if at == 1 else at / 2, "tags": ["a"] * at}
    for at in range(5)
]
FRAMES: dict[str, Callable[[], Any]] = {
    "pandas": lambda: pd.DataFrame(ROWS, index=list("vwxyz")),
    "pandas with a named index": lambda: pd.DataFrame(ROWS, index=pd.Index(range(5), name="at")),
    "polars": lambda: pl.DataFrame(ROWS),
    "arrow": lambda: pa.Table.from_pylist(ROWS),
    "arrow batches": lambda: pa.Table.from_pylist(ROWS).to_reader(2),
    "dataset": lambda: datasets.Dataset.from_list(ROWS),
    "iterable dataset": lambda: datasets.Dataset.from_list(ROWS).to_iterable_dataset(),
}


@pytest.mark.parametrize("kind", FRAMES)
def test_a_frame_gives_the_rows_that_its_dicts_give(tmp_path: Path, kind: str) -> None:
    expected = sorted(seeing().run(ROWS, tmp_path / "dicts").models(see))
    assert expected[1] == ("1", Seen(name="n1", is_number=False, year=2021, tags=1)) and len(expected) == 5
    assert sorted(seeing().run(FRAMES[kind](), tmp_path / "frame").models(see)) == expected


def test_an_index_of_pandas_is_no_column(tmp_path: Path) -> None:
    frame = pd.DataFrame({"n": [1, 2]}, index=pd.MultiIndex.from_tuples([("a", 1), ("b", 2)]))
    seen: list[dict[str, Any]] = []

    def keep(item: Whole) -> Whole:
        seen.append(item.root)
        return item

    Chain(name="kept", steps=[apply(keep)]).run(frame, tmp_path / "run")
    assert sorted(row["n"] for row in seen) == [1, 2] and all(list(row) == ["n"] for row in seen)


def test_nan_is_missing_in_pandas_and_a_number_in_polars_and_arrow(tmp_path: Path) -> None:
    rows = [ROWS[0] | {"size": math.nan}]
    for name, frame, is_number in (
        ("pandas", pd.DataFrame(rows), False),
        ("polars", pl.DataFrame(rows), True),
        ("arrow", pa.Table.from_pylist(rows), True),
    ):
        [(_, seen)] = seeing().run(frame, tmp_path / name).models(see)
        assert (name, seen.is_number) == (name, is_number)


def test_the_result_of_one_run_is_the_input_of_the_next(tmp_path: Path) -> None:
    first = seeing().run(ROWS, tmp_path / "first")
    names: list[str] = []

    def name_of(item: Whole) -> Whole:
        names.append(item.root["see.name"])
        return item

    Chain(name="next", steps=[apply(name_of)]).run(first, tmp_path / "second")
    assert sorted(names) == [row["name"] for row in ROWS]


def test_a_stopped_run_over_a_frame_is_resumed_without_it(tmp_path: Path) -> None:
    class Stop(chainette.hooks.Hook):
        def on_event(self, event: object) -> None:
            if getattr(event, "root", None) == 1:
                raise RuntimeError("stopped here")

    with pytest.raises(RuntimeError, match="stopped here"):
        seeing().run(pl.DataFrame(ROWS), tmp_path / "run", hooks=(Stop(),))
    assert len(list(resume(tmp_path / "run", seeing()).models(see))) == 5


@pytest.mark.parametrize("frame", [pd.DataFrame(ROWS), pl.DataFrame(ROWS)], ids=["pandas", "polars"])
def test_a_frame_may_be_given_again_and_is_never_compared(tmp_path: Path, frame: Any) -> None:
    seeing().run(frame, tmp_path / "run", accept=2)
    assert seeing().run(frame, tmp_path / "run", resume=True, accept=3).metadata["rows_finished"] == 3


def test_a_column_that_parquet_cannot_hold_is_named(tmp_path: Path) -> None:
    table = pa.table({"name": ["a"], "span": pa.array([(1, 2, 3)], pa.month_day_nano_interval())})
    with pytest.raises(
        InputError, match=r"pyarrow.Table cannot be written as Parquet: .*month_day_nano.*; give its rows as dicts"
    ):
        seeing().run(table, tmp_path / "run")


def test_a_frame_with_none_of_the_columns_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="none of its columns is a field of Item"):
        seeing().run(pl.DataFrame({"title": ["a"]}), tmp_path / "run")
