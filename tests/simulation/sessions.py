"""The processes of a scenario: the one that owns the run directory, session after session, and its workers."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, cast

from chainette_workers.sink.drive import DriveLoop
from chainette_workers.sink.service_lease import ServiceLease
from chainette_workers.worker.engine_pool import EnginePool
from chainette_workers.worker.engine_worker import EngineWorker
from chainette_workers.worker.served_runs import ServedRuns

from chainette.core.plan import Plan
from chainette.core.usercode.confined import ChainClaim
from chainette.errors import ChainetteError, RunDirectoryError
from chainette.fleet.protocol.contract import LeasedQueue
from chainette.fleet.redis.answer_lookups import Lookups
from chainette.fleet.redis.run_registry import Board
from chainette.hooks import Hook
from chainette.io.rundir.event_types import Event
from chainette.io.rundir.paths import RunDir
from chainette.records import PYTHON
from chainette.run.options import RunOptions
from chainette.run.resumption import resume, retry
from chainette.run.session import Session
from chainette.run.start import start
from tests.simulation.scenario import Scenario
from tests.simulation.wire import Line, Server, SimulatedBoard
from tests.simulation.world import CURRENT, Fault, Process, World
from tests.support.meaning import after

__all__ = ["Sessions"]

#: Seconds in which every session ends.
_LONG = 6 * 3600.0

#: Sessions of a run with faults; after them nothing goes wrong any more.
_MANY = 12


@dataclass
class SimulatedDrive:
    """`RedisFleet` over a server."""

    server: Server
    window: int | None
    attaches: ClassVar[bool] = True

    @property
    def way(self) -> dict[str, str]:
        return {"redis": "redis://simulated"}

    def check(self, _plan: Plan, /) -> None:
        pass

    def __call__(self, session: Session) -> None:
        process = CURRENT.get()
        assert process is not None
        board, queue = cast("Board", SimulatedBoard(process, self.server)), cast("LeasedQueue", Line(process, self.server))
        me = f"enqueue-{secrets.token_hex(6)}"
        with ServiceLease(board, me, "enqueue") as lease:
            drive = DriveLoop(session, queue, board, {"sink": me, "coordinator": me}, self.window, tend=lambda _: lease.renew())
            drive.run()

    def clean(self, run: str) -> None:
        self.server.queue._runs.pop(run, None)


class _Told(Hook):
    """The durable point a session told: the last event of the log, and the version of the directory it is in."""

    def __init__(self, version: Callable[[], int]) -> None:
        self._version = version
        self.last: tuple[int, int] | None = None

    def on_event(self, event: Event) -> None:
        self.last = (self._version() if self.last is None else self.last[0], event.seq)


@dataclass
class Sessions:
    """Runs a scenario until its run is finished."""

    scenario: Scenario
    plan: Plan
    world: World
    inputs: Path
    server: Server
    #: Whether the run goes in a fleet.
    fleet: bool = False
    #: Node -> retries that took effect before it was recomputed; and retries in all.
    anew: dict[str, int] = field(default_factory=dict)
    retries: int = 0
    #: Rows the next session accepts.
    accept: int | None = None
    _workers: dict[int, Process] = field(default_factory=dict)

    @property
    def directory(self) -> Path:
        return self.world.root / "run"

    async def go(self) -> None:
        """Everything from the first session to the last."""
        self.world.clock.turned = self._turn
        self.accept = next(iter(self.scenario.accept), None)
        keepers = [asyncio.create_task(self._keep(number)) for number in range(self.scenario.workers)]
        try:
            await self._finish(lambda options: start(self.plan, str(self.inputs), self.directory, options))
            for operation in self.scenario.then:
                await self._operate(operation)
            for more in self.scenario.accept[1:]:
                self.accept = more
                await self._finish(lambda options: resume(RunDir(self.directory), self.plan, options))
        finally:
            self.world.clock.turned = lambda _turn: None
            for keeper in keepers:
                keeper.cancel()
            for process in [*self.world.processes]:
                process.kill()
            await self._end([process.task for process in self.world.processes if process.task] + keepers)
            for process in [*self.world.processes]:
                process.bury()

    async def _operate(self, operation: str) -> None:
        """An operation on the finished run; it took effect if there is one more version of the directory."""
        kind, _, node = operation.partition(" ")
        before = self._version()
        if kind == "retry":
            await self._finish(
                lambda options: retry(RunDir(self.directory), cast("Any", self.plan), options, frozenset(), frozenset(), None)
            )
        else:
            await self._finish(lambda options: resume(RunDir(self.directory), self.plan, options, [node]))
        if self._version() > before:
            self.retries += kind == "retry"
            if kind == "from":
                self.anew |= dict.fromkeys(after(self.scenario.elements, node), self.retries)

    @property
    def _begun(self) -> bool:
        """Whether there is a run to resume; a swap may be cut in two."""
        log = self.directory / "events.jsonl"
        return (self.world.root / ".run.old").exists() or (log.exists() and b"\n" in log.read_bytes())

    def _require_kept(self, told: _Told) -> None:
        """Rows somebody was told of stay, whatever took the power; a fork that was undone takes its own log with it."""
        if told.last is not None and told.last[0] == self._version():
            lines = (self.directory / "events.jsonl").read_bytes().count(b"\n")
            assert lines > told.last[1], f"event {told.last[1]} was told, and the log has {lines} lines"

    def _version(self) -> int:
        folder = self.directory / ".versions"
        return max((int(entry.name) for entry in folder.iterdir()), default=0) if folder.exists() else 0

    async def _finish(self, first: Callable[[RunOptions], Coroutine[Any, Any, object]]) -> None:
        """One session after the other, until the log says that the run is finished."""
        work = first
        for number in range(_MANY + 3):
            self.world.calm = number >= _MANY
            if await self._session(work):
                return
            if self._begun:
                work = lambda options: resume(RunDir(self.directory), self.plan, options)  # noqa: E731
        raise AssertionError("the run does not end although nothing goes wrong any more")

    async def _session(self, work: Callable[[RunOptions], Coroutine[Any, Any, object]]) -> bool:
        """One process that owns the directory; whether it ended well."""
        scenario, world = self.scenario, self.world
        drive = SimulatedDrive(self.server, scenario.window) if scenario.workers else None
        told = _Told(self._version)
        options = RunOptions(
            run_id="sim",
            hooks=(told,),
            format=scenario.format,
            max_rows_per_file=scenario.rows_per_file,
            window=scenario.window,
            accept=self.accept,
            dedupe=scenario.dedupe,
            chain_claim=ChainClaim("sim"),
            drive=drive,
        )
        process = Process("main", world)
        task = process.start(self._guarded(work(options)))
        await self._end([task])
        left = process.open_files()
        assert not left or not process.alive, f"a session that ended by itself leaves files open: {[*left.values()]}"
        process.bury()
        self._require_kept(told)
        error = task.exception() if not task.cancelled() else None
        if not process.alive or task.cancelled():
            return False
        if error is None:
            return True
        if isinstance(error, ChainetteError) or (isinstance(error, RuntimeError) and "answers to" in str(error)):
            if isinstance(error, RunDirectoryError) and (
                "no rejected rows" in str(error) or "were deleted" in str(error) or "only lines" in str(error)
            ):
                return True
            world.errors.append(error)
            await asyncio.sleep(2)
            return False
        raise error

    async def _guarded(self, work: Coroutine[Any, Any, object]) -> None:
        await work

    async def _end(self, tasks: list[asyncio.Task[Any]]) -> None:
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=_LONG)
            assert not late, f"did not end in {_LONG:,.0f} s: {late}"

    # -- workers

    async def _keep(self, number: int) -> None:
        """Starts a worker again whenever it is gone."""
        while True:
            process = self._workers[number] = Process(f"worker {number}", self.world)
            task = process.start(self._work(process))
            await asyncio.wait([task])
            process.bury()
            if process.alive and not task.cancelled() and (error := task.exception()) is not None:
                self.world.crashes.append(error)
            await asyncio.sleep(0.5 + 3 * self.world.rng.random())

    async def _work(self, process: Process) -> None:
        queue = cast("LeasedQueue", Line(process, self.server))
        names = {PYTHON, *self.plan.engines}
        lookups = cast("Lookups", Line(process, self.server, "lookups"))
        served = ServedRuns(queue, names, lambda _info: self.plan)
        await EngineWorker(queue, served, EnginePool(), lookups=lookups).run(lambda: process.asked)

    # -- between any two awaits

    def _turn(self, _turn: int) -> None:
        fault = self.world.fate("turn")
        if fault is not None:
            self._strike(fault)

    def _strike(self, fault: Fault) -> None:
        processes = self.world.processes
        main = next((process for process in processes if process.name == "main" and process.alive), None)
        workers = [process for process in processes if process.name != "main" and process.alive]
        match fault.kind:
            case "main killed" if main is not None:
                main.kill()
            case "Ctrl-C" if main is not None and main.task is not None:
                main.task.cancel()
            case "worker killed" if workers:
                workers[int(fault.amount * 7) % len(workers)].kill()
            case "worker stopped" if workers:
                workers[int(fault.amount * 7) % len(workers)].asked = True
            case "worker frozen" if workers:
                workers[int(fault.amount * 7) % len(workers)].stopped_until = self.world.clock.now + 20 * fault.amount
            case "run paused" if "sim" in self.server.queue._runs:
                self.server.queue.set_state("sim", "paused")
                asyncio.get_running_loop().call_later(10 * fault.amount, self._unpause)
            case _:
                return
        self.world.happen(fault.kind)

    def _unpause(self) -> None:
        if (run := self.server.queue._runs.get("sim")) is not None and run.state == "paused":
            self.server.queue.set_state("sim", "running")
