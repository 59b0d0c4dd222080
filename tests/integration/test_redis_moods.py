"""A Redis that is loading, evicting, stalled, or that has just forgotten a run: its messages and its work."""

from __future__ import annotations

import io
import socketserver
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import ClassVar

import pytest
from chainette_workers.sink.redis_fleet import RedisFleet
from redis import Redis
from rich.console import Console
from typer.testing import CliRunner

from chainette.cli.commands.resume import Resumption, _asks_a_sink
from chainette.cli.main import app
from chainette.cli.screen.fleet_screen import RunView, watch
from chainette.errors import RedisUnavailable
from chainette.fleet.redis.connect import connect, eviction_risk
from chainette.fleet.redis.run_registry import Board, Order
from chainette.io.rundir.open import read_created
from chainette.io.rundir.paths import RunDir
from tests.integration.test_fleet_trouble import Site
from tests.support.chains import everything, write_inputs
from tests.support.cli import until
from tests.support.fleet import QueueRun, straight
from tests.support.patience import LONG
from tests.support.valkey import Database, Server


class _Loading(socketserver.StreamRequestHandler):
    """Speaks as a Redis that loads its data: refuses the first pings, and then answers."""

    left: ClassVar[int] = 3

    def handle(self) -> None:
        while line := self.rfile.readline():
            words = [self.rfile.readline() + self.rfile.readline() for _ in range(int(line[1:]))]
            if b"HELLO" in words[0].upper():
                self.wfile.write(b"%1\r\n+proto\r\n:3\r\n")
            elif b"PING" not in words[0].upper():
                self.wfile.write(b"+OK\r\n")
            elif _Loading.left:
                _Loading.left -= 1
                self.wfile.write(b"-LOADING Redis is loading the dataset in memory\r\n")
            else:
                self.wfile.write(b"+PONG\r\n")


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    block_on_close = False


@contextmanager
def loading() -> Iterator[str]:
    with _Server(("127.0.0.1", 0), _Loading) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"redis://127.0.0.1:{server.server_address[1]}/0"
        server.shutdown()


def test_a_redis_that_loads_its_data_is_waited_for(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("chainette.fleet.redis.connect._LOADING", 0.01)
    with loading() as url, closing(connect(url)) as client:
        assert client.ping() and _Loading.left == 0
    assert caplog.text.count("is still loading its data; waiting for it") == 1


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl"])
def test_a_redis_that_may_delete_keys_is_named_with_the_command_that_stops_it(database: Database, policy: str) -> None:
    client = database.client
    assert eviction_risk(client) == ""
    client.config_set("maxmemory-policy", policy)
    try:
        assert f"maxmemory-policy is {policy}" in eviction_risk(client)
        found = CliRunner().invoke(app, ["status", "--redis", database.url])
        assert "config set maxmemory-policy noeviction" in found.output.replace("\n", " "), found.output
    finally:
        client.config_set("maxmemory-policy", "noeviction")


def test_a_user_who_may_not_ask_is_told_nothing_of_evictions(database: Database) -> None:
    client = database.client
    client.acl_setuser("guest", enabled=True, passwords=["+word"], keys=["*"], commands=["+@all", "-info", "-config"])
    keys = client.connection_pool.connection_kwargs | {"username": "guest", "password": "word"}
    try:
        with closing(Redis(unix_socket_path=keys["path"], username="guest", password="word")) as guest:
            assert eviction_risk(guest) == ""
    finally:
        client.acl_deluser("guest")


@pytest.mark.long
def test_workers_and_enqueue_name_a_redis_that_may_delete_keys(
    tmp_path: Path, database: Database, capfd: pytest.CaptureFixture[str]
) -> None:
    site = Site(tmp_path)
    database.client.config_set("maxmemory-policy", "allkeys-random")
    try:
        with site.worker(database.url):
            site.require_whole(site.run(RedisFleet(database.url)))
    finally:
        database.client.config_set("maxmemory-policy", "noeviction")
    assert capfd.readouterr().err.count("maxmemory-policy is allkeys-random") == 2  # the worker, and who enqueued


def hasty(url: str) -> Redis | None:
    """A client that gives up soon; None if the server took longer for its first words, as on a busy machine."""
    with suppress(RedisUnavailable):
        return connect(url, timeout=0.2)
    return None


def test_a_watch_survives_a_redis_that_stalls(server: Server) -> None:
    run = QueueRun(server.client(), straight())
    out = io.StringIO()
    with closing(until(lambda: hasty(server.url))) as client:
        view = RunView(Board(client), run.keys.run)
        watching = threading.Thread(target=watch, args=(Console(file=out, width=120), view.draw), daemon=True)
        watching.start()
        until(lambda: "running" in out.getvalue())
        server.freeze()
        until(lambda: "Redis does not answer" in out.getvalue())
        server.thaw()
        until(lambda: server.client().ping())
        run.close()
        watching.join(LONG)
        assert not watching.is_alive()


def test_a_mistyped_folder_is_said_to_be_none_with_the_names_that_are_near(
    tmp_path: Path, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    everything().run(write_inputs(tmp_path / "in.jsonl", 3), tmp_path / "first-try")
    for words in (["first-tyr", "--redis", database.url], ["first-tyr", "--redis", "redis://127.0.0.1:1/0"], ["./first-tyr"]):
        found = CliRunner().invoke(app, ["status", *words])
        told = found.output.replace("\n", " ")
        assert found.exit_code == 1, told
        assert f"no directory '{words[0]}' here; did you mean first-try?" in told, told


def test_a_resume_that_comes_when_the_run_has_just_ended_asks_no_sink(
    tmp_path: Path, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = RunDir(everything().run(write_inputs(tmp_path / "in.jsonl", 3), tmp_path / "out").dir)
    begun, board = read_created(directory), Board(database.client)
    board.ask(begun.run_id, Order(chain_ref="c.py", digest="d", inputs=("in.jsonl",), directory="out"))
    board.beat("sink-1", {"kind": "sink"})
    stale = board.run(begun.run_id)
    database.client.delete(f"chainette:run:{begun.run_id}", f"chainette:order:{begun.run_id}", "chainette:runs")
    monkeypatch.setattr(Board, "run", lambda _self, _run: stale)
    assert not _asks_a_sink(directory, begun, database.url, Resumption())
    board.leave("sink-1")
