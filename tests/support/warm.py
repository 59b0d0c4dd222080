"""The `chainette` command in processes that are forked from one which has imported it: a third of the time of a new one.

    done = run(("status", "out"), cwd=folder, environment=os.environ, stdin=None)

The forked process has arguments, folder, environment and standard streams as a new one would, and ends by itself.
"""

from __future__ import annotations

import atexit
import functools
import gc
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path

from tests.support.patience import LONG

__all__ = ["run"]

#: Imported before anything is forked.
_IMPORTS = (
    "anyio._backends._asyncio",
    "anyio.streams.tls",
    "chainette.cli.commands.run",
    "chainette.cli.commands.status",
    "chainette.cli.main",
    "chainette.engine.simulated",
    "chainette.run.executor",
    "pyarrow.parquet",
    "rich.live",
    "uvloop",
    "yaml",
)


def run(words: Sequence[str], cwd: Path, environment: Mapping[str, str], stdin: str | None) -> subprocess.CompletedProcess[str]:
    """Runs `chainette WORDS` to its end."""
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        given.write((stdin or "").encode())
        given.seek(0)
        request = json.dumps([[*words], str(cwd), {**environment}]).encode()
        code = _asked(request, [given.fileno(), out.fileno(), err.fileno()])
        said = []
        for file in (out, err):
            file.seek(0)
            said.append(file.read().decode())
    return subprocess.CompletedProcess([*words], code, *said)


def _asked(request: bytes, streams: list[int]) -> int:
    """The exit code of the process a request leads to."""
    server = _server()
    socket.send_fds(server, [len(request).to_bytes(8)], streams)
    server.sendall(request)
    pid = int.from_bytes(_exactly(server, 4))
    try:
        return int.from_bytes(_exactly(server, 4), signed=True)
    except TimeoutError:
        os.kill(pid, signal.SIGKILL)
        raise


@functools.cache
def _server() -> socket.socket:
    """A connection to this test process's server, which ends with it."""
    ours, theirs = socket.socketpair()
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONUTF8": "1"}
    command = [sys.executable, "-m", "tests.support.warm", str(theirs.fileno())]
    process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=environment, start_new_session=True)
    theirs.close()
    ours.settimeout(LONG)
    atexit.register(process.wait)
    atexit.register(ours.close)
    return ours


def _exactly(connection: socket.socket, number: int) -> bytes:
    """So many bytes; fewer if the other side is gone."""
    found = b""
    while len(found) < number and (more := connection.recv(number - len(found))):
        found += more
    return found


def _serve(connection: socket.socket) -> None:
    """Forks a process for each request, until the tests are gone; returns in each of them."""
    while True:
        length, streams, _, _ = socket.recv_fds(connection, 8, 3)
        if not length:
            os._exit(0)
        words, cwd, environment = json.loads(_exactly(connection, int.from_bytes(length)))
        if (pid := os.fork()) == 0:
            connection.close()
            _become(words, cwd, environment, streams)
            return
        for stream in streams:
            os.close(stream)
        connection.sendall(pid.to_bytes(4))
        connection.sendall(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]).to_bytes(4, signed=True))


def _become(words: list[str], cwd: str, environment: dict[str, str], streams: list[int]) -> None:
    """Makes this process one that was started there, with that."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[0] = cwd
    sys.argv[1:] = words


if __name__ == "__main__":
    for name in _IMPORTS:
        import_module(name)
    gc.freeze()  # a collection in a forked process would copy every page it touches
    _serve(socket.socket(fileno=int(sys.argv[1])))
    import_module("chainette.cli.main").main()
