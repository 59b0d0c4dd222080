"""A worker's sign of life: one thread that renews its lease and takes back the units of dead workers."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import redis

from chainette.fleet.protocol.contract import LeasedQueue
from chainette.fleet.protocol.queue_values import LEASE
from chainette.hooks import Hook
from chainette.io.rundir.event_types import WorkerLost
from chainette.utils.user_errors import told

__all__ = ["Heartbeat"]

_log = logging.getLogger("chainette")

#: Seconds between two beats.
BEAT = LEASE / 4


@dataclass
class Heartbeat:
    """Beats from `start` to `stop`, as long as the event loop turns: a worker that hangs loses its lease."""

    queue: LeasedQueue
    incarnation: str
    #: The worker's fields in Redis.
    words: Callable[[], Mapping[str, str | int | float]]
    #: Seconds the event loop may stand still.
    deadline: float
    #: (run, queue) of every queue it claims from.
    queues: Callable[[], Sequence[tuple[str, str]]]
    #: Whether somebody asked the worker to end.
    asked_to_stop: bool = False
    hook: Hook = field(default_factory=Hook)
    _ticked: float = field(default_factory=time.monotonic)
    _over: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def beat(self) -> bool:
        """Renews the lease now, or begins it; False if there was none.

        Raises:
            redis.RedisError: Redis did not answer.
        """
        return self.queue.beat(self.incarnation, self.words(), queues=self.queues())

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="beat", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends the beats; none comes after it."""
        self._over.set()
        if self._thread is not None:
            self._thread.join()

    def tick(self) -> None:
        """The event loop has turned."""
        self._ticked = time.monotonic()

    def _mourn(self, lost: Sequence[str]) -> None:
        """Tells the runs of dead workers."""
        self.hook.on_workers_lost(lost)
        for info in self.queue.runs() if lost else ():
            for name in lost:
                self.queue.note(info.run, WorkerLost(worker=name))

    def _run(self) -> None:
        trouble = ""
        quiet_until = time.monotonic() + LEASE  # nobody reaps in the first lease after a start, or after Redis failed
        while not self._over.wait(BEAT):
            if time.monotonic() - self._ticked > self.deadline:
                continue
            try:
                if not self.beat():
                    self.hook.on_lease_lost()
                self.asked_to_stop = self.queue.is_asked_to_stop(self.incarnation)
                if time.monotonic() > quiet_until:
                    self._mourn(self.queue.reap())
            except redis.RedisError:
                quiet_until = time.monotonic() + LEASE
            except Exception as error:  # without the thread, nobody beats or reaps any more
                if trouble != told(error):
                    trouble = told(error)
                    _log.exception("worker %s: a heartbeat failed; the next one is in %s s", self.incarnation, BEAT)
