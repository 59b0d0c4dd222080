"""One server per data directory: a lock the server and its keeper inherit.

Guarantees: it is held exactly as long as one of them lives, even if the process that took it is gone.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from chainette.errors import RunDirectoryError, RunDirectoryInUse
from chainette.utils.private_files import make_folder, open_file

__all__ = ["LOCK", "data_lock", "disown"]

#: The file in the data directory that is locked while a server lives; it holds the starter's process id.
LOCK = "server.lock"

#: Seconds beyond its grace that a server on its way out may take: on a busy machine, its keeper notices late.
_DELAY = 30


@contextlib.contextmanager
def data_lock(data_dir: Path, grace: float) -> Iterator[int]:
    """The lock's descriptor, for the body to pass on to a child; this process does not keep it.

    A server whose starter is gone is on its way out, and is waited for.

    Raises:
        RunDirectoryInUse: another process runs a server on it, or one does not end long after its grace (seconds).
        RunDirectoryError: the directory cannot be made or written to.
    """
    try:
        make_folder(data_dir)
        lock = open_file(data_dir / LOCK, os.O_RDWR | os.O_CREAT)
    except OSError as error:
        raise RunDirectoryError(
            f"{data_dir} cannot hold the server's data: {error.strerror}; name another directory"
        ) from error
    try:
        deadline = time.monotonic() + grace + _DELAY
        while not _try_lock(lock):
            _refuse_if_owned(data_dir, deadline)
            time.sleep(0.02)
        os.ftruncate(lock, 0)
        os.pwrite(lock, b"%d" % os.getpid(), 0)
        yield lock
    finally:
        os.close(lock)


def _try_lock(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise RunDirectoryError(
            f"the data of the server cannot be locked ({error.strerror}): no flock there; name a directory on a local disk"
        ) from error
    return True


def _refuse_if_owned(data_dir: Path, deadline: float) -> None:
    owner = _owner(data_dir)
    if owner and _alive(owner):
        raise RunDirectoryInUse(f"{data_dir} is in use: process {owner} runs a server on it; stop it or name another directory")
    if time.monotonic() > deadline:
        raise RunDirectoryInUse(f"{data_dir} is in use: a server on it does not end; kill it or name another directory")


def _owner(data_dir: Path) -> int:
    """The process that started the server on it; 0 if it stopped the server, or never did."""
    text = (data_dir / LOCK).read_text()
    return int(text) if text.isdigit() else 0


def disown(data_dir: Path) -> None:
    """Records that the processes which still hold the lock are on their way out."""
    with contextlib.suppress(OSError):
        if _owner(data_dir) == os.getpid():
            os.truncate(data_dir / LOCK, 0)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
