"""The users of deploy/redis on a real server: each role can do its work, and little else."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import redis.exceptions
from redis import Redis
from redis.exceptions import NoPermissionError

from chainette.fleet.redis.connect import connect
from chainette.fleet.server.embedded import find_server
from tests.support.cli import REPOSITORY, Project, until
from tests.support.processes import free_port

REDIS = REPOSITORY / "deploy/redis"
ROLES = ("coordinator", "sink", "worker", "operator")
FORBIDDEN = """
FLUSHALL; FLUSHDB; CONFIG GET *; CONFIG SET maxmemory 1; KEYS *; SHUTDOWN; MONITOR; ACL LIST; SCRIPT FLUSH; EVAL return(1) 0;
FUNCTION LIST; MODULE LIST; REPLICAOF NO ONE; SUBSCRIBE rq:pubsub; PUBLISH rq:pubsub x; CLIENT LIST; SELECT 1; GET other;
SET other x; RENAME chainette:a other
"""


class Fleet:
    """A server with the file of users, and the URL of each role."""

    def __init__(self, path: Path) -> None:
        port = free_port()
        made = subprocess.run(
            [sys.executable, REDIS / "make_users.py", "--into", path / "users", "--url", f"redis://127.0.0.1:{port}/0"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert "CHAINETTE" not in made.stdout
        users = path / "users/users.acl"
        users.write_text(users.read_text() + "user admin on nopass ~* &* +@all\n")
        settings = (REDIS / "valkey.conf").read_text()
        for old, new in (
            ("port 6379", f"port {port}\nbind 127.0.0.1"),
            ("/data", str(path)),
            ("/run/secrets", str(path / "users")),
        ):
            assert old in settings
            settings = settings.replace(old, new)
        (path / "valkey.conf").write_text(settings)
        self.port = port
        self.log = (path / "log").open("w")
        self.process = subprocess.Popen([find_server(), path / "valkey.conf"], stdout=self.log, stderr=self.log)
        self.urls = {role: (path / f"users/{role}.env").read_text().strip().partition("=")[2] for role in ROLES}
        self.admin = Redis(port=port, username="admin", password="any")
        until(self._answers)

    def _answers(self) -> bool:
        assert self.process.poll() is None, Path(self.log.name).read_text()
        try:
            return bool(self.admin.ping())
        except redis.exceptions.ConnectionError:
            return False

    def close(self) -> None:
        self.admin.close()
        self.process.terminate()
        self.process.wait()
        self.log.close()


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    fleet = Fleet(tmp_path_factory.mktemp("redis"))
    yield fleet
    fleet.close()


@pytest.mark.long
def test_a_run_gets_through_and_nobody_asked_for_what_is_not_allowed(fleet: Fleet, tmp_path: Path) -> None:
    project = Project(tmp_path, rows=100, invalid=0.1)
    fleet.admin.acl_log_reset()
    environment = project.environment | {"CHAINETTE_REDIS_URL": fleet.urls["worker"]}
    worker = project.start("worker", "--engine", "writer", "--engine", "judge", env=environment)
    try:
        done = project.chainette("enqueue", "chain.py", "in.jsonl", "-o", "out", "--quiet", "--redis", fleet.urls["operator"])
        assert done.returncode == 3, done.stderr
        assert len(project.ids("out", "extract")) == 100
        words = ("enqueue", "chain.py", "in.jsonl", "-o", "again", "--quiet", "--redis", fleet.urls["operator"])
        done = project.chainette(*words, "--reuse", "out")
        assert done.returncode == 3, done.stderr
        assert json.loads((tmp_path / "again/metadata.json").read_text())["rows_reused"] >= 300
        assert project.chainette("runs", "--redis", fleet.urls["operator"]).returncode == 0
    finally:
        worker.terminate()
        _, said = worker.communicate()
    assert worker.returncode == 0, said
    assert fleet.admin.acl_log() == []


@pytest.mark.parametrize("role", ROLES)
def test_a_role_can_do_nothing_else(fleet: Fleet, role: str) -> None:
    with connect(fleet.urls[role]) as client:
        for command in FORBIDDEN.split(";"):
            with pytest.raises(NoPermissionError):
                client.execute_command(*command.split())
    if role == "worker":
        with connect(fleet.urls[role]) as client, pytest.raises(NoPermissionError):
            client.execute_command("SCAN", "0")


def test_without_a_password_there_is_only_a_health_check(fleet: Fleet) -> None:
    from redis.exceptions import AuthenticationError

    with Redis(port=fleet.port) as nobody, pytest.raises(AuthenticationError):
        nobody.ping()
    with Redis(port=fleet.port, username="health", password="any") as health:
        assert health.execute_command("PING") in (True, b"PONG")
        with pytest.raises(NoPermissionError):
            health.execute_command("GET", "chainette:runs")


#: Keys a run's worker must not change: orders, words that end a run or a worker, rows of the input, messages put aside.
NOT_A_WORKERS = (
    "SET chainette:order:20261129-1 x",
    "SET chainette:order:20261129-1:cancel x",
    "DEL chainette:order:20261129-1",
    "SET chainette:stop:w-1 1",
    "RPUSH chainette:aside:20261129-1 x",
    "SET chainette:20261129-1:0:r:5 x",
    "HSET chainette:20261129-1:0:live 5 4",
    "HSET chainette:other x y",
    "RENAME chainette:20261129-1:0:u:x chainette:order:20261129-1",
)


@pytest.mark.parametrize("command", NOT_A_WORKERS)
def test_a_worker_writes_neither_orders_nor_rows_of_the_input(fleet: Fleet, command: str) -> None:
    with connect(fleet.urls["worker"]) as client:
        with pytest.raises(NoPermissionError):
            client.execute_command(*command.split())
        assert client.execute_command("GET", "chainette:order:20261129-1") is None
        assert client.execute_command("HSET", "chainette:20261129-1:0:out", "5", "4") == 1
        client.execute_command("DEL", "chainette:20261129-1:0:out")


@pytest.mark.parametrize("command", NOT_A_WORKERS[:5])
def test_a_coordinator_writes_no_orders_either(fleet: Fleet, command: str) -> None:
    with connect(fleet.urls["coordinator"]) as client, pytest.raises(NoPermissionError):
        client.execute_command(*command.split())


#: Scripts that only some roles call.
OF_SINKS = {"aside.lua"}


def test_every_command_of_a_script_is_allowed_to_every_role_that_calls_it() -> None:
    def calls_of(paths: Iterable[Path]) -> set[str]:
        calls = [call for path in paths for call in re.findall(r"redis\.p?call\(([^,)]+)", path.read_text())]
        return {name.lower() for call in calls for name in re.findall(r"'([A-Z]+)'", call)}

    scripts = [*(REPOSITORY / "chainette/fleet/redis/scripts").glob("*.lua")]
    every, common = calls_of(scripts), calls_of(path for path in scripts if path.name not in OF_SINKS)
    assert len(common) > 20 and every > common
    for line in (REDIS / "users.acl").read_text().splitlines():
        role = line.split()[1]
        if role in ROLES:
            granted = {word[1:] for word in line.split() if word.startswith("+")}
            needed = every if role in ("sink", "operator") else common
            assert needed <= granted, (role, needed - granted)


def test_a_second_call_changes_no_password(fleet: Fleet, tmp_path: Path) -> None:
    def made() -> dict[str, str]:
        subprocess.run([sys.executable, REDIS / "make_users.py", "--into", tmp_path / "s"], capture_output=True, check=True)
        return {path.name: path.read_text() for path in (tmp_path / "s").iterdir()}

    first = made()
    assert first == made()
    (tmp_path / "s/worker.env").unlink()
    again = made()
    assert {name for name in first if first[name] != again[name]} == {"worker.env", "users.acl"}
    assert (tmp_path / "s/worker.env").stat().st_mode & 0o777 == 0o600
