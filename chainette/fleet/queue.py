"""The leased queue: RQ's data model, with every transition one fenced Lua script (PROTOCOL).

Each call may be repeated after a lost reply. A claim holds while its token stands in the job's hash, its epoch
is the run's and the run was not cancelled; a commit that does not hold changes nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from importlib.resources import files
from typing import TYPE_CHECKING, Any, cast

import msgspec

from chainette.core.plan import Plan
from chainette.fleet.keys import RUNS, WORKERS, RunKeys, worker
from chainette.fleet.messages import MAX_BYTES, Admission, BadMessage, Result, RootRecord, open_join, open_message
from chainette.io.events import AnyEvent, Event, WorkerRefused
from chainette.io.log import encode_line, parse_line
from chainette.records import Effects, Outcome, Rejection, Scope, Unit, encode

if TYPE_CHECKING:
    import redis

__all__ = ["ANCHOR", "LEASE", "Admitted", "Claim", "Drain", "Entry", "FleetQueue", "Lost", "Progress", "RunInfo", "Turn"]

#: Seconds that a worker may be silent before its units are given to others.
LEASE = 6.0

#: Stream id of the anchor that every epoch's stream begins with.
ANCHOR = "0-1"

#: The one function that a job may name. It is never imported: workers know what a job means.
FUNCTION = "chainette.process"

_pack = msgspec.msgpack.Encoder().encode

#: What a job's hash says under `data`: function, no instance, (run, epoch, node, root, part), no keywords.
_arguments = msgspec.json.Decoder(tuple[str, None, tuple[str, int, str, int, str], dict[str, None]])


class Lost(Exception):
    """A claim, an epoch or an owner that no longer holds: what was asked for did not happen."""


class Admitted(StrEnum):
    """What became of an admission."""

    #: the root is in
    OK = "OK"
    #: no credit: the window is full
    FULL = "FULL"
    #: the cursor is elsewhere: another coordinator admitted, or an earlier call of this one did
    BEHIND = "BEHIND"
    #: the run is held
    PAUSED = "paused"
    #: the run was given up
    CANCELLED = "cancelled"


class Turn(StrEnum):
    """How a claimed unit is to be taken."""

    #: beside others
    JOB = "JOB"
    #: alone: workers died with it in their hands
    SOLO = "SOLO"
    #: not at all: it killed a worker while it ran alone, so it is cut in two, or its row rejected
    MEND = "MEND"


class Drain:
    """A unit waits that must run alone: finish what is in hand, then claim again."""


@dataclass(frozen=True)
class Claim:
    """A unit in a worker's hands."""

    job: str
    token: str
    run: str
    epoch: int
    unit: Unit
    turn: Turn = Turn.JOB


@dataclass(frozen=True)
class Entry:
    """One entry of a run's stream."""

    id: str
    token: str
    message: Result | Admission
    root: int
    #: Whether the root is complete with it.
    done: bool = False


@dataclass(frozen=True)
class Progress:
    """How far a run's admission is."""

    #: Roots admitted in this epoch.
    cursor: int
    #: Roots that this epoch admits in all; None until the input is at its end.
    total: int | None
    state: str
    #: Roots that are admitted and not acknowledged.
    live: set[int]
    #: The root admitted last in this epoch; -1 where there is none.
    last: int = -1
    #: Why the epoch cannot go on: a unit is gone, or nobody can read it. Its rows come back with the next one.
    damaged: str = ""

    @property
    def complete(self) -> bool:
        """Whether everything was admitted, and made durable."""
        return self.total is not None and self.cursor >= self.total and not self.live


@dataclass(frozen=True)
class RunInfo:
    """What Redis says of a run."""

    run: str
    epoch: int
    state: str
    fields: Mapping[str, str]


