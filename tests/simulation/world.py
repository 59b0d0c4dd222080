"""Processes that can die, and the schedule of their accidents."""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from collections.abc import Coroutine, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.simulation.virtual import VirtualTime, block, is_thread

__all__ = ["CURRENT", "Dead", "Fault", "Process", "World"]


class Dead(BaseException):
    """The process was killed: nothing it still does has an effect."""


@dataclass(frozen=True, order=True)
class Fault:
    """Something goes wrong at the n-th event of a site."""

    #: "disk", "queue", "engine": a call; "turn": a turn of the event loop, that is between any two awaits.
    site: str
    at: int
    kind: str
    #: Between 0 and 1: how much, how long, which.
    amount: float = 0.5

    def __str__(self) -> str:
        return f"{self.kind} at {self.site} {self.at}"


@dataclass(eq=False)
class Process:
    """One process: its tasks see it in `CURRENT`."""

    name: str
    world: World
    alive: bool = True
    #: It is stopped until then (SIGSTOP).
    stopped_until: float = 0.0
    #: Somebody asked it to end (SIGTERM).
    asked: bool = False
    #: Descriptor -> inode, of files it has opened; file objects close theirs without telling.
    files: dict[int, int] = field(default_factory=dict)
    task: asyncio.Task[Any] | None = None

    def start(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        token = CURRENT.set(self)
        self.task = asyncio.get_running_loop().create_task(work)
        CURRENT.reset(token)
        self.world.processes.append(self)
        return self.task

    def kill(self) -> None:
        self.alive = False
        assert self.task is not None
        self.task.cancel()

    def check(self) -> None:
        """Called before everything that has an effect outside of the process."""
        if not self.alive:
            raise Dead(self.name)
        rest = self.stopped_until - self.world.clock.now
        if rest > 0 and is_thread():
            block(asyncio.sleep(rest))
            self.check()

    async def awake(self) -> None:
        """As `check`, on the event loop."""
        rest = self.stopped_until - self.world.clock.now
        if rest > 0 and self.alive:
            await asyncio.sleep(rest)
            await self.awake()
        self.check()

    def open_files(self) -> dict[int, str]:
        """Descriptor -> name, of files that are still open."""
        links = ((file, inode, Path(f"/proc/self/fd/{file}")) for file, inode in self.files.items())
        return {file: link.readlink().name for file, inode, link in links if link.exists() and link.stat().st_ino == inode}

    def bury(self) -> None:
        """The kernel's work once the process is gone."""
        for file in self.open_files():
            os.close(file)
        self.files.clear()
        if self in self.world.processes:
            self.world.processes.remove(self)


CURRENT: ContextVar[Process | None] = ContextVar("CURRENT", default=None)


@dataclass
class World:
    """One simulation."""

    clock: VirtualTime
    root: Path
    rng: random.Random
    faults: Mapping[tuple[str, int], Fault]
    #: Events of each site so far.
    events: Counter[str] = field(default_factory=Counter)
    #: Faults that happened, by kind.
    happened: Counter[str] = field(default_factory=Counter)
    #: Nothing goes wrong any more.
    calm: bool = False
    processes: list[Process] = field(default_factory=list)
    #: Engine -> until when it does not answer.
    down: dict[str, float] = field(default_factory=dict)
    #: (engine, node, question, ask) -> the number of its requests.
    asked: Counter[tuple[str, ...]] = field(default_factory=Counter)

    #: Errors with which sessions ended, and of which workers died by themselves.
    errors: list[Exception] = field(default_factory=list)
    crashes: list[BaseException] = field(default_factory=list)

    def fate(self, site: str) -> Fault | None:
        """The accident at the next event of a site."""
        if self.calm:
            return None
        self.events[site] += 1
        return self.faults.get((site, self.events[site]))

    def happen(self, kind: str) -> None:
        self.happened[kind] += 1
