"""Workers of this machine on record: found, told to end, killed where they hang; no other process is ever touched."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from chainette.fleet.process_records import Recorded, end, on_record, recorded
from tests.support.cli import Project
from tests.support.patience import LONG

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")

URL = "redis://127.0.0.1:6379/0"

WORKER = """
import signal, sys
from chainette.fleet.process_records import on_record
if sys.argv[1] == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
with on_record("w-1", ["llama", "python"], sys.argv[2]):
    print("ready", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nobody else's workers are on record."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path / f"chainette-{os.getuid()}" / "workers"


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[str]]]:
    processes: list[subprocess.Popen[str]] = []
    yield processes
    for process in processes:
        process.kill()
        process.wait()
        for pipe in filter(None, (process.stdin, process.stdout)):
            pipe.close()


def start(started: list[subprocess.Popen[str]], kind: str = "polite", url: str = URL) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", WORKER, kind, url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    started.append(process)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def test_a_worker_is_on_record_while_it_lives(started: list[subprocess.Popen[str]], own_folder: Path) -> None:
    process = start(started)
    [found] = recorded(URL)
    assert (found.name, found.pid, found.engines) == ("w-1", process.pid, ["llama", "python"])
    assert recorded(URL, "llama") == [found] == recorded(URL, "python")
    assert recorded(URL, "judge") == [] == recorded("redis://elsewhere")
    assert own_folder.stat().st_mode & 0o077 == 0
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(LONG) == 0
    assert not [*own_folder.iterdir()]


def test_a_worker_that_was_killed_is_forgotten(started: list[subprocess.Popen[str]], own_folder: Path) -> None:
    process = start(started)
    process.kill()
    process.wait()
    assert [*own_folder.iterdir()]
    assert recorded(URL) == []
    assert not [*own_folder.iterdir()]


def test_a_polite_worker_ends_and_a_stubborn_one_is_killed(started: list[subprocess.Popen[str]]) -> None:
    polite = start(started)
    assert end(recorded(URL), LONG) == []
    assert polite.wait(LONG) == -signal.SIGTERM
    stubborn = start(started, "stubborn")
    assert [worker.pid for worker in end(recorded(URL), 0.1)] == [stubborn.pid]
    assert stubborn.wait(LONG) == -signal.SIGKILL


def test_a_process_that_got_the_id_of_a_dead_worker_is_not_touched(
    started: list[subprocess.Popen[str]], own_folder: Path
) -> None:
    innocent = start(started, url="redis://elsewhere")
    [path] = own_folder.iterdir()
    record = msgspec.json.decode(path.read_bytes(), type=Recorded)
    older = msgspec.structs.replace(record, born=f"{record.born.partition('/')[0]}/1", redis=URL)
    path.write_bytes(msgspec.json.encode(older))
    assert recorded(URL) == []
    assert end([older], 0.0) == []
    assert innocent.poll() is None


def test_without_redis_the_workers_of_this_machine_are_ended_all_the_same(
    started: list[subprocess.Popen[str]], tmp_path: Path
) -> None:
    away = "redis://127.0.0.1:1/0"
    worker, other = start(started, url=away), start(started)
    project = Project(tmp_path)
    done = project.chainette("kill", "--engine", "llama", "--redis", away)
    assert done.returncode == 0
    assert "asked 1 worker of 'llama' to end" in done.stdout
    assert "does not answer" in done.stderr and "only workers of this machine" in done.stderr
    assert worker.wait(LONG) == -signal.SIGTERM
    assert other.poll() is None
    again = project.chainette("kill", "--engine", "llama", "--redis", away)
    assert again.returncode == 1 and "does not answer" in again.stderr


def test_a_damaged_record_is_passed_over(started: list[subprocess.Popen[str]], own_folder: Path) -> None:
    start(started)
    (own_folder / "1-w.json").write_text("{")
    assert len(recorded(URL)) == 1


def test_a_folder_that_somebody_else_can_fill_is_not_believed(
    started: list[subprocess.Popen[str]], own_folder: Path, tmp_path: Path
) -> None:
    start(started)
    own_folder.rename(tmp_path / "elsewhere")
    own_folder.symlink_to(tmp_path / "elsewhere")
    assert recorded(URL) == []


def test_where_nothing_can_be_written_a_worker_works_all_the_same(own_folder: Path) -> None:
    own_folder.parent.write_text("in the way")
    with on_record("w-1", [], URL):
        assert recorded(URL) == []
