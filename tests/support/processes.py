"""The processes that one started, as /proc tells, and ports for them."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path


def free_port() -> int:
    """A port of 127.0.0.1 that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def children(parent: int, words: str = "") -> list[int]:
    """Process ids of a process's children; with words, of those whose name or command line has them."""
    listed = " ".join(_read(task / "children") for task in Path(f"/proc/{parent}/task").glob("*"))
    return [pid for pid in map(int, listed.split()) if words in words_of(pid)]


def words_of(pid: int) -> str:
    """The name and the command line of a process; "" if it has ended."""
    line = _read(Path(f"/proc/{pid}/cmdline")).replace("\0", " ")
    return f"{_read(Path(f'/proc/{pid}/comm')).strip()} {line}" if line else ""


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:  # it ended since it was listed
        return ""


def holder(port: int, among: Iterable[int]) -> int | None:
    """The process, among these, whose end of a TCP connection over 127.0.0.1 has this port; None if it has ended."""
    lines = (line.split() for line in _read(Path("/proc/net/tcp")).splitlines()[1:])
    sockets = {f"socket:[{words[9]}]" for words in lines if words[1].endswith(f":{port:04X}")}
    for pid in among:
        for descriptor in Path(f"/proc/{pid}/fd").glob("*"):
            with suppress(OSError):
                if str(descriptor.readlink()) in sockets:
                    return pid
    return None
