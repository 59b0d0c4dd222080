"""The loop of the coordinator service and the sink service: many runs at once, each in its own thread.

A run whose disk is full or whose chain is missing is paused, with the reason in `chainette status`; other runs continue.
If a service is killed, another one takes over its runs when its lease expires.
"""

from __future__ import annotations

import logging
import secrets
import socket
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Protocol

import msgspec
import redis

from chainette.core.chain import Chain
from chainette.core.plan import Plan
from chainette.core.usercode.confined import ChainClaim, ClaimRefused, engine_file
from chainette.core.usercode.loading import LoadedChain, load_chain
from chainette.core.usercode.parameters import Offered, agreed, set_flags, text_of
from chainette.errors import ChainetteError, ParameterError, RunCancelled, RunDirectoryInUse, RunStopped
from chainette.fleet.protocol.queue_values import LEASE
from chainette.fleet.protocol.run_fields import RunInfo
from chainette.fleet.protocol.seals import Unsealed
from chainette.fleet.redis.connect import connect, is_passing
from chainette.fleet.redis.redis_queue import FleetQueue
from chainette.fleet.redis.run_registry import Board, Order, Role, inside
from chainette.io.inputs.many_files import expand
from chainette.io.rundir.chain_marks import differences, marks_of, other_nodes
from chainette.io.rundir.run_state import RunState
from chainette.run.options import RunOptions
from chainette.run.planning import compile_plan
from chainette_workers.metrics.address import MetricsEndpoint
from chainette_workers.metrics.catalogue import ProcessKind
from chainette_workers.metrics.watching import Watch, watching
from chainette_workers.runtime import say, warn_of_eviction
from chainette_workers.sink.service_lease import ServiceLease

__all__ = ["Duty", "Elsewhere", "Handed", "Places", "Service", "Stopping", "same_chain", "serve"]

_log = logging.getLogger("chainette")

#: The log message of a service that has completed its work for a run.
_DONE = {Role.COORDINATOR: "all its rows are admitted", Role.SINK: "done"}

#: Seconds between two looks at the runs, and until a service looks again at a run that it refused.
_LOOK, _AGAIN = 0.5, 5.0


class Elsewhere(ChainetteError):
    """This service cannot serve the run, but another one may be able to."""


class Stopping(RunStopped):
    """The service ends, or the run has a new order. Units in flight are not affected."""


@dataclass(frozen=True)
class Places:
    """The roots below which a service resolves the relative paths of a run."""

    chains: Path
    inputs: Path
    runs: Path
    #: The values that parameters of chains may have. Values from Redis are only compared with these, and never used.
    parameters: Offered = field(default_factory=dict)
    #: The modules that a run may name as its chain.
    modules: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"chains below {self.chains}, inputs below {self.inputs}, runs below {self.runs}"

    def input(self, order: Order) -> list[Path]:
        """The input files of a run.

        Raises:
            Elsewhere: a path leads out of the root.
            InputError: a folder or a pattern has no files.
        """
        files = [file for source in order.inputs for file in expand(self._below(self.inputs, source, "input"))]
        return [self._below(self.inputs, str(file.relative_to(self.inputs.resolve())), "input") for file in files]

    def directory(self, order: Order) -> Path:
        """The directory of a run.

        Raises:
            Elsewhere: its path leads out of the root.
        """
        return self._below(self.runs, order.directory, "directory")

    def options(self, order: Order) -> RunOptions:
        """The settings of a run, with the paths of its engine file and earlier runs on this machine.

        Raises:
            LoadError: the file is not an engine file below the root.
            Elsewhere: an earlier run leads out of the root.
        """
        file = order.options.engines_file
        here = None if file is None else str(engine_file(self.chains, file))
        reuse = tuple(str(self._below(self.runs, path, "the earlier run")) for path in order.reuse)
        return RunOptions(**asdict(replace(order.options, engines_file=here, reuse=reuse)))

    def _below(self, root: Path, relative: str, what: str) -> Path:
        path = (root / inside(relative, what)).resolve()
        if not path.is_relative_to(root.resolve()):
            raise Elsewhere(f"{what} {relative!r} leads out of {root} here")
        return path


