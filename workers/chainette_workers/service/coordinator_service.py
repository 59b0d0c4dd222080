"""The coordinator as a service: admits the rows of enqueued runs.

It reads the log up to the start of the epoch. That part never changes, so several coordinators always agree.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import redis

from chainette.fleet.protocol.keys import RunKeys
from chainette.fleet.protocol.messages import BadMessage
from chainette.fleet.protocol.queue_values import Lost
from chainette.fleet.redis.connect import is_passing
from chainette.fleet.redis.redis_queue import FleetQueue
from chainette.fleet.redis.run_registry import Board, Role
from chainette.io.inputs.roots import Root
from chainette.io.rundir.durable_rows import rows_of_root
from chainette.io.rundir.open import read_state
from chainette.io.rundir.paths import RunDir
from chainette.io.rundir.run_state import RunState
from chainette.run.coordinator import Coordinator, read_for_live_roots
from chainette.run.observed_run import Observed, observe
from chainette.run.session import roots_of
from chainette.run.window import window_for
from chainette_workers.service.service import Elsewhere, Handed, Places, same_chain

__all__ = ["CoordinatorDuty"]

#: Seconds between two tries while the window is full, and between two checks that the run still exists.
_IDLE, _LOOK = 0.05, 1.0


@dataclass(frozen=True)
class CoordinatorDuty:
    """Admits the input of a run, from its cursor on."""

    places: Places
    role: ClassVar[Role] = Role.COORDINATOR

    def wants(self, handed: Handed) -> bool:
        info = handed.info
        if info.epoch < 0 or info.state == "cancelled" or info.total is not None or handed.order.from_steps:
            return False  # there is nothing to admit, at least until the sink begins another epoch
        if not self._directory(handed).exists():
            raise Elsewhere(f"there is no run in {handed.order.directory} below {self.places.runs}")
        return not (info.state == "paused" and info.reason)

    def serve(self, handed: Handed, queue: FleetQueue, board: Board) -> None:
        info, order = handed.info, handed.order
        directory = self._directory(handed)
        _, plan = same_chain(order, self.places, read_state(directory)[0])
        try:
            read = read_for_live_roots(queue, RunKeys(info.run, info.epoch))  # before the log is read, because it keeps growing
        except (Lost, BadMessage):
            return  # a new epoch, now or soon
        observed = observe(directory, plan, self.places.input(order), read)
        if observed.state.run.run_id != info.run or observed.state.epoch < info.epoch:
            raise Elsewhere(f"the log in {order.directory} is not of run {info.run}, epoch {info.epoch}")
        coordinator = _coordinator(queue, RunKeys(info.run, info.epoch), directory, observed, order.options.window)
        looked_at = time.monotonic()
        while not (coordinator.finished or handed.stop.is_set()):
            try:
                if coordinator.step():
                    continue
                if time.monotonic() > looked_at + _LOOK:
                    looked_at = time.monotonic()
                    if _is_over(board, info.run):
                        return
            except Lost:
                return  # a new epoch, or the end
            except redis.RedisError as error:
                if not is_passing(error):
                    raise
            handed.stop.wait(_IDLE)

    def _directory(self, handed: Handed) -> RunDir:
        return RunDir(self.places.directory(handed.order))


def _is_over(board: Board, run: str) -> bool:
    info = board.run(run)
    return info is None or info.state == "cancelled" or bool(info.reason)


def _coordinator(queue: FleetQueue, keys: RunKeys, directory: RunDir, observed: Observed, window: int | None) -> Coordinator:
    plan, state = observed.plan, observed.state
    roots = roots_of(plan, observed.source, observed.options, state.roots.starts)

    def pending(last: int) -> Iterator[Root]:
        # roots after the last one that this epoch admitted are complete only if they were so when it began
        return roots.pending(lambda root: root <= last or state.roots.is_done(root))

    now = RunState()

    def admits(root: int) -> bool:
        nonlocal now
        if state.accepted is None:
            return True
        now, _ = read_state(directory, now)  # the sink keeps writing; all other values here are from the start of the epoch
        return now.accepted is not None and now.accepted.admits(root, plan.batch_size, window_for(0, window))

    return Coordinator(queue, keys, plan, pending, partial(rows_of_root, directory, plan, state), admits=admits)
