"""The registry of runs: processes of a fleet hand runs over, take them on, refuse or pause them."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import msgspec

from chainette.core.run_settings import RunSettings
from chainette.errors import InputError, RunError
from chainette.fleet.protocol.member_fields import Member
from chainette.fleet.protocol.queue_values import LEASE
from chainette.fleet.protocol.run_fields import RunInfo
from chainette.fleet.protocol.seals import Purpose, Seals, Unsealed, seals_of
from chainette.fleet.redis.answer_lookups import Lookups
from chainette.fleet.redis.fleet_view import Fleet, LiveRun, known_runs, live_members, look, run_info
from chainette.fleet.redis.script_calls import Scripts

if TYPE_CHECKING:
    import redis

__all__ = ["Board", "Order", "Role", "inside", "relative_runs"]


class Role(StrEnum):
    """The part of a service in a run."""

    #: admits its rows
    COORDINATOR = "coordinator"
    #: writes its results
    SINK = "sink"


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """A run as it is handed over to services. Its paths are relative, since each service has its own roots."""

    chain_ref: str
    #: Digest of the chain's files, and their names below the chain root.
    digest: str
    files: tuple[str, ...] = ()
    #: Values of its parameters, and marks of its nodes (io/rundir/chain_marks.py); a service compares both with its own.
    parameters: dict[str, Any] = {}
    marks: dict[str, dict[str, str]] = {}
    #: Files, folders and patterns below the sink's and the coordinator's --inputs-root.
    inputs: tuple[str, ...]
    #: Below their --runs-root.
    directory: str
    #: Earlier runs to take answers from, below the sink's --runs-root; in its options there are none.
    reuse: tuple[str, ...] = ()
    options: RunSettings = RunSettings()
    #: The steps to recompute, with all that depend on them.
    from_steps: tuple[str, ...] = ()
    #: Rises with each order of a run, so that none is followed twice or after a later one; and when it was given, in seconds
    #: since 1970.
    number: int = 0
    at: int = msgspec.field(default_factory=lambda: int(time.time()))
    #: Identifies the order; and the fleet's seal over it (`Board.sealed`), "" without a key.
    id: str = msgspec.field(default_factory=lambda: secrets.token_hex(8))
    seal: str = ""

    @classmethod
    def of(cls, info: RunInfo) -> Order | None:
        """The order of a run; None if it was not handed over.

        Raises:
            RunError: it is none.
        """
        if not info.order:
            return None
        try:
            return msgspec.json.decode(info.order, type=cls)
        except (ValueError, RecursionError, InputError) as error:
            raise RunError(f"run {info.run}: its order in Redis does not decode: {error}") from error

    def after(self, number: int) -> Order:
        """The same order as a new one, which counts after `number` and this one."""
        return msgspec.structs.replace(self, number=max(self.number, number) + 1, at=int(time.time()), id=secrets.token_hex(8))

    def followed(self) -> Order:
        """The order of a run that has begun to carry it out: there is nothing left to recompute."""
        return msgspec.structs.replace(self, from_steps=())

    @property
    def fields(self) -> dict[str, str | int | float]:
        """The order as fields of the run's record, with copies of those that workers read."""
        return RunInfo.words(
            order=self,
            chain_ref=self.chain_ref,
            digest=self.digest,
            files=self.files,
            parameters=self.parameters,
            marks=self.marks,
        )


