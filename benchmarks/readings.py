"""The memory of processes and the size of files during a run, read from the system every few seconds."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Self

__all__ = ["Readings", "bytes_below", "resident"]

MIB = 2**20


def resident(pid: int) -> float:
    """Resident memory of a process and its children, in MiB; 0 if it is gone."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except (OSError, IndexError):
        return 0.0
    return pages * 4096 / MIB + sum(resident(int(child)) for child in children)


def bytes_below(folder: Path) -> int:
    """Bytes of all files in a folder."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except OSError:  # just renamed or deleted
            continue
    return total


@dataclass
class Readings:
    """Series of (seconds, value) by name, read in a thread until the body ends."""

    #: Reads all values now; a name may come and go.
    read: Callable[[], Mapping[str, float]]
    period: float = 2.0
    series: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    #: (seconds, description) of the moments to mark.
    marks: list[tuple[float, str]] = field(default_factory=list)
    _began: float = field(default_factory=time.monotonic)
    _over: threading.Event = field(default_factory=threading.Event)

    @property
    def now(self) -> float:
        return time.monotonic() - self._began

    def mark(self, text: str) -> None:
        self.marks.append((self.now, text))

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._go)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()

    def _go(self) -> None:
        while not self._over.wait(self.period):
            for name, value in self.read().items():
                self.series.setdefault(name, []).append((self.now, value))

    def peak(self, name: str) -> float:
        return max((value for _, value in self.series.get(name, ())), default=0.0)

    def rates(self, name: str) -> list[tuple[float, float]]:
        """The growth of a counter, per second, each over some readings; it never falls."""
        points = self.series.get(name, [])
        step = max(1, len(points) // 120)
        chosen = points[::step]
        return [
            ((before + after) / 2, max(0.0, (high - low) / (after - before)))
            for (before, low), (after, high) in pairwise(chosen)
        ]
