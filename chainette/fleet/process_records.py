"""Records of this machine's workers: which ones run, for which Redis, and how to end one that does not answer.

A record is a file per process in a folder of the user's own. It holds the process id and when that process was born, so that
another process which got the same id later is never touched. On systems without /proc nothing is recorded.
"""

from __future__ import annotations

import os
import select
import signal
import stat
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from chainette.utils.private_files import make_folder, new_file

__all__ = ["Recorded", "end", "on_record", "recorded"]

_PROC = Path("/proc")


class Recorded(msgspec.Struct, frozen=True):
    """One worker process of this machine."""

    #: Its incarnation in Redis.
    name: str
    pid: int
    #: The machine's boot, and clock ticks from there to the process's start.
    born: str
    engines: list[str]
    #: The URL of its Redis, without a password.
    redis: str


@contextmanager
def on_record(name: str, engines: Sequence[str], redis: str) -> Iterator[None]:
    """This process is on record as a worker while inside, unless no file can be written."""
    pid = os.getpid()
    path, born = _folder() / f"{pid}-{name}.json", _born(pid)
    if born is not None:
        with suppress(OSError):
            make_folder(_folder())
            if _is_mine():
                with new_file(path) as file:
                    file.write(msgspec.json.encode(Recorded(name, pid, born, [*engines], redis)))
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink()


def recorded(redis: str, engine: str | None = None) -> list[Recorded]:
    """The live workers of a Redis on this machine, for one engine or for all; deletes the records of dead ones."""
    found = []
    for path in _records():
        try:
            worker = msgspec.json.decode(path.read_bytes(), type=Recorded)
        except (OSError, msgspec.DecodeError):  # it ends, or begins, just now
            continue
        if _born(worker.pid) != worker.born:
            path.unlink(missing_ok=True)
        elif worker.redis == redis and (engine is None or engine in worker.engines):
            found.append(worker)
    return sorted(found, key=lambda worker: worker.name)


def end(workers: Iterable[Recorded], grace: float) -> list[Recorded]:
    """Tells processes to hand back their units and to end, waits, and kills the rest; returns those.

    SIGTERM first, SIGKILL after `grace` seconds. They are gone on return, unless the system holds them.
    """
    opened = {descriptor: worker for worker in workers if (descriptor := _open(worker)) is not None}
    try:
        for descriptor in opened:
            _send(descriptor, signal.SIGTERM)
        left = _wait([*opened], grace)
        for descriptor in left:
            _send(descriptor, signal.SIGKILL)
        _wait(left, grace)
        return [opened[descriptor] for descriptor in left]
    finally:
        for descriptor in opened:
            os.close(descriptor)


def _folder() -> Path:
    return Path(tempfile.gettempdir()) / f"chainette-{os.getuid()}" / "workers"


def _records() -> list[Path]:
    """Files that no other user can have put there."""
    try:
        return [*_folder().glob("*.json")] if _is_mine() else []
    except OSError:
        return []


def _is_mine() -> bool:
    """Whether nobody else can write to the folder, although anyone may have made one of its name first."""
    found = [path.lstat() for path in (_folder().parent, _folder())]
    return all(stat.S_ISDIR(one.st_mode) and one.st_uid == os.getuid() and not one.st_mode & 0o022 for one in found)


def _born(pid: int) -> str | None:
    """Distinguishes a process from all others with the same id, earlier or later; None if there is no such process."""
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
        fields = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return f"{boot}/{fields[19]}"


def _open(worker: Recorded) -> int | None:
    """A descriptor that means this process even if its id is used again; None if it is gone."""
    try:
        descriptor = os.pidfd_open(worker.pid)
    except OSError:
        return None
    if _born(worker.pid) == worker.born:
        return descriptor
    os.close(descriptor)
    return None


def _send(descriptor: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        signal.pidfd_send_signal(descriptor, number)


def _wait(descriptors: Sequence[int], seconds: float) -> list[int]:
    """Those that have not ended in time."""
    left, until = set(descriptors), time.monotonic() + seconds
    poll = select.poll()
    for descriptor in left:
        poll.register(descriptor, select.POLLIN)
    while left and (rest := until - time.monotonic()) > 0:
        for descriptor, _ in poll.poll(rest * 1000):
            poll.unregister(descriptor)
            left.discard(descriptor)
    return [descriptor for descriptor in descriptors if descriptor in left]
