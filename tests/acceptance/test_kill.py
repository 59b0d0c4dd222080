"""Processes that die: kill -9 at any disk step, again and again, SIGTERM, Ctrl-C twice; a resume comes to the same rows."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from chainette.io.rundir.directory_swap import finish_swap
from chainette.io.rundir.paths import RunDir
from tests.support.cli import Project
from tests.support.patience import LONG
from tests.support.tools import many

ROWS = 60
FOLDERS = ("extract", "split", "side", "grade", "flattened", "rejected")

#: A server of commands: each line of its input is a command line and how many disk steps it may take, with how much of
#: the last write; it runs `chainette` in a child that kills itself (SIGKILL) there, and says how the child ended.
MORTALS = """
import json, os, signal, sys
from chainette.cli.main import main
import chainette.run.executor, chainette.cli.screen.plain, pyarrow.parquet

def mortal(name, left, share):
    original = getattr(os, name)
    def call(*arguments, **keys):
        left[0] -= 1
        if left[0] == 0:
            if name == "write":
                original(arguments[0], bytes(arguments[1])[: int(len(arguments[1]) * share)])
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **keys)
    setattr(os, name, call)

for line in sys.stdin:
    words, steps, share = json.loads(line)
    child = os.fork()
    if child == 0:
        left = [steps]
        for name in ("write", "fsync", "replace", "rename", "unlink", "ftruncate", "truncate", "link", "mkdir"):
            mortal(name, left, share)
        sys.argv = ["chainette", *words]
        sys.stdout = open(os.devnull, "w")
        main()
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Doomed(Project):
    """A project whose commands may be children of one Python process."""

    def start_python(self, program: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", program],
            cwd=self.path,
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def rows(self, directory: str) -> dict[str, list[str]]:
        """Every folder's rows, sorted."""
        return {name: sorted(map(plain, shard_rows(self.path / directory / name))) for name in FOLDERS}


class Mortals:
    """Runs `chainette` in processes that die at a disk step."""

    def __init__(self, project: Doomed) -> None:
        self._server = project.start_python(MORTALS)

    def run(self, *words: str, steps: int = 0, share: float = 0.0) -> int:
        """The exit code of a command; -9 where it died at its `steps`-th disk step. 0 steps: it lives."""
        assert self._server.stdin is not None and self._server.stdout is not None
        self._server.stdin.write(json.dumps([words, steps, share]) + "\n")
        self._server.stdin.flush()
        return int(self._server.stdout.readline())

    def close(self) -> None:
        self._server.communicate(timeout=LONG)


def plain(row: dict[str, Any]) -> str:
    return json.dumps(row, sort_keys=True)


def shard_rows(folder: Path) -> Iterator[dict[str, Any]]:
    for shard in sorted(folder.glob("*.jsonl")):
        yield from map(json.loads, shard.read_text().splitlines())
    for shard in sorted(folder.glob("*.parquet")):
        import pyarrow.parquet as pq

        yield from pq.read_table(shard).to_pylist()


@pytest.fixture
def doomed(tmp_path: Path) -> Doomed:
    """60 rows and a bad line; about a fifth of the grades is rejected."""
    project = Doomed(tmp_path, rows=ROWS, invalid=0.2)
    with (tmp_path / "in.jsonl").open("a") as file:
        file.write("{bad\n")
    return project


@pytest.fixture
def mortals(doomed: Doomed) -> Iterator[Mortals]:
    found = Mortals(doomed)
    yield found
    found.close()


@pytest.mark.long
@pytest.mark.parametrize("format", ["jsonl", "parquet"])
def test_killed_at_any_disk_step_again_and_again_a_run_comes_to_the_same_rows(
    doomed: Doomed, mortals: Mortals, format: str
) -> None:
    flags = ("--format", format, "--max-rows-per-file", "13", "--quiet")
    assert mortals.run("run", "chain.py", "in.jsonl", "-o", "whole", *flags) == 3
    whole = doomed.rows("whole")
    assert len(whole["extract"]) == len(whole["side"]) == ROWS and len(whole["split"]) == 2 * ROWS
    assert len(whole["grade"]) + len(whole["rejected"]) == ROWS + 1 and len(whole["rejected"]) > 1

    chance = random.Random(f"kill {format}")
    deaths = 0
    code = mortals.run("run", "chain.py", "in.jsonl", "-o", "out", *flags, steps=40)
    while code == -signal.SIGKILL:
        deaths += 1
        # at first nearly everything is killed, recovery included; later ones live longer, so that it comes to an end
        steps = chance.randint(1, 10 + 6 * deaths)
        code = mortals.run("resume", "out", "--quiet", steps=steps, share=chance.random())
    assert code == 3
    assert deaths > 5
    assert doomed.rows("out") == whole
    metadata = json.loads((doomed.path / "out/metadata.json").read_text())
    assert (metadata["status"], metadata["balanced"], metadata["records"]) == ("finished", True, ROWS + 1)
    assert not [path for path in (doomed.path / "out").rglob("*") if path.name.endswith(".tmp")]
    assert not (doomed.path / "out/.journal").exists()


@pytest.mark.long
def test_killed_while_rejected_rows_are_taken_back_a_run_comes_to_the_same_rows(doomed: Doomed, mortals: Mortals) -> None:
    assert mortals.run("run", "chain.py", "in.jsonl", "-o", "whole", "--quiet") == 3
    assert mortals.run("run", "chain.py", "in.jsonl", "-o", "out", "--quiet") == 3
    # all of them asked again, of an engine that answers: whatever died before, then every row has its grade
    retry = ("rejected", "out", "--retry", "--step", "grade", "--engine", "writer", "--quiet")
    deaths, code = 0, -signal.SIGKILL
    while code == -signal.SIGKILL:
        deaths += STRIDE
        code = mortals.run(*retry, steps=deaths)
        assert doomed.path.joinpath("out").exists() or doomed.path.joinpath(".out.old").exists()
    assert deaths > 4 * STRIDE
    if code != 3:  # it died after the rows were taken back: they are pending, and the engine of the chain is asked
        assert code == 1
        assert mortals.run("resume", "out", "--quiet") == 3
    rows = doomed.rows("out")
    ids = [json.loads(row)["row_id"] for folder in ("grade", "rejected") for row in rows[folder]]
    assert sorted(ids, key=int) == [str(number) for number in range(ROWS + 1)]
    assert rows["extract"] == doomed.rows("whole")["extract"]
    assert json.loads((doomed.path / "out/metadata.json").read_text())["balanced"]


#: Every disk step with `LONG=all`, else every fifth or third.
STRIDE = many(5, 3, 1)


@pytest.mark.long
def test_killed_at_any_disk_step_of_a_recomputation_the_old_rows_are_in_place_or_one_rollback_away(
    doomed: Doomed, mortals: Mortals
) -> None:
    assert mortals.run("run", "chain.py", "in.jsonl", "-o", "out", "--quiet") == 3
    out, whole, deaths = doomed.path / "out", doomed.rows("out"), 0
    while not (out / ".versions").exists():
        deaths += STRIDE
        code = mortals.run("resume", "out", "--from", "grade", "--quiet", steps=deaths)
        finish_swap(RunDir(out))
        rows = doomed.rows("out")
        assert rows == whole or (rows["grade"] == [] and rows["extract"] == whole["extract"])
    assert code == -signal.SIGKILL and deaths > 10
    assert mortals.run("rollback", "out") == 0
    assert doomed.rows("out") == whole
    assert json.loads((out / "metadata.json").read_text())["status"] == "finished"
    assert mortals.run("rollback", "out") == 0
    assert mortals.run("resume", "out", "--quiet") == 3
    assert doomed.rows("out") == whole


@pytest.mark.long
def test_killed_at_any_disk_step_of_a_rollback_a_directory_is_wholly_the_one_or_the_other(
    doomed: Doomed, mortals: Mortals
) -> None:
    assert mortals.run("run", "chain.py", "in.jsonl", "-o", "out", "--quiet") == 3
    before = doomed.rows("out")
    assert mortals.run("rejected", "out", "--retry", "--engine", "writer", "--step", "grade", "--quiet") == 3
    now, other = doomed.rows("out"), before
    assert now != other
    steps, code = 1, -signal.SIGKILL
    while code == -signal.SIGKILL:
        code = mortals.run("rollback", "out", steps=steps)
        steps += STRIDE
        finish_swap(RunDir(doomed.path / "out"))
        found = doomed.rows("out")
        assert found in (now, other)
        if found == other:
            now, other = other, now
    assert code == 0 and found == now and steps > 10
    assert mortals.run("rollback", "out") == 0 and doomed.rows("out") == other
    assert [path.name for path in doomed.path.glob(".out.*")] == []
    assert len([*(doomed.path / "out/.versions").iterdir()]) == 1


@pytest.mark.parametrize("format", ["jsonl", pytest.param("parquet", marks=pytest.mark.long)])
def test_kill_9_of_the_real_command_costs_no_row(tmp_path: Path, format: str) -> None:
    project = Doomed(tmp_path, rows=200, latency=0.01)
    chance = random.Random(f"kill -9 {format}")
    words = ["run", "chain.py", "in.jsonl", "-o", "out", "--format", format, "--max-rows-per-file", "30"]
    for _ in range(4):
        stop_after(project, [*words, "--json-logs"], chance.randint(3, 25), signal.SIGKILL)
        words = ["resume", "out"]
    done = project.chainette("resume", "out", "--quiet")
    assert done.returncode == 0, done.stderr
    rows = {folder: [json.loads(row)["row_id"] for row in found] for folder, found in project.rows("out").items()}
    every = [str(number) for number in range(200)]
    for folder in ("extract", "side", "grade", "flattened"):
        assert sorted(rows[folder], key=int) == every, folder
    assert sorted(rows["split"]) == sorted(f"{number}~{part}" for number in every for part in "01")
    assert rows["rejected"] == []


@pytest.mark.parametrize("heeds_ctrl_c", [True, False], ids=["", "as a background job of a script"])
def test_sigterm_is_a_pause_and_a_finished_resume_has_every_row_once(tmp_path: Path, heeds_ctrl_c: bool) -> None:
    project = Doomed(tmp_path, rows=120)
    (tmp_path / "hold").touch()  # it cannot end before the signal comes
    words = ["run", "chain.py", "in.jsonl", "-o", "out", "--json-logs"]
    ctrl_c = signal.default_int_handler if heeds_ctrl_c else signal.SIG_IGN
    said = stop_after(project, words, 5, signal.SIGTERM, preexec_fn=lambda: signal.signal(signal.SIGINT, ctrl_c))
    assert said.returncode == 130
    assert said.stderr.splitlines()[-2:] == ["interrupted", "go on: chainette resume out"]
    assert json.loads(said.stdout.splitlines()[-1])["type"] == "run_paused"
    assert project.chainette("resume", "out").returncode == 0
    assert sorted(project.ids("out", "grade"), key=int) == [str(number) for number in range(120)]
    (resumed,) = (event for event in project.events("out") if event["type"] == "run_resumed")
    assert "graph" not in resumed  # the chain is the one of the first line


#: Its function says in one pipe that it works on row 5, and waits there for a word from another.
HELD = """
from pathlib import Path
from pydantic import BaseModel
from chainette import Chain, apply


class Text(BaseModel):
    text: str


@apply
def hold(item: Text) -> Text:
    if item.text == "row 2":
        raise ValueError("no")
    if item.text == "row 5" and Path("asleep").exists():
        Path("asleep").write_text("yes")
        Path("wake").read_text()
    return item


chain = Chain(name="held", steps=[hold], batch_size=2)
"""


@pytest.fixture
def held(tmp_path: Path) -> Iterator[tuple[Doomed, subprocess.Popen[str]]]:
    """A run of 10 rows that is at work on row 5, with a rejected row behind it."""
    project = Doomed(tmp_path, rows=10)
    (tmp_path / "held.py").write_text(HELD)
    os.mkfifo(tmp_path / "asleep")
    os.mkfifo(tmp_path / "wake")
    with project.start("run", "held.py", "in.jsonl", "-o", "out", "--json-logs", "--window", "2") as process:
        assert (tmp_path / "asleep").read_text() == "yes"
        (tmp_path / "asleep").unlink()
        yield project, process
        process.kill()


EVERY_HELD_ROW = sorted(str(number) for number in range(10) if number != 2)


def test_ctrl_c_again_does_not_wait_for_a_function_that_blocks(held: tuple[Doomed, subprocess.Popen[str]]) -> None:
    project, process = held
    process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.5)
    while process.poll() is None:  # a busy machine may take the next one for the same
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(5)
    _, said = process.communicate(timeout=LONG)
    assert process.returncode == 130
    assert said.splitlines()[-2:] == ["interrupted", "go on: chainette resume out"]
    assert "Traceback" not in said
    assert project.chainette("resume", "out").returncode == 3
    assert project.ids("out", "hold") == EVERY_HELD_ROW


