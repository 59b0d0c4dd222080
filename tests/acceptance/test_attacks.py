"""Somebody with the Redis password of the role `worker` attacks a live fleet: it ends whole and executes nothing of theirs."""

from __future__ import annotations

import json
import secrets
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import redis.exceptions
from redis import Redis

from chainette.fleet.protocol.keys import RunKeys
from chainette.fleet.protocol.messages import Admission, Result
from chainette.fleet.redis.run_registry import Board
from chainette.io.rundir import event_types as known
from chainette.io.rundir.event_log import encode_line
from chainette.io.rundir.graph import Graph
from chainette.records import Output, Reason, Rejection, Usage, encode
from tests.integration.test_redis_users import Fleet
from tests.support.cli import Project, lines, until
from tests.support.garbage import Put, does, global_garbage, run_garbage
from tests.support.patience import LONG

pytestmark = pytest.mark.long


class Site:
    """A project, and processes with the passwords of their roles."""

    def __init__(self, path: Path, fleet: Fleet, stack: ExitStack, key: str = "") -> None:
        self.project = Project(path, rows=96, latency=0.15)
        self.fleet, self._stack, self.key = fleet, stack, key
        self.attacker = stack.enter_context(Redis.from_url(fleet.urls["worker"]))
        self.board = Board(fleet.admin)

    def environment(self, role: str) -> dict[str, str]:
        key = {"CHAINETTE_FLEET_KEY": self.key} if self.key else {}
        return self.project.environment | {"CHAINETTE_REDIS_URL": self.fleet.urls[role]} | key

    def start(self, role: str, *words: str) -> subprocess.Popen[str]:
        log = self._stack.enter_context((self.project.path / f"{role}.log").open("w"))
        process = self.project.start(role, *words, env=self.environment(role), stderr=log)
        self._stack.callback(process.communicate)
        self._stack.callback(process.kill)
        return process

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Services and a worker, which live until the end."""
        roles: dict[str, tuple[str, ...]] = {
            "coordinator": (),
            "sink": (),
            "worker": ("--engine", "writer", "--engine", "judge"),
        }
        processes = {role: self.start(role, *words) for role, words in roles.items()}
        until(lambda: len(self.board.members()) == 3)
        yield
        for role, process in processes.items():
            said = (self.project.path / f"{role}.log").read_text()
            assert process.poll() is None, said
            assert "Traceback" not in said, said
            process.terminate()
        assert {process.wait(LONG) for process in processes.values()} == {0}

    def enqueue(self, directory: str) -> str:
        call = ("enqueue", "chain.py", "in.jsonl", "-o", directory, "--detach", "--quiet")
        done = self.project.chainette(*call, **self.environment("operator"))
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()[-1]

    def events(self, directory: str) -> int:
        log = self.project.path / directory / "events.jsonl"
        return log.read_bytes().count(b"unit_committed") if log.exists() else 0

    def status(self, directory: str) -> str:
        path = self.project.path / directory / "metadata.json"
        return json.loads(path.read_text())["status"] if path.exists() else ""

    def tries(self, put: Put) -> None:
        """Uses the powers of the role."""
        with suppress(redis.exceptions.ResponseError):
            put(self.attacker)

    def require_whole(self, *directories: str) -> None:
        assert self.project.chainette("run", "chain.py", "in.jsonl", "-o", "local", "--quiet").returncode == 0
        for directory in directories:
            assert lines(self.project, directory) == lines(self.project, "local")
            assert self.status(directory) == "finished"
        assert not list(self.project.path.rglob("owned*"))


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    fleet = Fleet(tmp_path_factory.mktemp("redis"))
    yield fleet
    fleet.close()


@pytest.fixture(params=["", "a key that the attacker does not have"], ids=["without a key", "with a key"])
def site(tmp_path: Path, fleet: Fleet, request: pytest.FixtureRequest) -> Iterator[Site]:
    fleet.admin.flushall()
    with ExitStack() as stack:
        yield Site(tmp_path, fleet, stack, request.param)


def notes(path: Path) -> list[known.Event]:
    created = known.RunCreated(
        run_id="r",
        chain="c",
        chain_ref=str(path / "evil.py"),
        chain_root="/",
        graph=Graph(),
        settings={},
        input={},
        versions={},
    )
    cut = known.UnitCommitted(node="extract", root=0, taken=8, given=8, root_done=known.RootDone(8, 0, 8))
    ends: list[known.Event] = [
        known.RunFinished(),
        known.RunCancelledEvent(),
        known.RunPaused(reason="x"),
        known.RunResumed(fingerprint="x"),
    ]
    return [created, cut, *ends, known.ShardSealed(file="extract/0", rows=1, bytes=10**9), known.InputRead(upto=1, digest="x")]


def results() -> Iterator[dict[str, Any]]:
    good = b'{"name":"a"}'
    for outputs in (
        [('0","a":"', good)],
        [("0", b'{"name": oops}')],
        [("0", good + b"\n" + good)],
        [("900", good)],
        [("0", good)] * 2,
    ):
        made = [Output(*output) for output in outputs]
        yield {
            "k": "unit",
            "r": "0",
            "d": "0",
            "n": 1,
            "e": encode(Result("extract", 0, "", len(made), made, [], [], Usage(), "w")),
        }
    bad = [Rejection("5", "chain_input", Reason.INVALID_INPUT, "x", 0, None, 1, b'1}\n{"row_id":9')]
    yield {"k": "admit", "r": "0", "d": "1", "n": 1, "e": encode(Admission(bad))}
    yield {"k": "admit", "r": "10000000000", "d": "1", "n": 1, "e": b""}
    yield {"k": "\xff", "r": "x"}


def references(path: Path) -> Iterator[str]:
    (path.parent / "owned.py").unlink(missing_ok=True)
    code = "from pathlib import Path\nPath(__file__).with_name('owned').touch()\n"
    outside = path.parent / f"{path.name}-evil.py"
    outside.write_text(code)
    (path / "link.py").symlink_to(outside)
    (path / "other.py").write_text(code)
    yield from (
        str(outside),
        f"../{outside.name}",
        "link.py",
        "~/x.py",
        "other.py",
        "antigravity",
        "this",
        "a" * 5000 + ".py",
        "x\0.py",
    )


def forgeries(site: Site, run: str) -> Iterator[Put]:
    """Whatever a forger sends once."""
    keys = RunKeys(run, 0)
    for event in notes(site.project.path):
        yield does("xadd", keys.notes, {"kind": "event", "text": encode_line(event)})
    for entry in results():
        yield does("xadd", keys.stream, {"t": secrets.token_hex(8), **entry})
    for reference in references(site.project.path):
        fields = dict.fromkeys(("epoch", "seed", "simulate", "cursor", "live_rows", "live_bytes", "results"), "0") | {
            "state": "running",
            "chain_ref": reference,
            "digest": "00",
            "batch_size": "8",
            "engines": "{}",
        }
        fields |= {"owner": "o", "queues": "", "parameters": "{}", "marks": "{}", "reuse": "0"}
        name = f"20990101-{secrets.token_hex(4)}"
        yield does("hset", f"chainette:run:{name}", mapping=fields)
        yield does("sadd", "chainette:runs", name)
        order = json.dumps({"chain_ref": reference, "digest": "00", "inputs": ["in.jsonl"], "directory": "owned"})
        yield does("hset", f"chainette:run:asked{name}", mapping={"state": "asked", "order": order})
        yield does("set", f"chainette:order:asked{name}", order)
        yield does("sadd", "chainette:runs", f"asked{name}")
    yield does("hset", keys.state, "order", "{garbage")
    yield does("set", keys.order, "{garbage")
    yield does("hset", keys.state, "state", "cancelled")
    for member in site.board.members():
        yield does("hset", f"chainette:worker:{member}", "stop", "1")
        yield does("set", f"chainette:stop:{member}", "1")


def test_a_run_ends_whole_whatever_a_worker_forges(site: Site) -> None:
    with site.serving():
        run = site.enqueue("out")
        until(lambda: site.events("out") > 2)
        for put in forgeries(site, run):
            site.tries(put)
        until(lambda: site.status("out") == "finished" if site.key else goes_on(site, run, "out"))
    site.require_whole("out")


def goes_on(site: Site, run: str, directory: str) -> bool:
    """An operator has a paused run go on until it is finished."""
    if site.status(directory) == "finished":
        return True
    info = site.board.run(run)
    if info is None:
        site.project.chainette("resume", directory, "--quiet", **site.environment("operator"))
    elif info.state == "paused":
        site.project.chainette("unpause", run, **site.environment("operator"))
    return False


def test_two_runs_end_whole_while_every_kind_of_garbage_comes(site: Site) -> None:
    """Garbage in the keys of one, and in those of nobody, all the time; the other one ends meanwhile."""
    hold = site.project.path / "hold"
    hold.touch()  # neither can end before garbage of every kind has come
    with site.serving():
        bad, good = site.enqueue("bad"), site.enqueue("good")
        until(lambda: site.events("bad") > 2 and site.events("good") > 2)
        over = threading.Event()
        sent = 0

        def attack() -> None:
            nonlocal sent
            keys = RunKeys(bad, 0)
            info = site.board.run(bad)
            queues = info.queues if info is not None else []
            while not over.is_set():
                for _, put in (*global_garbage(), *run_garbage(keys, queues, [f"{bad}_0_0_x"])):
                    site.tries(put)
                    sent += 1
                    if over.wait(0.01):
                        return

        thread = threading.Thread(target=attack)
        thread.start()
        try:
            until(lambda: sent > 100)
            hold.unlink()
            until(lambda: site.status("good") == "finished")
        finally:
            over.set()
            thread.join()
        until(lambda: goes_on(site, bad, "bad"))
        until(lambda: good not in {info.run for info in site.board.runs()})
    site.require_whole("good", "bad")