@dataclass(frozen=True)
class Handed:
    """An enqueued run, with everything that a service needs for it."""

    info: RunInfo
    order: Order
    #: The name of the service.
    me: str
    #: Set when the service must release the run.
    stop: threading.Event
    watch: Watch = field(default_factory=Watch)


class Duty(Protocol):
    """The work of a service for one run."""

    @property
    def role(self) -> Role: ...

    @property
    def places(self) -> Places: ...

    def wants(self, handed: Handed) -> bool:
        """Whether there is work to do.

        Raises:
            Elsewhere: this service cannot do the work.
        """
        ...

    def serve(self, handed: Handed, queue: FleetQueue, board: Board) -> None:
        """Serves a run until its work is done or `handed.stop` is set.

        Raises:
            Elsewhere: this service cannot do the work, but others may be able to.
            ChainetteError: the run cannot continue.
        """
        ...


def same_chain(order: Order, places: Places, state: RunState | None = None) -> tuple[LoadedChain, Plan]:
    """The chain from the files of this machine, and its plan; `state` is set if the run has begun.

    Raises:
        Elsewhere: the chain is missing here, or differs from the one that was enqueued.
    """
    root, offered = places.chains, {name: [*texts] for name, texts in places.parameters.items()}
    for name, value in (state.parameters if state is not None else {}).items():
        offered.setdefault(name, []).append(text_of(value))
    try:
        claim = ChainClaim(order.digest, order.files, places.modules)
        loaded = load_chain(order.chain_ref, root, agreed(order.parameters, offered), claim)
    except ClaimRefused as error:
        raise Elsewhere(f"{order.chain_ref} {error}") from error
    except ParameterError as error:
        raise Elsewhere(f"{error}; start it with {set_flags(order.parameters)}") from error
    except ChainetteError as error:
        raise Elsewhere(f"{order.chain_ref} cannot be loaded here: {error}") from error
    if loaded.digest != order.digest:
        raise Elsewhere(
            f"{order.chain_ref} has digest {loaded.digest[:12]} below {root}, but {order.digest[:12]} where it was enqueued"
        )
    size = order.options.batch_size if state is None else state.run.settings.get("batch_size")
    options = replace(places.options(order), batch_size=size, parameters=loaded.parameters)
    return loaded, _same_nodes(order, loaded.chain, options)


def _same_nodes(order: Order, chain: Chain, options: RunOptions) -> Plan:
    """The plan of a chain.

    Raises:
        Elsewhere: the chain does not compile here, or to other nodes than where it was enqueued.
    """
    try:
        plan = compile_plan(chain, options)
    except ChainetteError as error:
        raise Elsewhere(f"{order.chain_ref} does not fit together here: {error}") from error
    found = differences(marks_of(plan), order.marks)
    if found:
        raise Elsewhere(f"{order.chain_ref} {other_nodes(found)}")
    return plan


def serve(
    url: str | None, duty: Duty, stopping: threading.Event, only: str | None = None, metrics: MetricsEndpoint | None = None
) -> None:
    """Serves all runs that are enqueued in a Redis, or only the run `only`, until `stopping` is set.

    Raises:
        RunError: Redis does not answer at the start. Later, the service waits for it.
    """
    part = ProcessKind.SINK if duty.role is Role.SINK else ProcessKind.FLEET
    with connect(url, timeout=5.0) as connection, watching(metrics, connection, part) as watch:
        warn_of_eviction(connection)
        Service(Board(connection), FleetQueue(connection), duty, only, watch=watch).run(stopping)


@dataclass
class _Turn:
    thread: threading.Thread
    handed: Handed

    def mind(self, order: Order | None) -> None:
        """Ends the turn if a new order has other settings."""
        known = self.handed.order
        if order is None or order.number < known.number:
            return  # somebody restored an old order
        if msgspec.structs.replace(order, seal=known.seal) not in (known, known.followed()):
            self.handed.stop.set()


