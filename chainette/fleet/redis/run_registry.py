"""What processes of a fleet tell each other about runs: handed over, taken on, refused, held."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from chainette.errors import RunError
from chainette.fleet.protocol.states import LEASE, RunInfo
from chainette.fleet.redis import census
from chainette.fleet.redis.calls import Scripts
from chainette.fleet.redis.snapshot import Snapshot, take_snapshot

if TYPE_CHECKING:
    import redis

__all__ = ["Board", "Options", "Order", "Role", "chain_fields", "inside"]


class Role(StrEnum):
    """What a service does in a run."""

    #: admits its rows
    COORDINATOR = "coordinator"
    #: writes what comes back
    SINK = "sink"


class Options(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What an order may say of `RunOptions`, by the same names."""

    seed: int = 0
    limit: int | None = None
    batch_size: int | None = None
    format: Literal["jsonl", "parquet", "csv"] = "jsonl"
    max_rows_per_file: int = 100_000
    flattened: bool = True
    key: str | None = None
    usage: bool = False
    simulate: bool = False
    engines_file: str | None = None
    max_reject_rate: float | None = None
    engine_patience: float = 600.0
    window: int | None = None


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """A run as it is handed over to services. Its paths are relative: each service has roots of its own."""

    chain_ref: str
    #: What the chain's files must be.
    digest: str
    #: What the values of its parameters must be, and what its nodes (io/rundir/likeness.py).
    parameters: dict[str, Any] = {}
    marks: dict[str, dict[str, str]] = {}
    #: Files, folders and patterns below the sink's and the coordinator's --inputs-root.
    inputs: tuple[str, ...]
    #: Below their --runs-root.
    directory: str
    options: Options = Options()
    #: Steps that are to be computed anew, with all that depend on them.
    from_steps: tuple[str, ...] = ()

    @classmethod
    def of(cls, info: RunInfo) -> Order | None:
        """The order of a run; None where it was not handed over.

        Raises:
            RunError: it is none.
        """
        text = info.fields.get("order")
        if not text:
            return None
        try:
            return msgspec.json.decode(text, type=cls)
        except msgspec.MsgspecError as error:
            raise RunError(f"run {info.run}: its order in Redis does not decode: {error}") from error

    @property
    def fields(self) -> dict[str, str]:
        """As it stands at the run."""
        about = {"chain_ref": self.chain_ref, "digest": self.digest}
        return {"order": msgspec.json.encode(self).decode(), **about, **chain_fields(self.parameters, self.marks)}


class Board:
    """Runs and those who serve them, over one connection pool. Thread-safe.

    Raises (every call):
        redis.RedisError: Redis did not answer.
    """

    def __init__(self, connection: redis.Redis) -> None:
        self._redis = connection
        self._scripts = Scripts(connection)

    def runs(self) -> list[RunInfo]:
        """Runs that are not closed, those among them that no sink has begun."""
        return census.all_runs(self._redis)

    def run(self, run: str) -> RunInfo | None:
        """One of them."""
        return census.run_info(self._redis, run)

    def snapshot(self, run: str) -> Snapshot | None:
        """What is in its queues, and who lives; None where it is closed."""
        info = self.run(run)
        return None if info is None else take_snapshot(self._redis, info)

    def members(self) -> dict[str, dict[str, str]]:
        """What workers and services say about themselves, those whose lease holds."""
        return census.members(self._redis)

    def services(self, role: Role) -> dict[str, dict[str, str]]:
        """Those members that serve a role."""
        return {name: words for name, words in self.members().items() if words.get("kind") == role}

    def beat(self, me: str, fields: Mapping[str, str | int | float]) -> None:
        """Says that a service lives."""
        self._scripts.call("attend", me=me, lease=LEASE, fields=dict(fields))

    def leave(self, me: str) -> None:
        """Signs a service off."""
        self._scripts.call("leave", incarnation=me)

    def reap(self) -> None:
        """Forgets services and workers whose lease is over; units of theirs go to others."""
        self._scripts.call("reap")

    def ask(self, run: str, order: Order) -> None:
        """Hands a run over.

        Raises:
            RunError: there is such a run.
        """
        if self._scripts.call("ask", run=run, fields=order.fields) != b"OK":
            raise RunError(f"run {run} is live already; `chainette status {run}` shows it")

    def take(self, run: str, role: Role, me: str) -> bool:
        """Takes a role; False where somebody that lives has it, or the run is closed."""
        return bool(self._scripts.call("take", run=run, role=role, me=me) == b"OK")

    def drop(self, run: str, role: Role, me: str) -> None:
        """Gives a role back."""
        self._scripts.call("drop", run=run, role=role, me=me)

    def refuse(self, run: str, me: str, reason: str) -> None:
        """Says why a worker or a service takes nothing of a run, which others may."""
        self.say(run, {f"refused:{me}": reason[:2000]})

    def hold(self, run: str, reason: str) -> None:
        """Pauses a run that cannot go on, until somebody unpauses it."""
        self._scripts.call("state", run=run, state="paused", reason=reason[:2000])

    def say(self, run: str, fields: Mapping[str, str | int]) -> None:
        """Writes something down at a run that others may want to know; nothing where it is closed."""
        self._scripts.call("say", run=run, fields=dict(fields))


def chain_fields(parameters: Mapping[str, Any], marks: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """What workers must know of a run's chain beside its files, as it stands at the run."""
    return {"parameters": msgspec.json.encode(parameters).decode(), "marks": msgspec.json.encode(marks).decode()}


def inside(relative: str, what: str) -> str:
    """A path that a service may be given.

    Raises:
        RunError: it leads out of the root, or says where it is by itself.
    """
    path = PurePosixPath(relative)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise RunError(f"{what} {relative!r}: services take relative paths below their roots only")
    return str(path)