class FleetQueue:
    """The transitions, over one connection pool. Thread-safe.

    Raises (every call):
        redis.RedisError: Redis did not answer; the call may or may not have happened.
    """

    def __init__(self, connection: redis.Redis, *, max_bytes: int = MAX_BYTES) -> None:
        self._redis = connection
        self._max_bytes = max_bytes
        self._scripts = {name: connection.register_script(_source(name)) for name in _SCRIPTS}

    # -- runs

    def install(
        self, run: str, epoch: int, owner: str, token: str, queues: Sequence[str], fields: Mapping[str, str | int]
    ) -> None:
        """Makes an epoch current; its stream begins with the anchor `(ANCHOR, token)`. Everything older is refused.

        Raises:
            Lost: Redis knows this epoch, or a later one.
        """
        reply = self._call("install", run=run, epoch=epoch, owner=owner, token=token, queues=list(queues), fields=dict(fields))
        if reply[0] != b"OK":
            raise Lost(f"run {run}: epoch {epoch} is not newer than {reply[1]}")
        self._sweep(run, before=epoch)

    def attach(self, run: str, epoch: int, owner: str, position: tuple[str, str]) -> None:
        """A sink takes an epoch over.

        Raises:
            Lost: the stream does not continue what is durable.
        """
        self._expect("attach", run=run, epoch=epoch, owner=owner, id=position[0], token=position[1])

    def close(self, run: str, epoch: int, owner: str, queues: Sequence[str]) -> None:
        """Takes a complete run out of Redis; nothing of it stays. A run that is not there is closed.

        Raises:
            Lost: another owner, or another epoch.
        """
        self._expect("close", run=run, epoch=epoch, owner=owner, queues=list(queues))
        self._sweep(run, before=epoch + 1)

    def _sweep(self, run: str, before: int) -> None:
        """Deletes what older epochs of a run left: nothing refers to it any more."""
        for pattern, end in ((f"chainette:{run}:", ":"), (f"rq:job:{run}_", "_")):
            epoch_of = re.compile(re.escape(pattern).encode() + rb"(\d+)" + end.encode())
            found = self._redis.scan_iter(f"{pattern}[0-9]*", count=1000)
            names = [name for name in found if (match := epoch_of.match(name)) and int(match[1]) < before]
            for start in range(0, len(names), 500):
                self._redis.unlink(*names[start : start + 500])

    def set_state(self, run: str, state: str) -> None:
        """Pauses ("paused"), continues ("running") or gives up ("cancelled") a run.

        Raises:
            Lost: there is no such run, or it was given up.
        """
        reply = self._call("state", run=run, state=state)
        if reply == b"CANCELLED":
            raise Lost(f"run {run} was cancelled, which is for good; `chainette resume DIR` goes on with its directory")
        if reply != b"OK":
            known = ", ".join(info.run for info in self.runs()) or "none"
            raise Lost(f"no live run {run!r}; live runs: {known}")

    def workers(self) -> dict[str, dict[str, str]]:
        """What live workers say about themselves."""
        found = {}
        for name in cast("set[bytes]", self._redis.smembers(WORKERS)):
            fields = cast("dict[bytes, bytes]", self._redis.hgetall(worker(name.decode())))
            found[name.decode()] = {key.decode(): value.decode() for key, value in fields.items()}
        return found

    def ask_to_stop(self, engine: str | None) -> list[str]:
        """Asks the workers of an engine, or all, to hand back what they have and end; returns whom."""
        asked = [
            name for name, words in self.workers().items() if engine is None or engine in words.get("engines", "").split(",")
        ]
        for name in asked:
            self._redis.hset(worker(name), "stop", "1")
        return asked

    def is_asked_to_stop(self, incarnation: str) -> bool:
        """Whether somebody asked a worker to end."""
        return bool(self._redis.hget(worker(incarnation), "stop"))

    def waiting(self, queues: Sequence[str]) -> list[str]:
        """Those of the queues (RQ's names) in which units wait."""
        with self._redis.pipeline(transaction=False) as pipe:
            for queue in queues:
                pipe.llen(f"rq:queue:{queue}")
            return [queue for queue, length in zip(queues, pipe.execute(), strict=True) if length]

    def runs(self) -> list[RunInfo]:
        """Runs that are not closed."""
        found = []
        for name in cast("set[bytes]", self._redis.smembers(RUNS)):
            fields = cast("dict[bytes, bytes]", self._redis.hgetall(RunKeys(name.decode(), 0).state))
            plain = {key.decode(): value.decode() for key, value in fields.items()}
            if "epoch" in plain:
                found.append(RunInfo(name.decode(), int(plain["epoch"]), plain["state"], plain))
        return sorted(found, key=lambda info: info.run)

    # -- roots

    def admit(
        self,
        keys: RunKeys,
        plan: Plan,
        k: int,
        root: int,
        record: RootRecord,
        bad: list[Rejection],
        effects: Effects,
        token: str,
    ) -> Admitted:
        """Puts a root in. `k` is how many this epoch has admitted before.

        Raises:
            Lost: the epoch is over.
        """
        reply = self._call(
            "admit",
            run=keys.run,
            epoch=keys.epoch,
            k=k,
            root=root,
            rows=len(record.rows),
            record=encode(record),
            effects=_plain(keys, plan, root, effects),
            entry=encode(Admission(bad)) if bad else b"",
            token=token,
        )
        if reply == b"LOST":
            raise Lost(f"run {keys.run}: epoch {keys.epoch} is over")
        return Admitted(reply.decode())

    def record(self, keys: RunKeys, root: int) -> RootRecord:
        """The rows of a live root as they were admitted.

        Raises:
            BadMessage: they are not there, or not what they must be.
        """
        return open_message(self._redis.get(keys.root(root)), RootRecord)

    def end_of_input(self, keys: RunKeys, total: int) -> bool:
        """Says how many roots this epoch admits in all; False where it has admitted another number.

        Raises:
            Lost: the epoch is over.
        """
        reply = self._call("total", run=keys.run, epoch=keys.epoch, total=total)
        if reply == b"LOST":
            raise Lost(f"run {keys.run}: epoch {keys.epoch} is over")
        return bool(reply == b"OK")

    def progress(self, keys: RunKeys) -> Progress:
        """How far admission is, and which roots are live."""
        names = ["cursor", "total", "state", "last", "damaged"]
        found = cast("list[bytes | None]", self._redis.hmget(keys.state, names))
        cursor, total, state, last, damaged = ((value or b"").decode() for value in found)
        live = {int(root) for root in cast("list[bytes]", self._redis.hkeys(f"{keys.prefix}live"))}
        return Progress(int(cursor or 0), int(total) if total else None, state, live, int(last or -1), damaged)

    # -- workers

    def beat(self, incarnation: str, fields: Mapping[str, str | int | float], lease: float = LEASE) -> bool:
        """Renews a worker's lease; False where it had none: it is its first, or its claims are gone."""
        return bool(self._call("beat", incarnation=incarnation, lease=lease, fields=dict(fields)) == b"OK")

    def claim(
        self, incarnation: str, token: str, queues: Sequence[tuple[str, str]], *, alone: bool = False
    ) -> Claim | Drain | None:
        """The next unit out of (run, queue) pairs, tried in order; `alone` says that the worker holds nothing.

        Raises:
            Lost: the worker's lease is over.
        """
        pairs = [list(pair) for pair in queues]
        while True:
            reply = self._call(
                "claim", incarnation=incarnation, token=token, alone=alone, queues=pairs, at=_stamp(), limit=self._max_bytes
            )
            if reply[0] == b"LOST":
                raise Lost(f"worker {incarnation}: its lease is over")
            if reply[0] in (b"EMPTY", b"DRAIN"):
                return Drain() if reply[0] == b"DRAIN" else None
            turn, job, run, epoch = (part.decode() for part in reply[:4])
            try:
                return Claim(job, token, run, int(epoch), _claimed(*reply[4:]), Turn(turn))
            except BadMessage as error:
                self._bury(job, token, incarnation, str(error))

    def bury(self, claim: Claim, incarnation: str, reason: str) -> bool:
        """Takes a unit out of the run that cannot be what it says. Where it was one of the run's, the run's sink begins
        a new epoch, so that its rows come back. False where the claim does not hold."""
        return self._bury(claim.job, claim.token, incarnation, reason)

    def _bury(self, job: str, token: str, incarnation: str, reason: str) -> bool:
        words = reason.encode("utf-8", "replace")[:2000]
        return bool(self._call("bury", job=job, token=token, incarnation=incarnation, reason=words) == b"OK")

    def reconcile(self, incarnation: str, known: Sequence[Claim] = ()) -> int:
        """Hands back what the worker holds but for `known`: what a claim took whose reply was lost. Returns how many units."""
        tokens = {claim.job: claim.token for claim in known}
        return int(self._call("reconcile", incarnation=incarnation, known=tokens))

    def commit(self, claim: Claim, incarnation: str, plan: Plan, outcome: Outcome, token: str) -> bool:
        """What became of a unit; False where the claim does not hold, so that nothing happened."""
        keys = RunKeys(claim.run, claim.epoch)
        reply = self._call(
            "commit",
            job=claim.job,
            token=claim.token,
            incarnation=incarnation,
            entry=encode(Result.of(claim.unit, outcome, incarnation)),
            entry_token=token,
            effects=_plain(keys, plan, claim.unit.root, outcome.effects),
        )
        return bool(reply == b"OK")

    def split(self, claim: Claim, incarnation: str, plan: Plan) -> bool:
        """Cuts a unit in two that run alone; False where the claim does not hold."""
        unit, half = claim.unit, len(claim.unit.rows) // 2
        parts = (("<", unit.rows[:half]), (">", unit.rows[half:]))
        effects = Effects([Unit(unit.node, unit.root, unit.part + mark, unit.scope, rows) for mark, rows in parts])
        plain = _plain(RunKeys(claim.run, claim.epoch), plan, unit.root, effects)
        reply = self._call("split", job=claim.job, token=claim.token, incarnation=incarnation, effects=plain)
        return bool(reply == b"OK")

    def fail(self, claim: Claim, incarnation: str, delay: float, message: str) -> bool:
        """Puts a unit off: its engine did not answer."""
        words = message[:2000]
        reply = self._call("fail", job=claim.job, token=claim.token, incarnation=incarnation, delay=delay, message=words)
        return bool(reply == b"OK")

    def release(self, claim: Claim, incarnation: str) -> bool:
        """Hands a unit back unharmed, to the front."""
        return bool(self._call("release", job=claim.job, token=claim.token, incarnation=incarnation) == b"OK")

    def reap(self) -> list[str]:
        """Takes units back from workers whose lease is over; returns those workers."""
        return [name.decode() for name in self._call("reap")]

    def leave(self, incarnation: str) -> bool:
        """Signs a worker off; False while it holds units."""
        return bool(self._call("leave", incarnation=incarnation) == b"OK")

    # -- results

    def read(self, keys: RunKeys, position: tuple[str, str], count: int = 256) -> list[Entry]:
        """Entries behind a position, oldest first; [] where there are none yet.

        Raises:
            Lost: the entry at the position is not the one that is durable: Redis does not continue the log.
            BadMessage: an entry does not decode.
        """
        raw = cast("list[Any]", self._redis.xrange(keys.stream, min=position[0], count=count + 1))
        if not raw or _entry_id(raw[0]) != position[0] or raw[0][1].get(b"t") != position[1].encode():
            raise Lost(f"run {keys.run}: the stream of epoch {keys.epoch} does not continue at {position[0]}")
        return [_entry(item) for item in raw[1:]]

    def ack(self, keys: RunKeys, owner: str, position: tuple[str, str], roots: Sequence[int]) -> None:
        """Everything up to a position is durable: gives back the credit of finished roots and trims the stream.

        Raises:
            Lost: another owner, another epoch, or the position is not in the stream.
        """
        self._expect("ack", run=keys.run, epoch=keys.epoch, owner=owner, id=position[0], token=position[1], roots=list(roots))

    # -- notes

    def note(self, run: str, event: Event) -> None:
        """Tells the run's sink something that may get lost: an engine was loaded, a unit goes round again."""
        if not self._redis.sismember(RUNS, run):
            return  # the run is closed, and nothing of it stays
        self._call("note", run=run, line=encode_line(event))

    def notes(self, run: str, after: str) -> tuple[str, list[AnyEvent]]:
        """What was noted behind a stream id, and the id to go on from. What does not read as an event is passed over."""
        found = cast("list[Any]", self._redis.xrange(RunKeys(run, 0).notes, min=f"({after}", count=256))
        events = [event for _, fields in found if (event := _noted(fields)) is not None]
        return (_entry_id(found[-1]) if found else after), events

    # -- calling

    def _call(self, name: str, **arguments: Any) -> Any:
        blobs: list[bytes] = []
        packed = _pack(_with_blobs(arguments, blobs))
        return self._scripts[name](args=[packed, *blobs])

    def _expect(self, name: str, **arguments: Any) -> None:
        reply = self._call(name, **arguments)
        if reply != b"OK":
            raise Lost(f"{name} of run {arguments['run']}, epoch {arguments['epoch']}: {reply.decode()}")


