"""Inputs that change while a run reads them, or between two sessions of a run."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import BaseModel

from chainette import Chain, RunResult, apply
from chainette.errors import InputError
from chainette.hooks import Hook
from chainette.io.rundir.event_types import UnitCommitted

ROWS = 2000
#: Rows that are done when the input changes; far fewer than the reader may have read ahead.
WHEN = 200


class Text(BaseModel):
    text: str


def texts(word: str, rows: int = ROWS) -> list[str]:
    """Long enough that the file is read in many pieces, and not alike, so that gzip keeps it so."""
    return [f"{word}{number:06}" + os.urandom(400).hex() for number in range(rows)]


def jsonl(path: Path, values: list[str]) -> None:
    path.write_text("".join(json.dumps({"text": value}) + "\n" for value in values))


def packed(path: Path, values: list[str]) -> None:
    path.write_bytes(gzip.compress("".join(json.dumps({"text": value}) + "\n" for value in values).encode(), 1))


def zstd(path: Path, values: list[str]) -> None:
    text = "".join(json.dumps({"text": value}) + "\n" for value in values)
    path.write_bytes(pa.compress(text.encode(), codec="zstd", asbytes=True))


def csv(path: Path, values: list[str]) -> None:
    path.write_text("text\n" + "".join(f"{value}\n" for value in values))


def parquet(path: Path, values: list[str]) -> None:
    pq.write_table(pa.table({"text": values}), path, row_group_size=100, compression="none")


def folder(path: Path, values: list[str]) -> None:
    path.mkdir(exist_ok=True)
    for number in range(0, len(values), 100):
        parquet(path / f"{number}.parquet", values[number : number + 100])


def lines(path: Path, values: list[str]) -> None:
    path.mkdir(exist_ok=True)
    for number in range(0, len(values), 500):
        jsonl(path / f"{number}.jsonl", values[number : number + 500])


KINDS: dict[str, Callable[[Path, list[str]], None]] = {
    "in.jsonl": jsonl,
    "in.jsonl.gz": packed,
    "in.jsonl.zst": zstd,
    "in.csv": csv,
    "in.parquet": parquet,
    "shards": folder,
    "lines": lines,
}


@apply
def same(item: Text) -> Text:
    return Text(text=item.text[:9])


CHAIN = Chain(name="case", steps=[same], batch_size=16)


class After(Hook):
    """Does something once, when this many rows are durable."""

    def __init__(self, rows: int, deed: Callable[[], object]) -> None:
        self.rows, self.deed = rows, deed

    def on_event(self, event: object) -> None:
        if isinstance(event, UnitCommitted):
            before, self.rows = self.rows, self.rows - event.given
            if before > 0 >= self.rows:
                self.deed()


def run(path: Path, out: Path, deed: Callable[[], object] = bool, at: int = WHEN) -> RunResult:
    return CHAIN.run(path, out, window=64, hooks=(After(at, deed),))


def resumed(path: Path, out: Path) -> RunResult:
    return CHAIN.run(path, out, resume=True)


def kept(directory: Path) -> list[str]:
    return [
        json.loads(line)["text"]
        for file in sorted((directory / "same").glob("*.jsonl"), key=lambda file: int(file.stem))
        for line in file.read_text().splitlines()
    ]


def status(directory: Path) -> str:
    return str(json.loads((directory / "metadata.json").read_text())["status"])


def rewrite(path: Path, kind: str) -> None:
    """Other rows in the place of the old ones, byte by byte."""
    other = path.with_name("other")
    KINDS[kind](other, texts("NEW"))
    files = zip(sorted(path.iterdir()), sorted(other.iterdir()), strict=True) if path.is_dir() else [(path, other)]
    for file, new in files:
        with file.open("r+b") as target:
            target.write(new.read_bytes())


@pytest.mark.parametrize("kind", KINDS)
def test_an_input_that_is_rewritten_while_the_run_reads_it_stops_the_run_before_any_new_row(tmp_path: Path, kind: str) -> None:
    path, out = tmp_path / kind, tmp_path / "out"
    KINDS[kind](path, texts("OLD"))
    with pytest.raises(InputError, match="changed while the run was reading it"):
        run(path, out, lambda: rewrite(path, kind))
    assert {text[:3] for text in kept(out)} == {"OLD"} and len(kept(out)) >= WHEN
    assert status(out) == "paused"
    with pytest.raises(InputError, match=r"has changed since the run in .* began"):
        resumed(path, out)


def edit(path: Path, at: int) -> None:
    """Another byte at a place, in a row's text."""
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(b"a" if byte != b"a" else b"b")


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2 // 813 * 813)


def grow(path: Path) -> None:
    with path.open("a") as file:
        file.write(json.dumps({"text": "NEW"}) + "\n")


def replace(path: Path) -> None:
    other = path.with_name("other.jsonl")
    jsonl(other, texts("NEW"))
    other.replace(path)


