"""`chainette valkey`: a server for other terminals, as long as the command runs."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis, exceptions

from tests.support.cli import Project
from tests.support.patience import LONG
from tests.support.processes import children


@pytest.fixture
def command(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """The command, running."""
    with Project(tmp_path).start("valkey") as started:
        try:
            yield started
        finally:
            started.kill()


def test_it_serves_the_address_it_prints_until_ctrl_c(tmp_path: Path, command: subprocess.Popen[str]) -> None:
    assert command.stdout is not None
    name, _, url = command.stdout.readline().strip().partition("=")
    assert name == "export CHAINETTE_REDIS_URL" and "@127.0.0.1:" in url
    with Redis.from_url(url) as client:
        assert client.ping()
        runs = Project(tmp_path).chainette("runs", CHAINETTE_REDIS_URL=url)
        assert runs.returncode == 0, runs.stderr
        again = Project(tmp_path).chainette("valkey")
        assert again.returncode == 1 and ".valkey" in again.stderr
        command.send_signal(signal.SIGINT)
        assert command.wait(LONG) == 0
        with pytest.raises(exceptions.ConnectionError):
            client.ping()


def test_a_server_that_ends_is_told(command: subprocess.Popen[str]) -> None:
    assert command.stdout is not None and command.stdout.readline()
    [keeper] = children(command.pid, "keeper.py")
    [server] = children(keeper)
    os.kill(server, signal.SIGKILL)
    _, err = command.communicate(timeout=LONG)
    assert command.returncode == 1 and "error: the server ended; it said:" in err