_SCRIPTS = (
    "ack",
    "admit",
    "attach",
    "beat",
    "bury",
    "claim",
    "close",
    "commit",
    "fail",
    "install",
    "leave",
    "note",
    "reap",
    "reconcile",
    "release",
    "split",
    "state",
    "total",
)


def _source(name: str) -> str:
    folder = files("chainette.fleet.scripts")
    common, effects, body = (folder.joinpath(f"{part}.lua").read_text() for part in ("common", "effects", name))
    return common + body.replace("--EFFECTS\n", effects)


def _with_blobs(value: Any, blobs: list[bytes]) -> Any:
    """The value with every `bytes` moved to `blobs` and its number in its place."""
    if isinstance(value, bytes):
        blobs.append(value)
        return {"blob": len(blobs) + 1}
    if isinstance(value, dict):
        return {name: _with_blobs(part, blobs) for name, part in value.items()}
    return [_with_blobs(part, blobs) for part in value] if isinstance(value, list) else value


def _stamp() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _plain(keys: RunKeys, plan: Plan, root: int, effects: Effects) -> dict[str, Any]:
    """Effects as the scripts take them."""
    at = _stamp()
    return {
        "units": [_unit(keys, plan, unit, at) for unit in effects.units],
        "scopes": [_scope(keys, plan, root, scope, at) for scope in effects.scopes],
        "partials": [[partial.scope, encode(partial)] for partial in effects.partials],
        "stopped": [[scope, _pack(row_ids)] for scope, row_ids in effects.stopped],
    }


