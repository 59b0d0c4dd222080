"""A worker in a process by itself, which reads its configuration from standard input (`entry.py` starts it).

When standard input ends, its parent is gone: it hands its units back and ends. So no worker outlives its fleet, and no password
is in argv or in the environment.
"""

from __future__ import annotations

import logging
import signal
import sys
import threading
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from functools import partial
from pathlib import Path

import anyio.to_thread
import msgspec
import redis

from chainette.engine.config import EngineConfig
from chainette.errors import ChainetteError, RedisUnavailable
from chainette.fleet.process_records import on_record
from chainette.fleet.protocol.run_fields import WITHDREW, RunInfo
from chainette.fleet.protocol.seals import seals_of
from chainette.fleet.redis.connect import chosen_url, connect, shown
from chainette.fleet.redis.redis_queue import FleetQueue
from chainette.fleet.redis.run_registry import Board
from chainette.hooks import Hooks
from chainette.io.rundir.event_types import EngineLoaded, EngineReleased, Event, WorkerJoined, WorkerLeft, WorkerRefused
from chainette.utils.event_loop import run_loop
from chainette.utils.terminal_text import guard_logs
from chainette_workers.metrics.catalogue import ProcessKind
from chainette_workers.metrics.watching import Watch, watching
from chainette_workers.runtime import UNUSABLE, heed_signals, say, warn_of_eviction, watch_parent
from chainette_workers.worker.configuration import WorkerConfig
from chainette_workers.worker.engine_pool import EnginePool, spread
from chainette_workers.worker.engine_worker import EngineWorker
from chainette_workers.worker.enqueued_chains import Chains
from chainette_workers.worker.function_pool import Children
from chainette_workers.worker.served_runs import ServedRuns
from chainette_workers.worker.work_log import WorkLog

__all__ = ["main", "serve"]

_log = logging.getLogger("chainette")


def serve(config: WorkerConfig, stopping: threading.Event) -> None:
    """Claims and processes units until `stopping` is set; then hands back unfinished units.

    Raises:
        RedisUnavailable: Redis does not answer at the start. Later on, it is waited for.
        RunError: it does not let us in.
        EngineConfigError: an engine can never be opened.
    """
    with (
        connect(config.url, timeout=5.0) as connection,
        ThreadPoolExecutor(1) as side,
        watching(config.metrics, connection, ProcessKind.WORKER, engines=config.names) as watch,
    ):
        warn_of_eviction(connection)
        process = _Process(FleetQueue(connection), Board(connection), config, side, watch)
        with on_record(process.worker.incarnation, config.names, shown(chosen_url(config.url))):
            run_loop(process.worker.run, stopping.is_set)
        process.leave()


def main() -> int:
    """Serves until standard input ends; returns the exit code: UNUSABLE if another try cannot do better."""
    guard_logs()
    line = sys.stdin.buffer.readline()
    if not line:  # nobody needs it after all
        return 0
    config = msgspec.json.decode(line, type=WorkerConfig)
    stopping = threading.Event()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    heed_signals(stopping, signal.SIGTERM)
    watch_parent(stopping)
    try:
        serve(config, stopping)
    except ChainetteError as error:
        say(str(error))
        return 1 if isinstance(error, RedisUnavailable) else UNUSABLE
    return 0