def test_a_directory_at_work_is_refused_to_every_other_command_that_writes_and_costs_it_nothing(
    held: tuple[Doomed, subprocess.Popen[str]],
) -> None:
    project, process = held
    others = (
        ["run", "held.py", "in.jsonl", "-o", "out"],
        ["resume", "out"],
        ["resume", "out", "--from", "hold"],
        ["rejected", "out", "--retry"],
    )
    for words in others:
        refused = project.chainette(*words)
        assert refused.returncode == 1, words
        assert refused.stderr.endswith("out is in use: another process writes to it; wait for it or stop it\n"), words
    (project.path / "wake").write_text("go on")
    process.communicate(timeout=LONG)
    assert process.returncode == 3
    assert (project.ids("out", "hold"), project.ids("out", "rejected")) == (EVERY_HELD_ROW, ["2"])


def stop_after(
    project: Project, words: list[str], events: int, number: signal.Signals, **keys: Any
) -> subprocess.CompletedProcess[str]:
    """Starts a command that tells events; after so many of them, or at its end, sends it a signal, and lets held rows go on."""
    if "--json-logs" not in words:
        words = [*words, "--json-logs"]
    process = project.start(*words, **keys)
    assert process.stdout is not None
    for _ in range(events):
        if not process.stdout.readline():
            break
    process.send_signal(number)
    (project.path / "hold").unlink(missing_ok=True)
    out, said = process.communicate(timeout=LONG)
    return subprocess.CompletedProcess([], process.returncode, out, said)