class Board:
    """Runs and the processes that serve them, over one connection pool. Thread-safe.

    Raises (every call):
        redis.RedisError: Redis did not answer.
    """

    def __init__(self, connection: redis.Redis, seals: Seals | None = None) -> None:
        self._redis = connection
        self._seals = seals_of() if seals is None else seals
        self._scripts = Scripts(connection)

    @property
    def lookups(self) -> Lookups:
        """Questions for the answers of earlier runs, over the same connections."""
        return Lookups(self._redis, self._seals)

    def runs(self) -> list[RunInfo]:
        """Runs that are not closed, also those that no sink has begun."""
        return known_runs(self._redis)

    def run(self, run: str) -> RunInfo | None:
        """One of them."""
        return run_info(self._redis, run)

    def live(self, run: str) -> LiveRun | None:
        """A run with its queues; None if it is closed."""
        return next(iter(look(self._redis, run).runs), None)

    def fleet(self) -> Fleet:
        """All live members, and every run with its queues."""
        return look(self._redis)

    def members(self) -> dict[str, Member]:
        """Workers and services whose lease holds."""
        return live_members(self._redis)

    def services(self, role: Role) -> dict[str, Member]:
        """Those members that serve a role."""
        return {name: member for name, member in self.members().items() if member.kind == role}

    def beat(self, me: str, fields: Mapping[str, str | int | float]) -> None:
        """Renews the lease of a service."""
        self._scripts.call("attend", me=me, lease=LEASE, fields=dict(fields))

    def leave(self, me: str) -> None:
        """Signs a service off."""
        self._scripts.call("leave", incarnation=me)

    def reap(self) -> None:
        """Removes services and workers whose lease has ended; their units go to others."""
        self._scripts.call("reap")

    def ask(self, run: str, order: Order) -> None:
        """Hands a run over.

        Raises:
            RunError: a run with this id is live.
        """
        if self._scripts.call("ask", run=run, fields=self.sealed(run, order).fields) != b"OK":
            raise RunError(f"run {run} is live already; `chainette status {run}` shows it")

    def order(self, info: RunInfo) -> Order | None:
        """The order of a run; None if it was not handed over.

        Raises:
            RunError: it is none, or it was sealed with another key.
        """
        order = Order.of(info)
        if order is None or (not order.seal and not self._seals.fingerprint):
            return order
        if order.seal != self._seal_of(info.run, order):
            raise Unsealed(Purpose.ORDER)
        return order

    def sealed(self, run: str, order: Order) -> Order:
        """The order with the fleet's seal; as it is if there is no key."""
        return msgspec.structs.replace(order, seal=self._seal_of(run, order))

    def _seal_of(self, run: str, order: Order) -> str:
        body = msgspec.json.encode(msgspec.structs.replace(order, seal=""))
        sealed = self._seals.seal(run, 0, Purpose.ORDER, order.id, body)
        return sealed[: len(sealed) - len(body)].hex()

    def revive(self, run: str) -> bool:
        """Lets a run go on if it was called cancelled without the right to do so; False if `chainette cancel` did it."""
        words = [self._seals.seal(run, 0, Purpose.CANCEL, "", b"1").hex()] if self._seals.fingerprint else []
        return bool(self._scripts.call("revive", run=run, words=words) == b"OK")

    def take(self, run: str, role: Role, me: str) -> bool:
        """Takes a role; False if a live process has it, or if the run is closed."""
        return bool(self._scripts.call("take_role", run=run, role=role, me=me) == b"OK")

    def drop(self, run: str, role: Role, me: str) -> None:
        """Gives a role back."""
        self._scripts.call("drop", run=run, role=role, me=me)

    def refuse(self, run: str, me: str, reason: str) -> None:
        """Records the reason why a worker or a service does not serve a run; others may serve it."""
        self.say(run, {f"refused:{me}": reason[:2000]})

    def hold(self, run: str, reason: str) -> None:
        """Pauses a run that cannot go on, until somebody unpauses it."""
        self._scripts.call("state", run=run, state="paused", reason=reason[:2000], word="")

    def say(self, run: str, fields: Mapping[str, str | int | float]) -> None:
        """Writes fields of a run's record; nothing if the run is closed."""
        self._scripts.call("say", run=run, fields=dict(fields))


def relative_runs(directories: Sequence[str]) -> tuple[str, ...]:
    """The earlier runs of an order, below the current folder.

    Raises:
        RunError: one is elsewhere.
    """
    return tuple(inside(os.path.relpath(directory), "the earlier run") for directory in directories)


def inside(relative: str, what: str) -> str:
    """A path a service may be given.

    Raises:
        RunError: it is absolute, or leads out of the root.
    """
    path = PurePosixPath(relative)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise RunError(f"{what} {relative!r}: services take relative paths below their roots only")
    return str(path)
