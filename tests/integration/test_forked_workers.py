"""Workers out of one interpreter are as good as those with their own."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from chainette_workers.sink.forked_workers import ForkedWorker, fork_workers
from chainette_workers.worker.configuration import WorkerConfig

from tests.support.cli import until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="others give nobody the children of another process")

PATIENCE = 60.0


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
        worker.wait(PATIENCE)
        worker.stdin.close()
    assert not takes_in_orphans()


def test_forked_workers_have_their_own_input_environment_log_and_end(workers: list[ForkedWorker], tmp_path: Path) -> None:
    serving, unneeded, killed = workers
    serving.stdin.write(msgspec.json.encode(WorkerConfig(None, ["judge"], str(tmp_path))) + b"\n")
    serving.stdin.flush()
    unneeded.stdin.close()
    assert serving.wait(PATIENCE) == 1 and "a.socket" in (tmp_path / "a.log").read_text()
    assert unneeded.wait(PATIENCE) == 0 and not (tmp_path / "b.log").read_text()
    until(killed._find)
    assert killed.poll() is None
    os.kill(killed._pid, signal.SIGKILL)
    assert killed.wait(PATIENCE) == -signal.SIGKILL and not (tmp_path / "c.log").read_text()


def test_workers_that_were_never_forked_count_as_dead(workers: list[ForkedWorker]) -> None:
    workers[0]._forking.process.kill()
    assert [worker.wait(PATIENCE) for worker in workers] == [1, 1, 1]