@dataclass
class Service:
    """The loop of a service."""

    board: Board
    queue: FleetQueue
    duty: Duty
    #: The only run that it serves; None means all runs.
    only: str | None = None
    me: str = ""
    watch: Watch = field(default_factory=Watch)
    _turns: dict[str, _Turn] = field(default_factory=dict)
    #: Run -> the time when it may be looked at again.
    _resting: dict[str, float] = field(default_factory=dict)
    #: No lease is reaped before this time, which is set at the start and after an outage.
    _quiet_until: float = field(default_factory=lambda: time.monotonic() + LEASE)

    def __post_init__(self) -> None:
        self.me = self.me or f"{self.duty.role}-{secrets.token_hex(6)}"

    def run(self, stopping: threading.Event) -> None:
        with ServiceLease(self.board, self.me, self.duty.role, self.watch.words) as lease:
            say(f"{self.me}: serving {self.duty.places}")
            while not stopping.is_set():
                lease.renew()
                self._look()
                stopping.wait(_LOOK)
            self._let_go(lease.renew)

    def _look(self) -> None:
        """Takes on new runs, and releases those that have a new order."""
        try:
            runs = {info.run: info for info in self.board.runs() if self.only in (None, info.run)}
            if time.monotonic() > self._quiet_until:
                self.board.reap()
        except redis.RedisError as error:
            if not is_passing(error):
                raise
            self._quiet_until = time.monotonic() + LEASE  # other services could not renew their leases either
            return
        self._turns = {run: turn for run, turn in self._turns.items() if turn.thread.is_alive()}
        for run, info in runs.items():
            if run in self._turns:
                with suppress(ChainetteError):  # an order without a valid seal, or that cannot be decoded, changes nothing
                    self._turns[run].mind(self.board.order(info))
            elif self._resting.get(run, 0.0) <= time.monotonic():
                self._guarded(info, lambda info=info: self._consider(info))  # type: ignore[misc]

    def _consider(self, info: RunInfo) -> None:
        try:
            order = self.board.order(info)
        except Unsealed as error:
            raise Elsewhere(f"its order cannot be served here: {error}") from error
        if order is None:
            return
        handed = Handed(info, order, self.me, threading.Event(), self.watch)
        if self.duty.wants(handed) and self.board.take(info.run, self.duty.role, self.me):
            thread = threading.Thread(target=self._serve, args=(handed,), name=info.run, daemon=True)
            self._turns[info.run] = _Turn(thread, handed)
            thread.start()

    def _serve(self, handed: Handed) -> None:
        run = handed.info.run
        _log.info("run %s: taken on", run)
        self._guarded(handed.info, lambda: self._do(handed))
        self.watch.hook.forget_run(run)
        with suppress(redis.RedisError):
            self.board.drop(run, self.duty.role, self.me)

    def _do(self, handed: Handed) -> None:
        self.duty.serve(handed, self.queue, self.board)
        _log.info("run %s: %s", handed.info.run, _DONE[self.duty.role])

    def _guarded(self, info: RunInfo, work: Callable[[], None]) -> None:
        """Keeps errors of a run from affecting other runs: the run is left to other services, or paused."""
        try:
            work()
        except Stopping as error:
            _log.info("run %s: released: %s", info.run, error)
        except RunCancelled as error:
            _log.info("run %s: %s", info.run, error)
        except (Elsewhere, RunDirectoryInUse) as error:
            self._resting[info.run] = time.monotonic() + _AGAIN
            self._tell(info, str(error), lambda words: self.board.refuse(info.run, self.me, words))
        except redis.RedisError as error:
            self._resting[info.run] = time.monotonic() + _AGAIN
            _log.warning("run %s: Redis: %s", info.run, error)
        except ChainetteError as error:
            self._tell(info, str(error), lambda words: self.board.hold(info.run, words))
        except Exception as error:
            _log.error("%s", traceback.format_exc())
            words = f"internal error: {type(error).__name__}: {error}"
            self._tell(info, words, lambda words: self.board.hold(info.run, words))

    def _tell(self, info: RunInfo, reason: str, write: Callable[[str], None]) -> None:
        """Writes the reason to the log of the service, and to the run in Redis with `write`."""
        words = f"{self.duty.role} on {socket.gethostname()}: {reason}"
        _log.warning("run %s: %s", info.run, words)
        with suppress(redis.RedisError):
            write(words)

    def _let_go(self, meanwhile: Callable[[], None]) -> None:
        """Ends all turns, so that other services can take over the runs."""
        for turn in self._turns.values():
            turn.handed.stop.set()
        for turn in self._turns.values():
            while turn.thread.is_alive():
                turn.thread.join(_LOOK)
                meanwhile()
