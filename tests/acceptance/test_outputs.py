"""The folders of a run in pandas, polars, duckdb and `datasets`: every row, once, with its values and their types."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from pydantic import BaseModel

from chainette import Chain, Step, apply, register_engine
from chainette.core.run_settings import Format
from chainette.engine.config import EngineRegistry, using_registry
from chainette.hooks import Hook
from chainette.io.rundir.event_types import Event, UnitCommitted
from chainette.io.rundir.result import RunResult
from chainette.run.executor import resume
from tests.support.readers import TOOLS, read

FORMATS = ["jsonl", "parquet", "csv"]
FOLDERS = ["extract", "check", "flattened", "rejected"]
ROWS = 40

Rows = list[dict[str, Any]]


class Text(BaseModel):
    text: str


class Fact(BaseModel):
    name: str
    kind: Literal["None", "NA", "plain"]
    score: int
    ratio: float
    sure: bool
    tags: list[str]
    note: str | None


def check(fact: Fact) -> Fact:
    """Refuses about half."""
    if fact.sure:
        raise ValueError(f"too sure, of {fact.name!r}\nand it says so in two lines")
    return fact


def refuse(fact: Fact) -> Fact:
    raise ValueError("never")


def make_chain(last: Callable[[Fact], Fact] = check) -> Chain:
    with using_registry(EngineRegistry()):
        register_engine("llm", "none", "simulated")
        extract = Step(id="extract", input_model=Text, output_model=Fact, engine_name="llm")
        return Chain(name="facts", steps=[extract, apply(last, id="check")], batch_size=8)


def inputs(rows: int) -> list[Text]:
    return [Text(text=f'row {number}, "quoted", ü') for number in range(rows)]


class Interrupt(Hook):
    """Stops a run after so many units."""

    def __init__(self, units: int) -> None:
        self.units = units

    def on_event(self, event: Event) -> None:
        if isinstance(event, UnitCommitted):
            self.units -= 1
            if self.units == 0:
                raise RuntimeError("stopped by the test")


@pytest.fixture(scope="module", params=[f"{kind} {how}" for kind in FORMATS for how in ("at once", "resumed")])
def result(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """A run with rejected rows in several shards per folder, done at once or in two sessions."""
    kind, _, how = request.param.partition(" ")
    directory, chain = tmp_path_factory.mktemp("outputs") / "run", make_chain()
    options: dict[str, Any] = {"format": kind, "max_rows_per_file": 15}
    if how == "at once":
        return chain.run(inputs(ROWS), directory, **options)
    with pytest.raises(RuntimeError, match="stopped by the test"):
        chain.run(inputs(ROWS), directory, hooks=(Interrupt(4),), window=16, **options)
    return resume(directory, chain)


def plain(value: Any) -> Any:
    """A value of any reader as JSON has it."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    return None if isinstance(value, float) and math.isnan(value) else value


def as_text(rows: Iterable[dict[str, Any]], format: str = "") -> list[str]:
    """Rows as sorted JSON, in which 1, 1.0 and true differ. The lists of CSV are JSON in their cells."""
    found = []
    for row in rows:
        row = {name: plain(value) for name, value in row.items()}
        if format == "csv":
            row |= {name: json.loads(row[name]) for name in row if name.endswith("tags")}
        found.append(json.dumps(row, sort_keys=True))
    return sorted(found)


@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.parametrize("reader", TOOLS)
def test_every_reader_gives_every_row_with_its_types(result: RunResult, reader: str, folder: str) -> None:
    kind = result.metadata["settings"]["format"]
    expected = list(result.rows(folder))
    rows = read(result.dir, reader, folder)
    assert as_text(rows, kind) == as_text(expected)


def test_the_run_that_is_read_is_worth_reading(result: RunResult) -> None:
    counts = result.metadata["steps"]["check"]
    assert (counts["in"], counts["out"] + counts["rejected"]) == (ROWS, ROWS)
    assert counts["out"] > 8 and counts["rejected"] > 8
    rows = list(result.rows("extract"))
    assert {row["kind"] for row in rows} == {"None", "NA", "plain"}
    assert {type(row["note"]) for row in rows} == {str, type(None)}
    assert len(list((result.dir / "extract").iterdir())) == 3
    assert [type(value) for value in rows[0].values()][:6] == [str, str, str, int, float, bool]


def configs(directory: Path) -> list[str]:
    """The names the dataset card offers."""
    head = yaml.safe_load((directory / "README.md").read_text().split("---\n")[1])
    return [config["config_name"] for config in head.get("configs", ())]


@pytest.mark.parametrize("format", FORMATS)
def test_a_run_without_finished_rows_loads_what_there_is(tmp_path: Path, format: Format) -> None:
    result = make_chain(refuse).run(inputs(5), tmp_path / "run", format=format)
    assert configs(result.dir) == ["extract", "rejected"]
    assert not (result.dir / "flattened").exists() and not (result.dir / "check").exists()
    for reader in TOOLS:
        expected = list(result.rows("rejected"))
        rows = read(result.dir, reader, "rejected")
        assert len(rows) == len(expected) == 5, reader


@pytest.mark.parametrize("format", FORMATS)
def test_a_run_without_rejected_rows_has_no_such_folder_and_a_card_that_loads(tmp_path: Path, format: Format) -> None:
    result = Chain(name="kept", steps=[apply(lambda item: item, id="keep", input_model=Text, output_model=Text)]).run(
        inputs(5), tmp_path / "run", format=format
    )
    assert configs(result.dir) == ["keep", "flattened"]
    assert not (result.dir / "rejected").exists() and list(result.rows("rejected")) == []
    assert len(read(result.dir, "datasets", "keep")) == len(read(result.dir, "datasets", "flattened")) == 5


@pytest.mark.parametrize("format", FORMATS)
def test_a_run_over_nothing_has_a_card_without_configs(tmp_path: Path, format: Format) -> None:
    result = make_chain().run([], tmp_path / "run", format=format)
    assert configs(result.dir) == []
    assert [list(result.rows(folder)) for folder in FOLDERS] == [[], [], [], []]


class Part(BaseModel):
    code: str


def twelve(item: Text) -> list[Part]:
    return [Part(code="007") for _ in range(12)]


EXPANDED = sorted(f"{row}~{part}" for row in range(2) for part in range(12))


@pytest.mark.parametrize("format", FORMATS)
def test_ids_of_expanded_rows_are_text_in_every_reader(tmp_path: Path, format: Format) -> None:
    result = Chain(name="parts", steps=[apply(twelve)]).run(inputs(2), tmp_path / "run", format=format)
    for reader in TOOLS:
        rows = read(result.dir, reader, "twelve")
        assert sorted(row["row_id"] for row in rows) == EXPANDED, reader
        assert {row["code"] for row in rows} == {"007"}, reader
