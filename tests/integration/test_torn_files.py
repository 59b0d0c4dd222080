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
from chainette.core.compile import compile_chain
from chainette.errors import ChainetteError, DamagedRun, RunDirectoryError
from chainette.io.rundir.derived_files import render_files
from chainette.io.rundir.durable_rows import ShardReader
from chainette.io.rundir.event_log import read_log
from chainette.io.rundir.event_types import UnitCommitted
from chainette.io.rundir.folder_rows import read_folder, require_content
from chainette.io.rundir.open import read_state
from chainette.io.rundir.paths import RunDir
from chainette.run.executor import resume, retry_rejected
from tests.support.chains import content, everything, write_inputs
from tests.support.crash import copies
from tests.support.tools import many

FORMATS = ("jsonl", "parquet", "csv")

#: Damages of one kind in one format.
TRIES = many(2, 8, 60)


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
    return {folder: list(read_folder(run, state, folder)) for folder in state.shards.ends}


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


@dataclass(frozen=True)
class Damaged:
    """A damaged copy of a run directory."""

    source: Path
    path: Path
    #: Which byte of which file was changed, for messages.
    words: str

    def is_named_in(self, error: ChainetteError) -> bool:
        return str(self.path) in str(error) or "events.jsonl" in str(error)


def every_damage(tmp_path: Path, sources: list[Path], judge: Callable[[Damaged], None]) -> None:
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
    @example(Damage(77, 0.595, 4), 58)  # one letter of a row whose file is written again by a retry
    def damaged(damage: Damage, which: int) -> None:
        number[0] += 1
        source, copy = sources[which % len(sources)], tmp_path / str(number[0])
        shutil.copytree(source, copy)
        judge(Damaged(source, copy, damage.apply(copy)))
        shutil.rmtree(copy)

    damaged()


def test_a_stopped_run_is_resumed_to_its_very_rows_or_refused(runs: Runs, tmp_path: Path) -> None:
    def judge(damaged: Damaged) -> None:
        log = (damaged.path / "events.jsonl").read_bytes()
        try:
            result = resume(damaged.path, runs.chain)
        except (DamagedRun, RunDirectoryError) as error:
            assert damaged.is_named_in(error), damaged.words
            assert (damaged.path / "events.jsonl").read_bytes().startswith(log), f"refused, and cut off: {damaged.words}"
        else:
            assert content(result) == runs.rows, damaged.words
            assert result.metadata["balanced"], damaged.words

    every_damage(tmp_path, runs.stopped, judge)


def test_a_finished_run_is_read_as_it_was_or_refused(runs: Runs, tmp_path: Path) -> None:
    def judge(damaged: Damaged) -> None:
        try:
            state, _ = read_state(RunDir(damaged.path))
            if state.status == "finished":
                assert read(damaged.path) == runs.read, damaged.words
        except ChainetteError as error:
            assert damaged.is_named_in(error), damaged.words

    every_damage(tmp_path, [runs.finished], judge)


@pytest.mark.long
def test_a_damaged_finished_run_is_made_whole_by_resume_or_refused(runs: Runs, tmp_path: Path) -> None:
    def judge(damaged: Damaged) -> None:
        try:
            result = resume(damaged.path, runs.chain)
        except (DamagedRun, RunDirectoryError) as error:
            assert damaged.is_named_in(error), damaged.words
        else:
            assert content(result) == runs.rows, damaged.words

    every_damage(tmp_path, [runs.finished], judge)


@pytest.mark.long
def test_rows_that_a_run_keeps_from_before_a_step_are_those_of_the_run_or_refused(runs: Runs, tmp_path: Path) -> None:
    def judge(damaged: Damaged) -> None:
        try:
            assert content(resume(damaged.path, runs.chain, from_step="hidden")) == runs.rows, damaged.words
        except (DamagedRun, RunDirectoryError) as error:
            assert damaged.is_named_in(error), damaged.words

    every_damage(tmp_path, [runs.finished], judge)


def test_a_retry_of_a_damaged_run_gives_the_rows_of_a_retry_of_the_whole_one_or_is_refused(runs: Runs, tmp_path: Path) -> None:
    retried: dict[tuple[Path, int], dict[str, list[str]]] = {}

    def rows_of_a_retry(source: Path, lines: int) -> dict[str, list[str]]:
        """The rows of a retry after a crash that left so many lines of the log."""
        if (source, lines) not in retried:
            whole = tmp_path / "whole"
            shutil.copytree(source, whole)
            log = (whole / "events.jsonl").read_bytes().splitlines(keepends=True)
            (whole / "events.jsonl").write_bytes(b"".join(log[:lines]))
            retried[source, lines] = content(retry_rejected(whole, runs.chain))
            shutil.rmtree(whole)
        return retried[source, lines]

    def judge(damaged: Damaged) -> None:
        try:
            lines = sum(1 for _ in read_log(damaged.path / "events.jsonl"))
            rows = content(retry_rejected(damaged.path, runs.chain))
        except (DamagedRun, RunDirectoryError) as error:
            assert damaged.is_named_in(error), damaged.words
        else:
            assert rows == rows_of_a_retry(damaged.source, lines), damaged.words

    every_damage(tmp_path, runs.stopped, judge)


def test_the_derived_files_are_those_of_the_run_or_refused(runs: Runs, tmp_path: Path) -> None:
    whole = render_files(read_state(RunDir(runs.finished))[0])

    def judge(damaged: Damaged) -> None:
        run = RunDir(damaged.path)
        try:
            state, _ = read_state(run)
            require_content(run, state)
        except ChainetteError as error:
            assert damaged.is_named_in(error), damaged.words
            return
        if state.status == "finished":
            assert render_files(state) == whole, damaged.words

    every_damage(tmp_path, [runs.finished], judge)


def test_a_journal_that_a_kill_left_beside_its_sealed_shard_is_not_read(runs: Runs, tmp_path: Path) -> None:
    copy = shutil.copytree(runs.finished, tmp_path / "copy")
    run = RunDir(copy)
    state, _ = read_state(run)
    for folder, numbers in state.shards.sealed.items():
        for number in numbers:
            journal = run.journals / folder / f"{number}.jsonl"
            journal.parent.mkdir(parents=True, exist_ok=True)
            journal.write_bytes(b"\0 no row\n")
    assert rows_of_units(run, runs.chain) == rows_of_units(RunDir(runs.finished), runs.chain)


def rows_of_units(run: RunDir, chain: Chain) -> list[bytes]:
    """The rows of every unit, as a retry reads them."""
    reader = ShardReader(run, compile_chain(chain), read_state(run)[0])
    units = [event for _, event in read_log(run.log) if isinstance(event, UnitCommitted)]
    shown = [(unit, file.rpartition("/")[0]) for unit in units for file in unit.off if not file.startswith(run.held.name)]
    return [line for unit, folder in shown for line in reader.read(folder, unit.off)]