def _unit(keys: RunKeys, plan: Plan, unit: Unit, at: str) -> dict[str, Any]:
    return {
        **_job(keys, plan, unit.node, unit.root, unit.part, len(unit.rows), at),
        "scope": unit.scope,
        "payload": encode(unit),
    }


def _scope(keys: RunKeys, plan: Plan, root: int, scope: Scope, at: str) -> dict[str, Any]:
    part = f"{scope.part}j"
    return {
        **_job(keys, plan, scope.fork, root, part, len(scope.base), at),
        "scope": scope.scope,
        "parent": scope.parent,
        "base": _pack(scope.base),
    }


def _job(keys: RunKeys, plan: Plan, node: str, root: int, part: str, rows: int, at: str) -> dict[str, Any]:
    """What RQ shows of a unit: identifiers only, as JSON; its rows lie beside it."""
    arguments = [keys.run, keys.epoch, node, root, part]
    return {
        "job": keys.job(node, root, part),
        "queue": keys.queue(plan.engine_of(node), node),
        "data": json.dumps([FUNCTION, None, arguments, {}]),
        "description": f"{node} root {root}{f' part {part}' if part else ''}",
        "rows": rows,
        "at": at,
    }


def _identity(data: bytes) -> tuple[str, str]:
    """(node, part) out of a job's arguments.

    Raises:
        BadMessage: the job names another function, or does not decode.
    """
    try:
        name, _, (_, _, node, _, part), _ = _arguments.decode(data)
    except ValueError as error:
        raise BadMessage(f"a job in Redis does not say which unit it is: {data[:80]!r}") from error
    if name != FUNCTION:
        raise BadMessage(f"a job in Redis names the function {name[:80]!r}; jobs may name {FUNCTION!r} only")
    return node, part


