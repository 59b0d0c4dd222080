"""The sink as a service: writes the directories of enqueued runs, below its own root."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import ClassVar

from chainette.core.plan import Plan
from chainette.core.run_settings import FLAGS, RESUMABLE
from chainette.errors import RunDirectoryError
from chainette.fleet.redis.redis_queue import FleetQueue
from chainette.fleet.redis.run_registry import Board, Order, Role
from chainette.io.rundir.directory_swap import finish_swap
from chainette.io.rundir.open import read_state
from chainette.io.rundir.paths import RunDir
from chainette.io.rundir.run_state import RunState, Status
from chainette.run import executor
from chainette.run.session import Session
from chainette.utils.plurals import counted
from chainette_workers.service.service import Elsewhere, Handed, Places, Stopping, same_chain
from chainette_workers.sink.admission import Admitting
from chainette_workers.sink.drive import DriveLoop
from chainette_workers.sink.redis_fleet import take_out
from chainette_workers.sink.sink import Sink

__all__ = ["SinkDuty"]

#: The seconds within which an enqueued run must begin.
_BEGINS_WITHIN = 7 * 86400


@dataclass(frozen=True)
class SinkDuty:
    """Writes one run, to a new directory or to the one of an earlier sink."""

    places: Places
    #: The URL of its Redis, without the password; a resume by hand looks for the run there.
    redis: str
    role: ClassVar[Role] = Role.SINK

    def wants(self, handed: Handed) -> bool:
        info = handed.info
        directory = self._directory(handed)
        if info.epoch >= 0 and not directory.exists():
            raise Elsewhere(f"there is no run in {handed.order.directory} below {self.places.runs}")
        return not (info.state == "paused" and info.reason)

    def serve(self, handed: Handed, queue: FleetQueue, board: Board) -> None:
        info, order = handed.info, handed.order
        if info.state == "cancelled" and board.revive(info.run):
            return  # the service will look at it again
        directory = self._directory(handed)
        state = self._state(handed, directory)
        if (state is None and info.state == "cancelled") or (state is not None and _is_closed(state, order)):
            take_out(queue, info)
            return
        if (due := _due(order, state)) != order:
            order = due
            board.say(info.run, board.sealed(info.run, order).fields)
        loaded, plan = same_chain(order, self.places, state)
        drive = _Served(replace(handed, order=order), queue, board, {"redis": self.redis})
        settings = self.places.options(order)
        if state is None:
            executor.run(
                plan,
                self.places.input(order),
                directory.path,
                run_id=info.run,
                chain_ref=loaded.reference,
                chain_root=str(self.places.chains.resolve()),
                chain_claim=loaded.claim,
                parameters=loaded.parameters,
                drive=drive,
                progress=False,
                **{name: getattr(settings, name) for name in FLAGS},
            )
        else:
            executor.resume(
                directory.path,
                plan,
                from_step=order.from_steps,
                drive=drive,
                chain_claim=loaded.claim,
                parameters=loaded.parameters,
                progress=False,
                **{name: getattr(settings, name) for name in RESUMABLE},
            )

    def _directory(self, handed: Handed) -> RunDir:
        directory = RunDir(self.places.directory(handed.order))
        finish_swap(directory)
        return directory

    def _state(self, handed: Handed, directory: RunDir) -> RunState | None:
        """The state of the run in the directory; None if there is none yet.

        Raises:
            RunDirectoryError: it holds another run.
        """
        if not directory.exists() or not directory.log.stat().st_size:
            return None
        state, _ = read_state(directory)
        if state.run.run_id != handed.info.run:
            if handed.info.state == "cancelled":
                return None  # that run never began
            raise RunDirectoryError(f"{handed.order.directory} holds run {state.run.run_id}; name another directory")
        return state


def _due(order: Order, state: RunState | None) -> Order:
    """The part of an order that a sink still has to carry out; `state` is that of the run's directory, if it exists.

    Raises:
        Elsewhere: the order in Redis is outdated: its run was deleted, or a later order was carried out.
    """
    if state is None:
        if (age := time.time() - order.at) > _BEGINS_WITHIN:
            raise Elsewhere(
                f"its order is {counted(age / 86400, 'day')} old and there is no run in {order.directory}; enqueue it again"
            )
        return order
    if order.number < state.order:
        raise Elsewhere(
            f"its order in Redis is number {order.number}, but {order.directory} has already followed number {state.order}; "
            "continue with `chainette resume` and that directory"
        )
    return order.followed() if order.number == state.order else order


def _is_closed(state: RunState, order: Order) -> bool:
    """Whether the run is over according to its log."""
    return state.status is Status.CANCELLED or (
        state.status is Status.FINISHED and not (order.from_steps and order.number > state.order)
    )


@dataclass(frozen=True)
class _Served:
    """The `drive` of RunOptions: moves the results of a session until the service releases the run."""

    handed: Handed
    queue: FleetQueue
    board: Board
    way: dict[str, str]
    attaches: ClassVar[bool] = True

    def check(self, _plan: Plan, /) -> None:
        """Checks nothing, because Redis has just answered."""

    def __call__(self, session: Session) -> None:
        run = self.handed.info.run
        order = self.board.sealed(run, self.handed.order.followed())
        fields = {**order.fields, Role.SINK.value: self.handed.me}
        DriveLoop(
            self.handed.watch.over(session),
            self.queue,
            self.board,
            fields,
            coordinated=_elsewhere,
            order=order.number,
            tend=self._tend,
        ).run()

    def clean(self, run: str) -> None:
        """Does nothing (see `options.Drive`): the service itself closes runs that are over."""

    def _tend(self, _moved: bool) -> None:
        if self.handed.stop.is_set():
            raise Stopping("the sink stops, or the run has a new order")


class _Admitted:
    """Admits nothing: a coordinator service admits the rows of this run."""

    finished = True

    def step(self) -> bool:
        return False


def _elsewhere(_session: Session, _sink: Sink) -> Admitting:
    return _Admitted()
