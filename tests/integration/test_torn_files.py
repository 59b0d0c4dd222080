"""Files of a run directory are truncated or changed at random bytes: its rows come back exactly, or are refused by name.

Nobody gets fewer rows, or others, without being told.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from chainette import Chain
from chainette.errors import ChainetteError, DamagedRun, RunDirectoryError
from chainette.io.rundir.open import read_state
from chainette.io.rundir.paths import RunDir
from chainette.io.rundir.publish import render_files
from chainette.io.rundir.reading import read_folder, require_content
from chainette.run.executor import resume
from tests.support.chains import content, everything, write_inputs
from tests.support.crash import copies
from tests.support.tools import CI

FORMATS = ("jsonl", "parquet", "csv")

#: Damages of one kind in one format.
TRIES = 60 if CI else 6


@dataclass(frozen=True)
class Runs:
    """A chain's run in one format: whole, and as it was at some steps on the way."""

    chain: Chain
    finished: Path
    stopped: list[Path]
    rows: dict[str, list[str]]
    #: Folder -> its rows as `chainette rows` reads them.
    read: dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module", params=FORMATS)
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    base, chain = tmp_path_factory.mktemp(request.param), everything()
    inputs = write_inputs(base / "inputs.jsonl", 26, bad=(3, 20))
    with copies(base / "run", base / "copies", every=13) as taken:
        result = chain.run(inputs, base / "run", format=request.param, max_rows_per_file=10)
    stopped = [copy for copy in taken if b'"unit_committed"' in (copy / "events.jsonl").read_bytes()]
    assert len(stopped) > 3
    return Runs(chain, result.dir, stopped, content(result), read(result.dir))


def read(directory: Path) -> dict[str, list[dict[str, Any]]]:
    run = RunDir(directory)
    state, _ = read_state(run)
    return {folder: list(read_folder(run, state, folder)) for folder in state.ends}


def files_of(directory: Path) -> list[Path]:
    """The log, the shards and the journals."""
    found = [path for path in directory.rglob("*") if path.suffix in (".jsonl", ".parquet", ".csv")]
    return sorted(path for path in found if path.stat().st_size and path.parent.name != "inputs")


@dataclass(frozen=True)
class Damage:
    which: int
    place: float
    #: XORed into one byte; 0 truncates the file there.
    change: int

    def apply(self, directory: Path) -> str:
        files = files_of(directory)
        path = files[self.which % len(files)]
        data = bytearray(path.read_bytes())
        at = min(len(data) - 1, int(self.place * len(data)))
        if self.change:
            data[at] ^= self.change
        path.write_bytes(data if self.change else data[:at])
        return f"{path.relative_to(directory)}: byte {at} of {len(data)}, change {self.change}"


DAMAGES = st.builds(Damage, st.integers(0, 200), st.floats(0, 1, exclude_max=True), st.sampled_from([0, 1, 4, 32, 128, 255]))


def every_damage(tmp_path: Path, sources: list[Path], judge: Callable[[Path, str], None]) -> None:
    number = [0]

    @settings(
        max_examples=TRIES,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=[*HealthCheck],
        phases=[Phase.explicit, Phase.generate],
    )
    @given(DAMAGES, st.integers(0, 100))
    @example(Damage(28, 0.17452701834044992, 255), 28)  # text in Parquet that is no UTF-8
    @example(Damage(117, 0.8397636157897602, 128), 68)  # text in CSV that is no UTF-8
    @example(Damage(16, 0, 1), 100)  # a CSV header without row_id
    def damaged(damage: Damage, which: int) -> None:
        number[0] += 1
        copy = tmp_path / str(number[0])
        shutil.copytree(sources[which % len(sources)], copy)
        judge(copy, damage.apply(copy))
        shutil.rmtree(copy)

    damaged()


def test_a_stopped_run_is_resumed_to_its_very_rows_or_refused(runs: Runs, tmp_path: Path) -> None:
    def judge(copy: Path, words: str) -> None:
        log = (copy / "events.jsonl").read_bytes()
        try:
            result = resume(copy, runs.chain)
        except (DamagedRun, RunDirectoryError) as error:
            assert str(copy) in str(error) or "events.jsonl" in str(error), words
            assert (copy / "events.jsonl").read_bytes().startswith(log), f"refused, and cut off: {words}"
        else:
            assert content(result) == runs.rows, words
            assert result.metadata["balanced"], words

    every_damage(tmp_path, runs.stopped, judge)


def test_a_finished_run_is_read_as_it_was_or_refused(runs: Runs, tmp_path: Path) -> None:
    def judge(copy: Path, words: str) -> None:
        try:
            state, _ = read_state(RunDir(copy))
            if state.status == "finished":
                assert read(copy) == runs.read, words
        except ChainetteError as error:
            assert str(copy) in str(error) or "events.jsonl" in str(error), words

    every_damage(tmp_path, [runs.finished], judge)


def test_a_damaged_finished_run_is_made_whole_by_resume_or_refused(runs: Runs, tmp_path: Path) -> None:
    def judge(copy: Path, words: str) -> None:
        try:
            result = resume(copy, runs.chain)
        except (DamagedRun, RunDirectoryError) as error:
            assert str(copy) in str(error) or "events.jsonl" in str(error), words
        else:
            assert content(result) == runs.rows, words

    every_damage(tmp_path, [runs.finished], judge)


def test_rows_that_a_run_keeps_from_before_a_step_are_those_of_the_run_or_refused(runs: Runs, tmp_path: Path) -> None:
    def judge(copy: Path, words: str) -> None:
        try:
            assert content(resume(copy, runs.chain, from_step="hidden")) == runs.rows, words
        except (DamagedRun, RunDirectoryError) as error:
            assert str(copy) in str(error) or "events.jsonl" in str(error), words

    every_damage(tmp_path, [runs.finished], judge)


def test_the_derived_files_are_those_of_the_run_or_refused(runs: Runs, tmp_path: Path) -> None:
    whole = render_files(read_state(RunDir(runs.finished))[0])

    def judge(copy: Path, words: str) -> None:
        run = RunDir(copy)
        try:
            state, _ = read_state(run)
            require_content(run, state)
        except ChainetteError as error:
            assert str(copy) in str(error) or "events.jsonl" in str(error), words
            return
        if state.status == "finished":
            assert render_files(state) == whole, words

    every_damage(tmp_path, [runs.finished], judge)