class _Process:
    """One worker with its chains and engines, and its messages to its log and to the runs it serves."""

    def __init__(self, queue: FleetQueue, board: Board, config: WorkerConfig, side: ThreadPoolExecutor, watch: Watch) -> None:
        self._log = WorkLog()
        hook = Hooks([watch.hook, self._log])
        self._queue, self._board, self._config, self._side, self._hook = queue, board, config, side, hook
        root, file, offered, modules = Path(config.chain_root), config.engines_file, config.parameters, config.modules
        chains = Chains(root, config.names, file, self._refuse, offered, modules, seals_of())
        self._chains = chains
        self._served = ServedRuns(queue, config.names, chains.plan_of, chains.forget, hook, self._keep)
        self.worker = EngineWorker(
            queue,
            self._served,
            EnginePool(self._tell, self._log.opening(partial(spread, config.gpus))),
            config.rows_in_flight,
            Children(root, file, offered, modules),
            drain_after=config.drain_after,
            hook=hook,
            about=watch.words,
            ready=self._ready,
            announce=self._announce,
            withdraw=self._withdraw,
            lookups=board.lookups,
        )
        #: Runs that know of this worker; engines that are loaded now; and which runs know of which of them.
        self._joined: set[str] = set()
        self._loaded: dict[str, EngineLoaded] = {}
        self._known: set[tuple[str, str]] = set()
        watch.read("chainette_rows_in_flight", lambda: self.worker.hands.rows)
        watch.read("chainette_units_in_flight", lambda: len(self.worker.hands.claims))
        watch.read("chainette_rows_in_flight_max", lambda: self.worker.rows_budget)

    def _ready(self) -> None:
        served, where = ", ".join(self._config.names), shown(self._config.url) if self._config.url else ""
        say(
            f"worker {self.worker.incarnation}: serving {served} below {self._config.chain_root}{f', at {where}' * bool(where)}"
        )

    def _refuse(self, info: RunInfo, why: str) -> None:
        """Takes nothing of the run, and goes on with others; or takes it after all, if `why` is empty."""
        if words := self._object(info.run, f"takes nothing of run {info.run}", why):
            self._note(info.run, WorkerRefused(worker=self.worker.incarnation, reason=words))

    def _keep(self, runs: Collection[str]) -> None:
        """Forgets all other runs."""
        self._chains.keep(runs)
        self.worker.keep(runs)
        self._joined &= {*runs}
        self._known = {(run, digest) for run, digest in self._known if run in runs}

    def _withdraw(self, info: RunInfo, why: str) -> None:
        """Tells a run that its engine refuses this worker, or no longer does."""
        self._object(info.run, WITHDREW, why)

    def _object(self, run: str, what: str, why: str) -> str:
        """Tells a run this worker's objection to it, or that there is none any more; returns the objection in words."""
        me = self.worker.incarnation
        words = f"worker {me} {what}: {why}" if why else ""
        self._send(lambda: self._board.refuse(run, me, words))
        if words:
            say(words)
        return words

    def _tell(self, config: EngineConfig, event: EngineLoaded | EngineReleased) -> None:
        self._hook.on_event(event)
        runs = [run for run, digest in self._known if digest == config.digest]
        self._known -= {(run, config.digest) for run in runs}
        if isinstance(event, EngineLoaded):
            self._loaded[config.digest] = event
        else:
            for run in runs:
                self._note(run, event)

    async def _announce(self, info: RunInfo, config: EngineConfig | None) -> None:
        """Tells a run about its worker and its engine, before either has done anything for it."""
        events: list[Event] = []
        if info.run not in self._joined:
            self._joined.add(info.run)
            events.append(WorkerJoined(worker=self.worker.incarnation))
        if config is not None and (info.run, config.digest) not in self._known and config.digest in self._loaded:
            self._known.add((info.run, config.digest))
            events.append(self._loaded[config.digest])
        if events:
            sent = [self._note(info.run, event) for event in events]
            await anyio.to_thread.run_sync(wait, sent, abandon_on_cancel=True)

    def leave(self) -> None:
        """Tells the runs this process worked for that it ended properly."""
        self._log.end()
        for run in self._joined:
            self._note(run, WorkerLeft(worker=self.worker.incarnation))

    def _note(self, run: str, event: Event) -> Future[None]:
        return self._send(lambda: self._queue.note(run, event))

    def _send(self, words: Callable[[], None]) -> Future[None]:
        """Calls Redis off the event loop; the call may get lost."""

        def send() -> None:
            try:
                with suppress(redis.RedisError):
                    words()
            except Exception:
                _log.exception("worker %s: a message to a run failed", self.worker.incarnation)

        return self._side.submit(send)
