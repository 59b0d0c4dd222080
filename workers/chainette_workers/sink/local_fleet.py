"""`run --workers N`: a whole fleet on this machine, with a private Valkey that ends with the run."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import ClassVar

import msgspec

from chainette.core.plan import Plan
from chainette.core.usercode.confined import module_of
from chainette.core.usercode.parameters import text_of
from chainette.engine.backends import backend_class
from chainette.errors import InputError, RunError, RunStopped
from chainette.fleet.redis.connect import connect
from chainette.fleet.redis.redis_queue import FleetQueue
from chainette.fleet.redis.run_registry import Board
from chainette.fleet.server.embedded import EmbeddedServer
from chainette.io.rundir.paths import RunDir
from chainette.records import PYTHON
from chainette.run.options import RunOptions
from chainette.run.session import Session, require_engines
from chainette.run.window import budget_for, window_for
from chainette.utils.private_files import make_folder
from chainette_workers.runtime import UNUSABLE
from chainette_workers.sink.drive import DriveLoop
from chainette_workers.sink.forked_workers import Forker
from chainette_workers.sink.worker_processes import Child, prepared, running
from chainette_workers.worker.configuration import WorkerConfig
from chainette_workers.worker.gpus import CUDA_DEVICES, visible

__all__ = ["LocalFleet", "devices"]

#: Tries to start a server that died.
_STARTS = 3

#: The most workers that may die one after the other while nothing becomes durable.
_MOST_DEATHS = 6


@dataclass(frozen=True)
class LocalFleet:
    """Moves a session's units with worker processes; the `drive` of RunOptions.

    Raises (`check`):
        InputError: the chain has no such engine, or vLLM's workers are more than the GPUs of this machine.

    Raises (when called):
        RunStopped: a worker can never serve, workers keep dying, an engine does not answer, too many rejects.
    """

    #: Processes per engine: one number for all, or by engine.
    workers: int | Mapping[str, int]
    #: Forks the workers of the first session; later ones, and those of a program, get an interpreter.
    forker: Forker | None = None
    #: Its Valkey ends with the session, so a later session begins a new epoch.
    attaches: ClassVar[bool] = False

    @property
    def way(self) -> dict[str, str]:
        if isinstance(self.workers, int):
            return {"workers": str(self.workers)}
        return {"workers": ",".join(f"{name}={number}" for name, number in self.workers.items())}

    def check(self, plan: Plan, /) -> None:
        devices(plan, self._engines(plan))
        require_engines(plan)

    def __call__(self, session: Session) -> None:
        with _folder(session.writer.directory) as folder:
            children = list(self._children(session, folder))
            backends = {config.backend for config in session.plan.engines.values()}
            # the server starts while the workers import; nobody reads its data later, so it need not end in good order
            with prepared(children, self.forker, backends), EmbeddedServer.start(folder / "data", grace=0) as server:
                self._drive(session, children, server)

    def _children(self, session: Session, folder: Path) -> Iterator[Child]:
        """The workers, which do not know yet where Redis is."""
        options, engines = session.options, self._engines(session.plan)
        offered = {name: [text_of(value)] for name, value in options.parameters.items()}
        file, (root, modules) = options.engines_file, _bounds(options)
        for number, (engine, environment) in enumerate(zip(engines, devices(session.plan, engines), strict=True)):
            config = WorkerConfig(None, [engine], root, engines_file=file, parameters=offered, modules=modules)
            yield Child(config, folder / f"worker-{number}.log", environment)

    def _drive(self, session: Session, children: list[Child], server: EmbeddedServer) -> None:
        for child in children:
            child.config = msgspec.structs.replace(child.config, url=server.url)
        rows = sum(_rows_in_flight(session.plan, name) for child in children for name in child.config.engines)
        window = window_for(rows, session.options.window)

        def tend(moved: bool) -> None:
            if not server.running:
                _revive(server)
            _tend(children, moved)

        def let_go() -> None:
            for child in children:
                child.release()

        with connect(server.url) as connection:
            queue, board = FleetQueue(connection), Board(connection)
            drive = DriveLoop(session, queue, board, {}, window, tend=tend, let_go=let_go, own_workers=True)
            try:
                with running(children):
                    drive.run()
            except BaseException as error:
                if isinstance(error, RunStopped) or not isinstance(error, Exception):
                    drive.drain()  # stopping workers commit the rows that have finished
                raise

    def clean(self, run: str) -> None:
        """Does nothing: the Valkey ended with the session."""

    def _engines(self, plan: Plan) -> list[str]:
        """The engine of each process."""
        engines = list(plan.engines) or [PYTHON]
        wanted = self.workers if isinstance(self.workers, Mapping) else dict.fromkeys(engines, self.workers)
        unknown = [name for name in wanted if name not in engines]
        if unknown:
            said = f"--workers {self.way['workers']}: the chain has no engine {unknown[0]!r}; it has {', '.join(engines)}"
            raise InputError(f"{said}; name those, or give one number for all")
        return [name for name in engines for _ in range(wanted.get(name, 1))]


def _bounds(options: RunOptions) -> tuple[str, tuple[str, ...]]:
    """The folder and the modules that workers may load chains from: the user has named the one chain."""
    file = Path(options.chain_ref.partition(":")[0])
    return (str(file.parent) if file.is_absolute() else options.chain_root), module_of(options.chain_ref)


def devices(plan: Plan, engines: Sequence[str]) -> list[dict[str, str]]:
    """The GPU variables of each worker's environment: vLLM workers get a device each, in order; without GPUs, vLLM is taken
    to run on the CPU.

    Raises:
        InputError: there are fewer GPUs than workers that need one.
    """
    there = visible(os.environ.get(CUDA_DEVICES))
    configs = [plan.engines.get(engine) for engine in engines]
    needed = [backend_class(config.backend).gpus(config) if config is not None else 0 for config in configs]
    if there and sum(needed) > len(there):
        raise InputError(
            f"--workers: vLLM's workers need {sum(needed)} GPUs of their own, and there are {len(there)} ({', '.join(there)}); "
            "start fewer, or have engines take turns in one process: `run` without --workers, `resume --local`"
        )
    free = iter(there)
    taken = [list(islice(free, number)) for number in needed]
    return [{CUDA_DEVICES: ",".join(names)} if names else {} for names in taken]


def _revive(server: EmbeddedServer) -> None:
    """Restarts the server on its data.

    Raises:
        RunStopped: it does not start.
    """
    for left in reversed(range(_STARTS)):
        try:
            server.restart()
            return
        except RunError as error:
            if not left:
                raise RunStopped(str(error)) from error


@contextmanager
def _folder(directory: RunDir) -> Iterator[Path]:
    """A folder inside the run directory for the fleet's files, so that a killed fleet leaves nothing elsewhere."""
    folder = directory.fleet
    shutil.rmtree(folder, ignore_errors=True)
    make_folder(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _rows_in_flight(plan: Plan, engine: str) -> int:
    """The budget of an engine that is not open yet."""
    config = plan.engines.get(engine)
    return budget_for((config.capacity if config is not None else None) or 64, plan.batch_size)


def _tend(children: list[Child], moved: bool) -> None:
    """Restarts workers that died, a little later each time, as long as rows become durable in between.

    Raises:
        RunStopped: one can never serve, or they die one after the other.
    """
    for child in children:
        if moved:
            child.deaths = 0
        code = child.code
        if code is None:
            continue
        if code == UNUSABLE or child.deaths >= _MOST_DEATHS:
            raise RunStopped(f"a worker for {', '.join(child.config.engines)} ended with code {code}:\n{child.last_words}")
        child.revive()
