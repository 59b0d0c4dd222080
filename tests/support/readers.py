"""Reads the folders of a run as its own card says."""

from __future__ import annotations

import contextlib
import csv
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest

__all__ = ["TOOLS", "offline", "read", "recipe", "rows_of"]

#: In the order of the card.
TOOLS = ["pyarrow", "polars", "duckdb", "pandas", "datasets"]


def recipe(run: Path, tool: str, folder: str) -> str:
    """The part of the card's code that is about a tool, for a folder."""
    code = (run / "README.md").read_text().partition("```python\n")[2].partition("```")[0]
    parts = code.strip().split("\n\n")
    shown = re.search(r'load_dataset\(os.getcwd\(\), "(\w+)"', code)
    assert len(parts) == len(TOOLS) and shown is not None
    return parts[TOOLS.index(tool)].replace(shown[1], folder)


def read(run: Path, tool: str, folder: str) -> list[dict[str, Any]]:
    """The rows of a folder, by the code the run's card gives for a tool."""
    names: dict[str, Any] = {}
    with contextlib.chdir(run), offline(run.parent / "cache"):
        exec(recipe(run, tool, folder), names)
        rows = names["rows"]
        match tool:
            case "pyarrow":
                found = rows.to_pylist()
            case "polars":
                found = rows.to_dicts()
            case "duckdb":
                found = [dict(zip(rows.columns, row, strict=True)) for row in rows.fetchall()]
            case "pandas":
                found = rows.to_dict("records")
            case _:
                found = [dict(row) for row in rows]
    return list(found)


@contextlib.contextmanager
def offline(cache: Path) -> Iterator[None]:
    """`datasets` without its hub, with a cache of the test's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        import datasets

        datasets.disable_progress_bars()
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", str(cache))
        yield


def rows_of(shards: Iterable[Path]) -> Iterator[dict[str, Any]]:
    """Rows as a program reads them that knows nothing of Chainette."""
    for file in shards:
        if file.suffix == ".parquet":
            yield from pyarrow.parquet.read_table(file).to_pylist()
        elif file.suffix == ".csv":
            with file.open(newline="") as lines:
                yield from csv.DictReader(lines)
        else:
            yield from map(json.loads, file.read_bytes().splitlines())
