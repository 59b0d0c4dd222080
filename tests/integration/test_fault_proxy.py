"""Each fault of the proxy disturbs a real server's clients as its name says, and heals."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from redis import Redis, exceptions

from chainette.fleet.server.embedded import EmbeddedServer
from tests.support.cli import until
from tests.support.patience import LONG
from tests.support.proxy import FaultProxy
from tests.support.valkey import Database, connect


@pytest.fixture
def far(proxy: FaultProxy) -> Iterator[Redis]:
    """A client by way of the proxy."""
    with closing(connect(proxy.url, socket_timeout=LONG)) as client:
        client.ping()
        yield client


@pytest.fixture
def hasty(proxy: FaultProxy) -> Iterator[Redis]:
    """A client by way of the proxy that gives up soon."""
    with closing(connect(proxy.url, socket_timeout=0.3)) as client:
        until(lambda: connected(client))
        yield client


def connected(client: Redis) -> bool:
    """Whether it has a connection; on a busy machine, the server's first words take their time."""
    with suppress(exceptions.TimeoutError):
        return bool(client.ping())
    return False


@pytest.fixture
def raw(proxy: FaultProxy) -> Iterator[socket.socket]:
    """A connection that no client library mends."""
    port = urlsplit(proxy.url).port
    with socket.create_connection(("127.0.0.1", port or 0), timeout=LONG) as connection:
        yield connection


@pytest.fixture
def near(database: Database) -> Redis:
    """A client beside it; tests leave the counter `n`."""
    database.may_leave("n")
    return database.client


def test_latency_counts_each_way(proxy: FaultProxy, far: Redis) -> None:
    proxy.delay(0.03)
    start = time.monotonic()
    far.ping()
    assert time.monotonic() - start >= 0.06


def test_a_large_request_and_its_reply_pass_unchanged(far: Redis, near: Redis) -> None:
    value = bytes(range(256)) * 4096
    far.set("n", value)
    assert near.get("n") == value == far.get("n")


def test_a_blackhole_answers_nothing_and_delivers_late(proxy: FaultProxy, far: Redis, hasty: Redis, near: Redis) -> None:
    proxy.blackhole()
    with pytest.raises(exceptions.TimeoutError):
        hasty.lpush("n", "late")
    assert near.llen("n") == 0
    proxy.heal()
    assert near.blpop(["n"], timeout=LONG) == (b"n", b"late")
    assert far.ping()


def test_a_reset_breaks_the_live_connections_only(proxy: FaultProxy, raw: socket.socket) -> None:
    raw.sendall(b"PING\r\n")
    assert raw.recv(100)
    proxy.reset()
    with pytest.raises(ConnectionResetError):
        raw.recv(100)
    with closing(connect(proxy.url)) as later:
        assert later.ping()


def test_a_refusing_link_lets_nobody_in_until_it_heals(proxy: FaultProxy, far: Redis) -> None:
    proxy.refuse()
    for _ in range(3):
        with pytest.raises(exceptions.ConnectionError):
            far.ping()
    proxy.heal()
    assert far.ping()


def test_a_request_whose_reply_is_dropped_took_effect(proxy: FaultProxy, far: Redis, hasty: Redis, near: Redis) -> None:
    proxy.drop_replies()
    with pytest.raises(exceptions.TimeoutError):
        hasty.incr("n")
    until(lambda: near.get("n") == b"1")
    proxy.heal()
    assert far.incr("n") == 2


def test_no_connection_goes_on_behind_dropped_replies(proxy: FaultProxy, raw: socket.socket) -> None:
    proxy.drop_replies()
    raw.sendall(b"PING\r\n")
    until(lambda: proxy.lossy)
    proxy.heal()
    with pytest.raises(ConnectionResetError):
        raw.recv(100)


def test_one_reply_can_be_lost_by_a_word_of_its_request(proxy: FaultProxy, far: Redis, near: Redis) -> None:
    far.incr("n")
    proxy.lose_reply_to(b"INCR")
    assert far.get("n") == b"1"
    with pytest.raises(exceptions.ConnectionError):
        far.incr("n")
    assert near.get("n") == b"2"
    assert far.incr("n") == 3


def test_a_server_on_a_port_can_be_behind_it_too(tmp_path: Path) -> None:
    with (
        EmbeddedServer.start(tmp_path / "data", tcp=True) as server,
        FaultProxy(server.url) as proxy,
        closing(connect(proxy.url)) as client,
    ):
        assert client.ping()
        server.stop()
        with pytest.raises(exceptions.ConnectionError):
            client.ping()
        server.restart()
        assert client.ping()
