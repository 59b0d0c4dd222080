"""A password of Redis and an API key are found in no output of a fleet: logs, files, Redis, arguments, metrics, children."""

from __future__ import annotations

import contextlib
import re
import subprocess
import urllib.request
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from tests.support.cli import Project, until
from tests.support.patience import LONG
from tests.support.valkey import LEASES, Database

KEY = "CANARY-api-key"


def processes_below(folder: Path) -> list[Path]:
    """The processes whose working folder it is."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (process / "cwd").readlink() == folder:
                found.append(process)
    return found


def dumped(database: Database) -> bytes:
    """Every key of Redis with its value."""
    read: dict[bytes, Callable[[bytes], object]] = {
        b"string": database.client.get,
        b"hash": database.client.hgetall,
        b"set": database.client.smembers,
        b"list": lambda key: database.client.lrange(key, 0, -1),
        b"zset": lambda key: database.client.zrange(key, 0, -1, withscores=True),
        b"stream": database.client.xrange,
        b"none": lambda _key: None,
    }
    keys = [*database.client.scan_iter(count=1000)]
    return repr([(key, read[database.client.type(key)](key)) for key in keys]).encode()  # type: ignore[index]


def test_no_output_of_a_fleet_holds_a_password_or_a_key(tmp_path: Path, database: Database) -> None:
    password = urlsplit(database.url).password
    assert password and len(password) > 10
    database.may_leave(*LEASES)
    project = Project(tmp_path, rows=40, latency=0.05)
    secrets = {"CHAINETTE_REDIS_URL": database.url, "JUDGE_KEY": KEY}
    environment = project.environment | secrets
    log, events = (tmp_path / "worker.log").open("wb"), tmp_path / "out/events.jsonl"
    worker = project.start(
        "worker", "--engine", "writer", "--engine", "judge", "--debug", env=environment, stdout=log, stderr=subprocess.STDOUT
    )
    run = project.start(
        "enqueue", "chain.py", "in.jsonl", "-o", "out", "--debug", env=environment, stdout=log, stderr=subprocess.STDOUT
    )
    try:
        with project.kept_open():
            until(lambda: events.exists() and b"unit_committed" in events.read_bytes())
            seen = dumped(database)
            living = until(lambda: len(found := processes_below(tmp_path)) >= 3 and found)  # enqueue, the worker, its children
            for process in living:
                with contextlib.suppress(OSError):
                    seen += (process / "cmdline").read_bytes()
                    if b"function_child" in (process / "cmdline").read_bytes():
                        assert password.encode() not in (process / "environ").read_bytes()
                        assert KEY.encode() in (process / "environ").read_bytes()  # functions may need keys
        for address in re.findall(rb"127\.0\.0\.1:\d+", seen):
            with (
                contextlib.suppress(OSError),
                urllib.request.urlopen(f"http://{address.decode()}/metrics", timeout=LONG) as page,
            ):
                seen += page.read()
        assert b"chainette_build_info" in seen
        assert run.wait(LONG) == 0
    finally:
        for started in (run, worker):
            started.terminate()
            started.wait(LONG)
        log.close()
    wrong = project.chainette("runs", "--debug", CHAINETTE_REDIS_URL=database.url.replace(password, f"x{password}"))
    assert wrong.returncode == 1
    seen += (wrong.stdout + wrong.stderr).encode()
    seen += b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"serving" in seen
    assert password.encode() not in seen and KEY.encode() not in seen
