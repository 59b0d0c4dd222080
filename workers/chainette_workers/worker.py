"""The worker process: `python -m chainette_workers.worker`, told on standard input what to serve.

The end of standard input means that whoever started it is gone: it hands its units back and ends. So no worker
outlives its fleet, however that ended, and no password stands in argv or in the environment.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

import anyio
import msgspec
import redis

from chainette.core.loading import load_chain
from chainette.core.plan import Plan
from chainette.engine.base import Engine
from chainette.engine.config import EngineConfig
from chainette.engine.lifecycle import Engines
from chainette.errors import ChainetteError, LoadError
from chainette.fleet.connect import connect
from chainette.fleet.queue import FleetQueue, RunInfo
from chainette.io.events import EngineLoaded, EngineReleased, Event, WorkerRefused
from chainette.launch import compile_plan
from chainette.options import RunOptions
from chainette_workers.engine import EngineWorker

__all__ = ["UNUSABLE", "WorkerConfig", "main", "serve"]

#: Exit code of a worker that can never serve what it was told to: trying again is no use.
UNUSABLE = 78

#: Seconds from the end of standard input to the end of the process.
_GRACE = 10.0


class WorkerConfig(msgspec.Struct, frozen=True):
    """What a worker serves: the one line that it reads."""

    url: str | None
    engines: list[str]
    chain_root: str
    rows_in_flight: int
    #: Whether it runs Apply functions and joins too.
    python: bool = True


def serve(config: WorkerConfig, stopping: threading.Event) -> None:
    """Claims and processes units until `stopping` is set; then hands back what is unfinished.

    Raises:
        RunError: Redis does not answer at the start. Later on, it is waited for.
        EngineConfigError: an engine can never be opened.
    """
    with connect(config.url, timeout=5.0) as connection:
        anyio.run(_Server(FleetQueue(connection), config).worker.run, stopping.is_set)


def main() -> int:
    """Serves until standard input ends; returns the exit code."""
    config = msgspec.json.decode(sys.stdin.buffer.readline(), type=WorkerConfig)
    stopping = threading.Event()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for whoever started us
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    threading.Thread(target=_watch_parent, args=(stopping,), daemon=True).start()
    try:
        serve(config, stopping)
    except ChainetteError as error:
        print(error, file=sys.stderr)  # noqa: T201 - the process that started us shows it
        return UNUSABLE
    return 0


def _watch_parent(stopping: threading.Event) -> None:
    while os.read(sys.stdin.fileno(), 4096):  # of the descriptor: a thread inside of sys.stdin aborts the interpreter's exit
        pass
    stopping.set()
    threading.Timer(_GRACE, os._exit, (1,)).start()


class _Server:
    """What one worker process knows: the chains of its runs, and its engines."""

    def __init__(self, queue: FleetQueue, config: WorkerConfig) -> None:
        self._queue = queue
        self._config = config
        self.worker = EngineWorker(
            queue,
            frozenset([*config.engines, *["python"][: config.python]]),
            self._plan_of,
            self._engines_of,
            config.rows_in_flight,
        )

    def _plan_of(self, info: RunInfo) -> Plan | None:
        """The run's plan out of the chain on this machine's disk; None where that is another one."""
        fields = info.fields
        try:
            loaded = load_chain(fields["chain_ref"], Path(self._config.chain_root))
        except LoadError as error:
            self._refuse(info, f"cannot be loaded here: {error}")
            return None
        if loaded.digest != fields["digest"]:
            self._refuse(info, f"has digest {loaded.digest[:12]} here, and {fields['digest'][:12]} where it was enqueued")
            return None
        options = RunOptions(
            batch_size=int(fields["batch_size"]),
            simulate=fields["simulate"] == "1",
            engines_file=fields["engines_file"] or None,
        )
        return compile_plan(loaded.chain, options)

    def _refuse(self, info: RunInfo, why: str) -> None:
        """Takes nothing of the run, and goes on with others."""
        words = f"worker {self.worker.incarnation} takes nothing of run {info.run}: {info.fields['chain_ref']} {why}"
        print(words, file=sys.stderr, flush=True)  # noqa: T201 - a worker's log is its stderr
        self._note(info.run, WorkerRefused(worker=self.worker.incarnation, reason=words))

    def _engines_of(self, info: RunInfo, plan: Plan) -> Engines:
        def loaded(config: EngineConfig, engine: Engine, seconds: float) -> None:
            self._note(info.run, EngineLoaded.of(config, engine, seconds))

        def released(config: EngineConfig) -> None:
            self._note(info.run, EngineReleased(engine=config.name))

        return Engines(plan.engines, on_loaded=loaded, on_released=released)

    def _note(self, run: str, event: Event) -> None:
        try:
            self._queue.note(run, event)
        except redis.RedisError:
            return  # a note may get lost


if __name__ == "__main__":
    sys.exit(main())
