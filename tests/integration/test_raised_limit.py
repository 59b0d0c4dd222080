"""A resume that takes more of the input than the run was begun with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import BaseModel

from chainette import Chain, RunResult, Step, apply, register_engine
from chainette.engine.config import EngineRegistry, using_registry
from chainette.errors import RunDirectoryError, RunStopped
from chainette.hooks import Hook
from chainette.io.rundir.event_types import UnitCommitted
from chainette.run import executor


class Text(BaseModel):
    text: str


class Name(BaseModel):
    name: str


@apply(id="pair")
def pair(item: Name) -> list[Name]:
    return [item, item]


def chain(hidden: bool = False) -> Chain:
    registry = EngineRegistry()
    with using_registry(registry):
        register_engine("writer", "w", "simulated")
        first = Step(id="first", input_model=Text, output_model=Name, engine_name="writer", yield_output=not hidden)
        last = Step(id="last", output_model=Name, engine_name="writer")
        return Chain(name="case", steps=[first, pair, last], batch_size=8)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps({"text": f"row {number}"}) + "\n" for number in range(100)))
    return path


def rows(result: RunResult, step: str) -> list[tuple[Any, ...]]:
    return sorted(tuple(sorted(row.items())) for row in result.rows(step))


FOLDERS = ("first", "pair", "last", "flattened")


@pytest.mark.parametrize("format", ["jsonl", "parquet", "csv"])
@pytest.mark.parametrize("limits", [(2, 3), (8, 9), (5, 16, 17, 100), (16, 1000), (100, 120)], ids=str)
def test_a_finished_run_with_a_raised_limit_has_the_rows_of_one_that_had_it_from_the_start(
    path: Path, tmp_path: Path, format: Literal["jsonl", "parquet", "csv"], limits: tuple[int, ...]
) -> None:
    out = tmp_path / "out"
    result = chain().run(path, out, limit=limits[0], format=format)
    for limit in limits[1:]:
        result = executor.resume(out, chain(), limit=limit)
        assert result.status == "finished" and result.metadata["records"] == min(limit, 100)
        assert result.metadata["settings"]["limit"] == limit and result.metadata["balanced"]
    expected = chain().run(path, tmp_path / "whole", limit=limits[-1], format=format)
    for step in FOLDERS:
        assert rows(result, step) == rows(expected, step)


def test_a_run_that_was_interrupted_takes_a_raised_limit_too(path: Path, tmp_path: Path) -> None:
    class Stop(Hook):
        rows = 0

        def on_event(self, event: object) -> None:
            self.rows += event.given if isinstance(event, UnitCommitted) else 0
            if self.rows > 30:
                raise RunStopped("enough")

    out = tmp_path / "out"
    with pytest.raises(RunStopped):
        chain().run(path, out, limit=30, window=8, hooks=(Stop(),))
    with pytest.raises(RunStopped):
        chain().run(path, out, limit=60, resume=True, window=8, hooks=(Stop(),))
    result = executor.resume(out, chain())  # the raised limit is in the log
    expected = chain().run(path, tmp_path / "whole", limit=60)
    for step in FOLDERS:
        assert rows(result, step) == rows(expected, step)


def test_a_limit_is_raised_and_never_lowered(path: Path, tmp_path: Path) -> None:
    chain().run(path, tmp_path / "limited", limit=10)
    log = (tmp_path / "limited/events.jsonl").read_bytes()
    with pytest.raises(RunDirectoryError, match=r"the run takes 10 records, .* a limit can be raised, not lowered to 9"):
        executor.resume(tmp_path / "limited", chain(), limit=9)
    assert executor.resume(tmp_path / "limited", chain(), limit=10).metadata["records"] == 10
    assert (tmp_path / "limited/events.jsonl").read_bytes() == log
    chain().run(path, tmp_path / "whole")
    with pytest.raises(RunDirectoryError, match="the run takes the whole input; a limit of 10 cannot be set afterwards"):
        chain().run(path, tmp_path / "whole", limit=10, resume=True)


def test_rows_of_a_hidden_step_that_are_gone_are_not_needed_for_more_records(path: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    chain(hidden=True).run(path, out, limit=10)
    result = executor.resume(out, chain(hidden=True), limit=30)
    expected = chain(hidden=True).run(path, tmp_path / "whole", limit=30)
    for step in ("pair", "last", "flattened"):
        assert rows(result, step) == rows(expected, step)


def test_a_step_can_be_recomputed_after_the_limit_was_raised(path: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    chain().run(path, out, limit=10)
    executor.resume(out, chain(), limit=30)
    result = executor.resume(out, chain(), from_step="last")
    expected = chain().run(path, tmp_path / "whole", limit=30)
    assert result.metadata["records"] == 30
    for step in FOLDERS:
        assert rows(result, step) == rows(expected, step)
