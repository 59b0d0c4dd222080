"""Workers out of one interpreter are as good as those with their own."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from chainette_workers.sink.forked_workers import ForkedWorker, fork_workers
from chainette_workers.worker.configuration import WorkerConfig

from tests.support.cli import until
from tests.support.patience import LONG

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="others give nobody the children of another process")


def takes_in_orphans() -> bool:
    found = ctypes.c_int()
    ctypes.CDLL(None).prctl(37, ctypes.byref(found), 0, 0, 0)
    return bool(found.value)


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[list[ForkedWorker]]:
    """Three workers, each told of a Redis of its own that is not there, each with its own log."""
    logs = [os.open(tmp_path / f"{name}.log", os.O_WRONLY | os.O_CREAT) for name in "abc"]
    found = fork_workers(logs, [{"CHAINETTE_REDIS_URL": f"unix://{tmp_path}/{name}.socket"} for name in "abc"])
    assert found is not None and takes_in_orphans()
    for log in logs:
        os.close(log)
    yield found
    for worker in found:
        worker.kill()
        worker.wait(LONG)
        worker.stdin.close()
    assert not takes_in_orphans()


def test_forked_workers_have_their_own_input_environment_log_and_end(workers: list[ForkedWorker], tmp_path: Path) -> None:
    serving, unneeded, killed = workers
    serving.stdin.write(msgspec.json.encode(WorkerConfig(None, ["judge"], str(tmp_path))) + b"\n")
    serving.stdin.flush()
    unneeded.stdin.close()
    assert serving.wait(LONG) == 1 and "a.socket" in (tmp_path / "a.log").read_text()
    assert unneeded.wait(LONG) == 0 and not (tmp_path / "b.log").read_text()
    until(killed._find)
    assert killed.poll() is None
    os.kill(killed._pid, signal.SIGKILL)
    assert killed.wait(LONG) == -signal.SIGKILL and not (tmp_path / "c.log").read_text()


AHEAD = """
import os, signal, sys, threading
import msgspec
from chainette_workers.sink.forked_workers import Forker, fork_workers
from chainette_workers.worker.configuration import WorkerConfig

forker, unused = Forker.ahead(), Forker.ahead()
os.kill(forker.process.pid, signal.SIGINT)  # as a terminal sends it to all
os.environ["CHAINETTE_REDIS_URL"] = "unix://late.socket"
os.mkdir("late")
os.chdir("late")
log = os.open("log", os.O_WRONLY | os.O_CREAT)
[worker] = fork_workers([log], [{}], forker)
worker.stdin.write(msgspec.json.encode(WorkerConfig(None, ["judge"], ".")) + b"\\n")
worker.stdin.close()
print(worker.wait(60), "late.socket" in open("log").read(), sys.stdin.read())
threading.Thread(target=threading.Event().wait, daemon=True).start()
print(Forker.ahead(), unused.process.pid)
"""


def test_a_forker_that_was_started_ahead_takes_the_folder_and_the_environment_of_its_order_and_none_of_the_input(
    tmp_path: Path,
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", AHEAD], cwd=tmp_path, input="rows", capture_output=True, text=True, timeout=LONG, check=True
    )
    worked, ahead_of_threads, unused = done.stdout.rpartition(" ")[0].splitlines() + done.stdout.split()[-1:]
    assert (worked, ahead_of_threads, done.stderr) == ("1 True rows", "None", "")
    until(lambda: not Path(f"/proc/{unused}").exists())


def test_workers_that_were_never_forked_count_as_dead(workers: list[ForkedWorker]) -> None:
    workers[0]._forker.process.kill()
    assert [worker.wait(LONG) for worker in workers] == [1, 1, 1]


def test_a_worker_has_ended_though_its_end_was_told_to_nobody(workers: list[ForkedWorker]) -> None:
    """As where SIGCHLD is ignored, or where a program waits for all children of its process."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        for worker in workers:
            worker.stdin.close()
        assert [worker.wait(LONG) for worker in workers] == [0, 0, 0]
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_words_of_the_forking_process_are_in_a_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chainette_workers.sink.forked_workers.ENTRY", (sys.executable, "-c", "exit('interrupted')"))
    with (tmp_path / "a.log").open("wb") as log:
        found = fork_workers([None, log.fileno()], [{}, {}])
    assert found is not None and [worker.wait(LONG) for worker in found] == [1, 1]
    assert (tmp_path / "a.log").read_text() == "interrupted\n"
    for worker in found:
        worker.stdin.close()
