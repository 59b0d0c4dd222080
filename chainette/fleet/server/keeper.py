"""Keeps one server alive exactly as long as the process that asked for it.

A script of its own (`python -I -S keeper.py`, standard library only), because a server that must die with its starter
needs a parent that survives a kill -9 of the starter, and cannot be ended by another thread. It reads one dictionary
(its length, then names and texts between NULs), starts the server, prints its process id (0 and the reason if it
cannot be started), and ends it (SIGTERM, after the grace SIGKILL) when its standard input ends, when the starter is
gone (a forked child may hold the pipe open), at SIGTERM, or when the server ends by itself. Its last words are the
end of the server's log; the directory of socket and log is gone then. Should the keeper itself be killed, the kernel
kills the server (Linux).
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys

TYPE_CHECKING = False  # as in `typing`, which doubles the start-up of this script
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import IO

try:
    import ctypes
except ImportError:  # a Python built without libffi
    ctypes = None  # type: ignore[assignment]

__all__: list[str] = []

#: Seconds between two looks at the server and the parent, whose ends send no event here.
TICK = 0.25

#: Bytes of the log that the starter gets at the end.
LOG_TAIL = 4096

PR_SET_PDEATHSIG = 1


def main() -> None:
    # blocked signals are inherited, and a starter that blocks SIGTERM would make the server deaf to it
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    length = sys.stdin.buffer.readline()
    if not length:  # the starter is gone
        return
    parts = sys.stdin.buffer.read(int(length)).decode().split("\0")
    keep(dict(zip(parts[::2], parts[1::2], strict=True)))


def keep(request: dict[str, str]) -> None:
    directory = request["directory"]
    os.umask(0o077)  # for the log, the socket and the server's data
    os.mkdir(directory, 0o700)  # noqa: PTH102 - pathlib doubles the start-up of this script
    try:
        with open(f"{directory}/log", "w+b") as log:  # noqa: PTH123
            try:
                server = launch(request, log)
            except OSError as error:
                tell(f"0\n{error}".encode())
                return
            try:
                tell(b"%d\n" % server.pid)
                send(server, request["config"].encode())
                wait(server, int(request["starter"]))
            finally:
                end(server, float(request["grace"]))
                tell(tail(log))
    finally:
        clear(directory)


def launch(request: dict[str, str], log: IO[bytes]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(  # noqa: S603
        [request["server"], "-"],
        stdin=subprocess.PIPE,
        stdout=log,
        stderr=subprocess.STDOUT,
        cwd=request["data_dir"],
        pass_fds=[int(request["lock"])],
        preexec_fn=die_with_keeper(),
    )


def die_with_keeper() -> Callable[[], None] | None:
    if sys.platform != "linux" or ctypes is None:
        return None
    prctl, keeper = ctypes.CDLL(None).prctl, os.getpid()

    def bind() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != keeper:
            os._exit(1)

    return bind


def send(server: subprocess.Popen[bytes], config: bytes) -> None:
    assert server.stdin is not None
    with contextlib.suppress(BrokenPipeError), server.stdin as pipe:
        pipe.write(config)


def wait(server: subprocess.Popen[bytes], starter: int) -> None:
    """Returns when the server has ended, or nobody needs it any more."""
    while server.poll() is None and os.getppid() == starter:
        if select.select([sys.stdin], [], [], TICK)[0]:
            return


def end(server: subprocess.Popen[bytes], grace: float) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    server.terminate()
    try:
        server.wait(grace)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def tell(words: bytes) -> None:
    """Writes to the starter, which may be gone."""
    with contextlib.suppress(OSError):
        os.write(sys.stdout.fileno(), words)


def tail(log: IO[bytes]) -> bytes:
    log.seek(max(0, log.seek(0, os.SEEK_END) - LOG_TAIL))
    return log.read()


def clear(directory: str) -> None:
    for entry in list(os.scandir(directory)):
        os.unlink(entry.path)  # noqa: PTH108
    os.rmdir(directory)  # noqa: PTH106


if __name__ == "__main__":
    main()