def _claimed(root: bytes, scope: bytes, fork: bytes, data: bytes, payload: Any) -> Unit:
    """The unit of a claimed job.

    Raises:
        BadMessage: it cannot be read, or is not the one that the job names.
    """
    node, part = _identity(data)
    try:
        number, where = int(root), scope.decode()
    except ValueError as error:
        raise BadMessage(f"a job in Redis has the root {root[:80]!r} and the scope {scope[:80]!r}") from error
    if fork:
        return open_join(node, number, part, where, dict(zip(payload[::2], payload[1::2], strict=True)))
    unit = open_message(payload, Unit)
    if (unit.node, unit.root, unit.part, unit.scope) != (node, number, part, where):
        raise BadMessage(f"a job in Redis names {node!r}, root {number}; its payload: {unit.node[:80]!r}, root {unit.root}")
    return unit


def _noted(fields: Mapping[bytes, bytes]) -> AnyEvent | None:
    match fields.get(b"kind"):
        case b"event":
            return parse_line(fields.get(b"text", b"").rstrip(b"\n"))
        case b"buried":
            text = fields.get(b"text", b"").decode("utf-8", "replace")
            return WorkerRefused(worker=text.partition(" ")[0], reason=text)
        case _:
            return None


def _entry_id(item: Any) -> str:
    return str(item[0].decode())


def _entry(item: Any) -> Entry:
    """An entry of a run's stream behind its anchor.

    Raises:
        BadMessage: it is none of ours.
    """
    fields = item[1]
    try:
        kind, token, root = fields[b"k"], fields[b"t"].decode(), int(fields[b"r"])
    except (KeyError, ValueError) as error:
        raise BadMessage(f"entry {_entry_id(item)} of a run's stream in Redis is none of ours: {str(fields)[:80]}") from error
    body = fields.get(b"e")
    if kind == b"unit":
        return Entry(_entry_id(item), token, open_message(body, Result), root, fields.get(b"d") == b"1")
    message = open_message(body, Admission) if body else Admission([])
    return Entry(_entry_id(item), token, message, root, fields.get(b"d") == b"1")
