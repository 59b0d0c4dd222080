"""Real Valkey servers for tests: a shared one that each test gets empty and must leave empty, and one to torment.

They are the product's own embedded server: a Unix socket, a random password, gone with the test process.
"""

from __future__ import annotations

import fnmatch
import os
import shutil
import signal
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import pytest
from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from chainette.fleet.protocol.keys import SPENT
from chainette.fleet.server.embedded import SERVER_VARIABLE, EmbeddedServer
from tests.support.proxy import FaultProxy
from tests.support.tools import program

__all__ = [
    "LEASES",
    "Database",
    "Server",
    "assert_no_keys_left",
    "connect",
    "database",
    "proxy",
    "redis_database",
    "redis_server",
    "server",
    "shared_server",
]

#: Keys of killed processes that stay until somebody reaps them.
LEASES = ("chainette:lease", "chainette:worker*", "chainette:held:*", "rq:worker*")


#: Words that end a worker; they expire within minutes, since workers may not delete them.
_BRIEF = "chainette:stop:*"


def connect(url: str, *, socket_timeout: float | None = 60.0) -> Redis:
    """A client that repeats nothing by itself: redis-py's default sends a command up to eleven times."""
    return Redis.from_url(url, socket_timeout=socket_timeout, retry=Retry(NoBackoff(), 0))


def assert_no_keys_left(client: Redis, allowed: Sequence[str] = ()) -> None:
    """Fails with the name and type of each key that no pattern in `allowed` covers."""
    found = sorted(key.decode() for key in client.scan_iter(count=1000))
    left = [key for key in found if not any(fnmatch.fnmatchcase(key, pattern) for pattern in (*allowed, _BRIEF, SPENT))]
    assert not left, "keys left in Redis: " + ", ".join(f"{key} ({_type(client, key)})" for key in left)


def _type(client: Redis, key: str) -> str:
    found = client.type(key)
    assert isinstance(found, bytes)
    return found.decode()


class Database:
    """An empty database of the shared server."""

    def __init__(self, url: str, client: Redis) -> None:
        self.url = url
        #: For the test itself; the code under test connects to `url`.
        self.client = client
        #: Patterns of keys the test may leave behind.
        self.allowed: list[str] = []

    def may_leave(self, *patterns: str) -> None:
        """Says which keys outlive the test on purpose (`fnmatch` patterns)."""
        self.allowed.extend(patterns)


@pytest.fixture(scope="session")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    with EmbeddedServer.start(tmp_path_factory.mktemp("valkey")) as server:
        yield server


@pytest.fixture
def database(shared_server: EmbeddedServer) -> Iterator[Database]:
    """A database that is empty at the start, and must be at the end but for the keys the test names with `may_leave`."""
    yield from _emptied(shared_server)


def _emptied(server: EmbeddedServer) -> Iterator[Database]:
    if not server.running:
        server.restart()
    with closing(connect(server.url)) as client:
        client.flushall()
        database = Database(server.url, client)
        yield database
        assert_no_keys_left(client, database.allowed)


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(SERVER_VARIABLE, program("redis-server", "apt-get install redis-server"))
        server = EmbeddedServer.start(tmp_path_factory.mktemp("redis"))
    with server:
        yield server


@pytest.fixture
def redis_database(redis_server: EmbeddedServer) -> Iterator[Database]:
    """As `database`, on the Redis of the system: another program than Valkey, and an older one."""
    yield from _emptied(redis_server)


@pytest.fixture
def proxy(database: Database) -> Iterator[FaultProxy]:
    """A link to `database` that can fail."""
    with FaultProxy(database.url) as proxy:
        yield proxy


class Server:
    """A server of one test, to be stopped, killed, frozen, emptied and rolled back. Its `url` never changes."""

    def __init__(self, folder: Path) -> None:
        self._copies = folder / "copies"
        self._embedded = EmbeddedServer.start(folder / "data")
        self._stack = ExitStack()

    @property
    def url(self) -> str:
        return self._embedded.url

    @property
    def pid(self) -> int:
        return self._embedded.pid

    def client(self) -> Redis:
        """A new client; closed at the end of the test."""
        return self._stack.enter_context(closing(connect(self.url)))

    def stop(self) -> None:
        """Down, in an orderly way; `start` brings it back."""
        with suppress(ProcessLookupError):
            self.thaw()
        self._embedded.stop()

    def start(self) -> None:
        """Up again, with its data directory."""
        self._embedded.restart()

    def kill(self) -> None:
        """Down by kill -9; gone on return."""
        os.kill(self.pid, signal.SIGKILL)
        self._embedded.stop()

    def freeze(self) -> None:
        """Accepts connections and answers nothing, until `thaw`."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def restart_empty(self) -> None:
        """As after the loss of its disk."""
        self.stop()
        shutil.rmtree(self._embedded.data_dir)
        self.start()

    def copy(self, name: str) -> None:
        """Keeps its data as they are now, for `roll_back`; restarts it."""
        self.stop()
        shutil.copytree(self._embedded.data_dir, self._copies / name)
        self.start()

    def roll_back(self, name: str) -> None:
        """Restarts it with the data of that copy, as after a restored backup."""
        self.stop()
        shutil.rmtree(self._embedded.data_dir)
        shutil.copytree(self._copies / name, self._embedded.data_dir)
        self.start()

    def close(self) -> None:
        self._stack.close()
        self.stop()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with closing(Server(tmp_path / "valkey")) as server:
        yield server