def replace_with_the_same_times(path: Path) -> None:
    before = path.stat()
    replace(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def edit_with_the_same_times(path: Path) -> None:
    before = path.stat()
    edit(path, 813 * 20 + 100)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


CHANGES: dict[str, Callable[[Path], None]] = {
    "an edit of a line that was read": lambda path: edit(path, 813 * 20 + 100),
    "an edit of a line that was not": lambda path: edit(path, path.stat().st_size - 813 * 20),
    "truncated": cut,
    "appended": grow,
    "replaced": replace,
    "gone": Path.unlink,
    "an edit that keeps the times": edit_with_the_same_times,
    "replaced by one with the same times": replace_with_the_same_times,
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_of_the_input_is_found_while_it_is_read_and_the_run_goes_on_with_the_old_file(
    tmp_path: Path, change: str
) -> None:
    path, out = tmp_path / "in.jsonl", tmp_path / "out"
    old = texts("OLD")
    jsonl(path, old)
    os.utime(path, (1_600_000_000, 1_600_000_000))
    data = path.read_bytes()
    with pytest.raises(InputError, match=r"changed while the run was reading it|can no longer be read"):
        run(path, out, lambda: CHANGES[change](path))
    assert set(kept(out)) <= {text[:9] for text in old}
    assert WHEN <= len(kept(out)) < ROWS
    assert status(out) == "paused"
    path.write_bytes(data)
    result = resumed(path, out)
    assert result.status == "finished"
    assert sorted(kept(out)) == sorted(text[:9] for text in old)


def test_a_file_that_is_renamed_linked_or_made_read_only_is_the_same_file(tmp_path: Path) -> None:
    path, out = tmp_path / "in.jsonl", tmp_path / "out"
    jsonl(path, texts("OLD"))

    def handle() -> None:
        os.link(path, tmp_path / "linked")
        path.chmod(0o444)

    assert run(path, out, handle).counts["same"]["out"] == ROWS


def test_what_happens_to_a_file_that_was_read_to_its_end_concerns_no_row(tmp_path: Path) -> None:
    path, out = tmp_path / "in.jsonl", tmp_path / "out"
    jsonl(path, texts("OLD", 100))
    digest = run(path, tmp_path / "before").metadata["input"]["digest"]
    result = run(path, out, path.unlink, at=100)
    assert result.status == "finished" and len(kept(out)) == 100
    assert result.metadata["input"]["digest"] == digest


@pytest.fixture
def half(tmp_path: Path) -> tuple[Path, Path]:
    """An input of which a run has read about a half, and the run's directory."""
    path, out = tmp_path / "in.jsonl", tmp_path / "out"
    jsonl(path, texts("OLD", 4 * ROWS))
    os.utime(path, (1_600_000_000, 1_600_000_000))

    def grown() -> None:
        with path.open("a") as file:
            file.write("\n")

    with pytest.raises(InputError):
        run(path, out, grown, 2 * ROWS)
    os.truncate(path, path.stat().st_size - 1)
    os.utime(path, (1_600_000_000, 1_600_000_000))
    return path, out


@pytest.mark.parametrize("row", [0, 1, 777, 2 * ROWS - 1])
@pytest.mark.parametrize("times", ["as they are", "set back"])
def test_any_byte_of_what_was_read_keeps_a_resume_from_mixing_two_inputs(half: tuple[Path, Path], row: int, times: str) -> None:
    path, out = half
    before = path.stat()
    edit(path, 822 * row + 50)
    if times == "set back":
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    log = (out / "events.jsonl").read_bytes()
    with pytest.raises(InputError, match=r"its size is the same .*, but the first [\d,]+, which were read, are not"):
        resumed(path, out)
    assert (out / "events.jsonl").read_bytes() == log


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (grow, "its beginning is unchanged, so it seems to have grown"),
        (cut, r"6,\d+,\d+ bytes then, 3,\d+,\d+ now"),
        (replace, r"6,\d+,\d+ bytes then, 1,\d+,\d+ now"),
    ],
)
def test_a_resume_says_how_an_input_of_another_size_has_changed(
    half: tuple[Path, Path], change: Callable[[Path], None], said: str
) -> None:
    path, out = half
    change(path)
    with pytest.raises(InputError, match=said):
        resumed(path, out)


@pytest.mark.long
def test_what_was_not_read_yet_may_be_mended(half: tuple[Path, Path]) -> None:
    path, out = half
    edit(path, 822 * 3 * ROWS + 20)
    expected = [json.loads(line)["text"][:9] for line in path.read_text().splitlines()]
    assert resumed(path, out).status == "finished"
    assert sorted(kept(out)) == sorted(expected)


@pytest.mark.long
def test_other_times_cost_a_resume_the_reading_only(half: tuple[Path, Path]) -> None:
    path, out = half
    os.utime(path)
    assert resumed(path, out).counts["same"]["out"] == 4 * ROWS


def test_rows_of_python_and_standard_input_are_read_from_a_copy_that_is_watched_alike(tmp_path: Path) -> None:
    out, rows = tmp_path / "out", [{"text": text} for text in texts("OLD")]
    with pytest.raises(InputError, match="changed while the run was reading it"):
        CHAIN.run(rows, out, window=64, hooks=(After(WHEN, lambda: edit(out / "inputs/0.jsonl", 100)),))
    assert {text[:3] for text in kept(out)} == {"OLD"}


def test_the_digest_of_a_finished_run_is_that_of_the_whole_file(tmp_path: Path) -> None:
    for kind in ("in.jsonl", "in.jsonl.gz", "in.csv", "in.parquet"):
        path = tmp_path / kind
        KINDS[kind](path, texts("OLD", 500))
        result = run(path, tmp_path / f"{kind}.out")
        assert result.metadata["input"]["digest"] == hashlib.sha256(path.read_bytes()).hexdigest()
        log = (tmp_path / f"{kind}.out/events.jsonl").read_text()
        assert f'"digest":"{result.metadata["input"]["digest"]}"' in log.partition("run_finished")[0]  # known while it was read


def test_the_log_grows_with_the_input_and_not_with_its_roots(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    jsonl(path, [f"row {number}" for number in range(5000)])  # 90 KB
    run(path, tmp_path / "out")
    assert (tmp_path / "out/events.jsonl").read_text().count("input_read") == 1
