"""Decides from the input, the run directory and an undisturbed run of the same chain whether anything was lost or changed."""

from __future__ import annotations

import json
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from chainette.io.rundir.derived_files import render_files
from chainette.io.rundir.open import read_state
from chainette.io.rundir.paths import RunDir
from tests.chaos.site import Broken
from tests.support.readers import rows_of

__all__ = ["require_whole"]


def require_whole(directory: Path, undisturbed: Path, *, same_answers: bool) -> None:
    """Checks a finished run.

    Raises:
        Broken: with the first thing that is not as it must be.
    """
    _require_log(directory / "events.jsonl")
    _require_rows(directory, undisturbed, same_answers=same_answers)
    state, _ = read_state(RunDir(directory))
    for name, data in render_files(state).items():
        _require((directory / name).read_bytes() == data, f"{name} is not what the log implies")
    metadata = json.loads((directory / "metadata.json").read_text())
    _require(metadata["status"] == "finished" and metadata["balanced"], f"metadata.json says {metadata['status']}")


def _require(condition: bool, words: str) -> None:
    if not condition:
        raise Broken(words)


def _require_log(path: Path) -> None:
    """Every line is whole and in its place, and every root is complete once."""
    done: Counter[int] = Counter()
    for number, line in enumerate(path.read_bytes().splitlines()):
        body, crc = line[:-18] + b"}", line[-10:-2]
        _require(b"%08x" % zlib.crc32(body) == crc, f"line {number} of the log is damaged")
        event = json.loads(line)
        _require(event["seq"] == number, f"line {number} of the log says that it is {event['seq']}")
        done[event.get("root", -1)] += bool(event.get("root_done"))
    del done[-1]
    _require({*done.values()} == {1} and sorted(done) == list(range(len(done))), f"roots were completed {done}")


def _require_rows(directory: Path, undisturbed: Path, *, same_answers: bool) -> None:
    folders = sorted(path.name for path in undisturbed.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not same_answers:  # the arithmetic of a real model depends on its batch
        inputs, found = _ids(undisturbed, folders), _ids(directory, folders)
        _require(inputs == found, f"rows are missing or twice: {inputs - found}, {found - inputs}")
        return
    for folder in folders:
        expected, found = (Counter(map(_line, _rows(root / folder))) for root in (undisturbed, directory))
        more, less = list((found - expected).elements()), list((expected - found).elements())
        _require(not more and not less, f"{folder}: {len(more)} rows too many {more[:3]}, {len(less)} missing {less[:3]}")


def _ids(root: Path, folders: list[str]) -> Counter[str]:
    """The rows of the input, in `rejected` or `flattened`."""
    return Counter(row["row_id"] for folder in folders if folder in ("rejected", "flattened") for row in _rows(root / folder))


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, sort_keys=True, default=str)


def _rows(folder: Path) -> Iterator[dict[str, Any]]:
    return rows_of(sorted(folder.iterdir()) if folder.exists() else ())
