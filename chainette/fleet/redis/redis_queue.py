"""The leased queue on Redis: RQ's data model, with every transition one fenced Lua script (PROTOCOL)."""

from __future__ import annotations

import os
import platform
import socket
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from importlib import metadata
from typing import TYPE_CHECKING, Any, cast

import msgspec

from chainette.core.join_digests import given_by_joins
from chainette.core.plan import Plan
from chainette.engine.budget import Amounts, BudgetLimits, Reserved
from chainette.fleet.protocol.contract import MOST_ANSWER_BYTES, MOST_ANSWERS, LeasedQueue
from chainette.fleet.protocol.keys import LEASES, RUNS, RunKeys, held, rq_queue, stop
from chainette.fleet.protocol.member_fields import Member
from chainette.fleet.protocol.messages import (
    MAX_BYTES,
    MAX_COMMIT,
    Admission,
    Aside,
    BadMessage,
    Missing,
    PutAside,
    Result,
    RootRecord,
    open_message,
)
from chainette.fleet.protocol.queue_values import (
    FURTHEST_EPOCH,
    LEASE,
    AdmissionProgress,
    AdmissionResult,
    Asker,
    Cancelled,
    Claim,
    Drain,
    EngineAccount,
    Entry,
    Lost,
    Turn,
)
from chainette.fleet.protocol.rq_jobs import (
    ClaimedJob,
    begun_by,
    begun_word,
    claimed_unit,
    halves,
    moment,
    open_unfinished,
    require_part,
    require_size,
    set_apart,
    stamp,
    wire_effects,
    wire_unfinished,
)
from chainette.fleet.protocol.run_fields import RunInfo, record_seal
from chainette.fleet.protocol.seals import Purpose, Seals, Unsealed, seals_of
from chainette.fleet.redis.admission_progress import count, progress_of
from chainette.fleet.redis.connect import is_damage
from chainette.fleet.redis.fleet_view import known_runs, live_members
from chainette.fleet.redis.leftovers import give_up, sweep
from chainette.fleet.redis.script_calls import Scripts
from chainette.fleet.redis.streams import SealedNotes, entry_id, lies_apart, stream_entry
from chainette.io.rundir.event_log import encode_line
from chainette.io.rundir.event_types import Event, Note
from chainette.records import Effects, Outcome, Rejection, encode
from chainette.utils.plurals import counted

if TYPE_CHECKING:
    import redis

__all__ = ["FleetQueue"]

#: Bytes of one part of a commit that travels with it; larger ones are staged before.
MAX_INLINE = 1 << 20

#: Bytes of the units in one claim, and of the answers in one call; the first one comes regardless of its size.
_LIGHT = 4 << 20

#: Seconds a staged part waits for its commit.
_STAGED = 600

#: A row that runs alone is rejected after this many workers have died with it.
_DEATHS = 2

#: Seconds in which a worker that was asked to end notices it.
_STOP = 120

#: The numbers of the script; answers are bytes, even forged ones.
_ASKERS = {1: Asker.HERE, 2: Asker.ELSEWHERE}


class FleetQueue(LeasedQueue):
    """The transitions, over one connection pool. Thread-safe.

    Raises (every call):
        redis.RedisError: Redis did not answer; the call may or may not have happened.
    """

    def __init__(
        self,
        connection: redis.Redis,
        *,
        max_bytes: int = MAX_BYTES,
        max_commit: int = MAX_COMMIT,
        max_inline: int = MAX_INLINE,
        seals: Seals | None = None,
    ) -> None:
        self._redis = connection
        self._seals = seals_of() if seals is None else seals
        self._max_bytes, self._max_commit, self._max_inline = max_bytes, max_commit, max_inline
        self._scripts = Scripts(connection)
        self._sealed_notes = SealedNotes(self._seals)
        #: Fields that RQ shows of the workers in this process.
        self._about = _this_process()

    # -- runs

    def install(
        self, run: str, epoch: int, owner: str, token: str, queues: Sequence[str], fields: Mapping[str, str | int | float]
    ) -> None:
        sealed = {**fields, **record_seal(self._seals, run, epoch, fields)}
        reply = self._call("install", run=run, epoch=epoch, owner=owner, token=token, queues=list(queues), fields=sealed)
        if reply[0] == b"CANCELLED":
            raise Cancelled(f"run {run} was cancelled")
        if reply[0] != b"OK":
            raise Lost(f"run {run}: epoch {epoch} is not newer than {reply[1]}")
        sweep(self._redis, run, before=epoch)

    def latest_epoch(self, keys: RunKeys) -> int:
        from redis import ResponseError

        try:
            found = count((cast("bytes | None", self._redis.hget(keys.state, "epoch")) or b"").decode("utf-8", "replace"))
        except ValueError:
            return -1
        except ResponseError as error:
            if not is_damage(error):
                raise
            return -1  # `install` deletes the key
        return found if found <= keys.epoch + FURTHEST_EPOCH else -1

    def attach(self, run: str, epoch: int, owner: str, position: tuple[str, str]) -> None:
        self._expect("attach", run=run, epoch=epoch, owner=owner, id=position[0], token=position[1])

    def close(self, run: str, epoch: int, owner: str, queues: Sequence[str]) -> None:
        self._expect("close", run=run, epoch=epoch, owner=owner, queues=list(queues))
        sweep(self._redis, run, before=epoch + 1)

    def set_state(self, run: str, state: str, reason: str = "") -> None:
        word = self._seals.seal(run, 0, Purpose.CANCEL, "", b"1").hex()
        reply = self._call("state", run=run, state=state, reason=reason, word=word)
        if reply == b"CANCELLED":
            raise Lost(f"run {run} was cancelled, which is final; `chainette resume DIR` continues with its directory")
        if reply != b"OK":
            known = ", ".join(info.run for info in self.runs()) or "none"
            raise Lost(f"no live run {run!r}; live runs: {known}")
        if state == "cancelled":
            give_up(self._redis, run)

    def bar(self, keys: RunKeys, owner: str, queues: Sequence[str]) -> None:
        self._expect("bar", run=keys.run, epoch=keys.epoch, owner=owner, queues=list(queues))

    def runs(self) -> list[RunInfo]:
        return [info for info in known_runs(self._redis) if info.epoch >= 0]

    def waiting(self, queues: Sequence[str]) -> dict[str, int]:
        with self._redis.pipeline(transaction=False) as pipe:
            for queue in queues:
                pipe.llen(rq_queue(queue))
            return {queue: length for queue, length in zip(queues, pipe.execute(), strict=True) if length}

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
    ) -> AdmissionResult:
        rows = self._seal(keys, Purpose.ROOT, str(root), encode(record))
        plain = wire_effects(keys, plan, root, effects, self._seals, token, record.rows)
        admission = self._seal(keys, Purpose.ENTRY, f"{root}\0{token}", encode(Admission(bad)))
        root_words = f"root {root} of {counted(len(record.rows), 'row')}"
        require_size(root_words, self._max_commit, rows, plain, len(record.rows))
        reply = self._call(
            "admit",
            run=keys.run,
            epoch=keys.epoch,
            k=k,
            root=root,
            rows=len(record.rows),
            record=rows,
            effects=plain,
            entry=admission if bad else b"",
            empty=b"" if bad else admission,
            token=token,
        )
        if reply == b"LOST":
            raise Lost(f"run {keys.run}: epoch {keys.epoch} is over")
        try:
            return AdmissionResult(reply.decode("utf-8", "replace"))
        except ValueError as error:  # the run has an unknown state
            raise Missing(f"the record of run {keys.run} in Redis does not decode: {error}") from error

    def record(self, keys: RunKeys, root: int) -> RootRecord:
        message = cast("bytes | None", self._redis.get(keys.root(root)))
        return open_message(self._seals.open(keys.run, keys.epoch, Purpose.ROOT, str(root), message), RootRecord)

    def end_of_input(self, keys: RunKeys, total: int) -> bool:
        reply = self._call("total", run=keys.run, epoch=keys.epoch, total=total)
        if reply == b"LOST":
            raise Lost(f"run {keys.run}: epoch {keys.epoch} is over")
        return bool(reply == b"OK")

    def progress(self, keys: RunKeys, engines: Sequence[str] = ()) -> AdmissionProgress:
        return progress_of(self._redis, keys, engines)

    def missing(self, keys: RunKeys, roots: Sequence[int]) -> str:
        found: bytes = self._call("missing", run=keys.run, epoch=keys.epoch, roots=list(roots))
        return found.decode("utf-8", "replace")

    # -- workers

    def beat(
        self,
        incarnation: str,
        fields: Mapping[str, str | int | float],
        lease: float = LEASE,
        *,
        queues: Sequence[tuple[str, str]] = (),
    ) -> bool:
        reply = self._call(
            "beat",
            incarnation=incarnation,
            lease=lease,
            fields=dict(fields),
            about=self._about,
            queues=[list(pair) for pair in queues],
            at=stamp(),
        )
        return bool(reply == b"OK")

    def leave(self, incarnation: str) -> bool:
        return bool(self._call("leave", incarnation=incarnation) == b"OK")

    def reap(self) -> list[str]:
        return [name.decode("utf-8", "replace") for name in self._call("reap")]

    def workers(self) -> dict[str, Member]:
        return {name: member for name, member in live_members(self._redis).items() if member.is_worker}

    def is_held(self, keys: RunKeys) -> bool:
        jobs = f"{keys.run}_{keys.epoch}_".encode()
        with self._redis.pipeline(transaction=False) as pipe:
            for name in self.workers():
                pipe.smembers(held(name))
            return any(job.startswith(jobs) for found in pipe.execute() for job in found)

    def ask_to_stop(self, engine: str | None) -> list[str]:
        asked = [name for name, member in self.workers().items() if engine is None or engine in member.engines]
        for name in asked:
            self._redis.set(stop(name), self._seals.seal("", 0, Purpose.STOP, name, b"1"), ex=_STOP)
        return asked

    def is_asked_to_stop(self, incarnation: str) -> bool:
        try:
            word = cast("bytes | None", self._redis.get(stop(incarnation)))
            return self._seals.open("", 0, Purpose.STOP, incarnation, word) == b"1"
        except Unsealed:
            return False

    # -- units

    def claim_rows(
        self,
        incarnation: str,
        token: str,
        queues: Sequence[tuple[str, str, int]],
        *,
        alone: bool = False,
        ahead: bool = False,
    ) -> list[Claim] | Drain:
        places = [list(place) for place in queues]
        call = partial(self._call, "claim", incarnation=incarnation, token=token, alone=alone, ahead=ahead, queues=places)
        while True:
            kind, *found = call(at=stamp(), limit=self._max_bytes, light=_LIGHT)
            if kind == b"LOST":
                raise Lost(f"worker {incarnation}: its lease is over")
            if kind == b"DRAIN":
                return Drain(found[0].decode())
            claims = [claim for reply in found if (claim := self._claimed(reply, incarnation)) is not None]
            if claims or not found:
                return claims

    def _claimed(self, reply: Any, incarnation: str) -> Claim | None:
        """A claim from the script's reply; None if its unit is unreadable."""
        turn, job, token, run, epoch, since, part = (word.decode("utf-8", "replace") for word in reply[:7])
        try:
            number, parts = count(epoch), count(part)
            claimed = ClaimedJob(RunKeys(run, number), job, *reply[7:-2])
            unit = claimed_unit(claimed, self._seals)
        except (BadMessage, ValueError) as error:  # numbers to Lua, and none to Python: "0x1", "1.5"
            self._bury(_who(job, token, incarnation, reply[9].decode("utf-8", "replace")), str(error))
            return None
        unfinished = open_unfinished(claimed, self._seals, reply[-1])
        claim = Claim(job, token, run, number, unit, Turn(turn), moment(since), parts, unfinished)
        return claim if self._has_its_turn(claim, incarnation, reply[-2]) else None

    def _has_its_turn(self, claim: Claim, incarnation: str, begun: bytes) -> bool:
        """Whether a unit may run alone, or be mended.

        With a key, a row is poison only if two workers sealed that they began it alone, and none of them lives: the
        counters in Redis may be forged. Otherwise it goes back and runs once more.
        """
        if claim.turn is Turn.SOLO and (word := begun_word(claim, incarnation, self._seals)):
            return bool(self._call("start", **_holder(claim, incarnation), begun=word) == b"OK")
        if claim.turn is not Turn.MEND or not self._seals.fingerprint or len(claim.unit.rows) != 1:
            return True
        dead = [name for name in begun_by(claim, begun, self._seals) if self._redis.zscore(LEASES, name) is None]
        if len(dead) < _DEATHS:
            self.release(claim, incarnation)
        return len(dead) >= _DEATHS

    def start(self, claim: Claim, incarnation: str) -> bool:
        return bool(self._call("start", **_holder(claim, incarnation), begun="") == b"OK")

    def bury(self, claim: Claim, incarnation: str, reason: str) -> bool:
        return self._bury(_holder(claim, incarnation), reason)

    def _bury(self, who: dict[str, str], reason: str) -> bool:
        words = reason.encode("utf-8", "replace")[:2000]
        return bool(self._call("bury", **who, reason=words) == b"OK")

    def reconcile(self, incarnation: str, known: Sequence[Claim] = ()) -> int:
        claims = {claim.job: [claim.token, claim.part] for claim in known}
        return int(self._call("reconcile", incarnation=incarnation, known=claims))

    def commit(
        self,
        claim: Claim,
        incarnation: str,
        plan: Plan,
        outcome: Outcome,
        token: str,
        rows: Collection[str] | None = None,
    ) -> bool:
        piece, who = claim.piece(rows), _holder(claim, incarnation)
        rest = claim.rest(rows)
        ends: dict[str, Any] = {"part": claim.part, "size": len(piece.rows), "unfinished": wire_unfinished(rest, self._seals)}
        if rest is not None:
            require_part(piece, plan)
            ends["rows"] = [row.row_id for row in piece.rows]
        keys, given = RunKeys(claim.run, claim.epoch), given_by_joins(plan, piece.rows)
        result = Result.of(piece, outcome, incarnation, claim.opens(rows), given)
        entry = self._seal(keys, Purpose.ENTRY, f"{piece.root}\0{token}", encode(result))
        effects = wire_effects(keys, plan, piece.root, outcome.effects, self._seals, token)
        require_size(f"{piece.node}, root {piece.root}", self._max_commit, entry, effects)
        light, bodies = set_apart({"entry": entry, "effects": effects}, self._max_inline)
        while True:
            for number, body in enumerate(bodies):
                self._call("stage", **who, entry=token, number=number, seconds=_STAGED, body=body)
            reply = self._call("commit", **who, **ends, entry_token=token, **light)
            if reply != b"UNSTAGED":
                return reply in (b"OK", b"DONE")

    def split(self, claim: Claim, incarnation: str, plan: Plan) -> bool:
        effects = Effects(halves(claim.unit))
        plain = wire_effects(RunKeys(claim.run, claim.epoch), plan, claim.unit.root, effects, self._seals, "")
        reply = self._call("split", **_holder(claim, incarnation), part=claim.part, effects=plain)
        return bool(reply == b"OK")

    def fail(self, claim: Claim, incarnation: str, delay: float, message: str) -> bool:
        words = message[:2000]
        reply = self._call(
            "fail", **_holder(claim, incarnation), unfinished=wire_unfinished(claim, self._seals), delay=delay, message=words
        )
        return bool(reply == b"OK")

    def release(self, claim: Claim, incarnation: str) -> bool:
        return bool(
            self._call("release", **_holder(claim, incarnation), unfinished=wire_unfinished(claim, self._seals)) == b"OK"
        )

    # -- the budget

    def reserve(
        self,
        keys: RunKeys,
        incarnation: str,
        token: str,
        limits: BudgetLimits,
        settled: Amounts,
        ended: int,
        needs: Sequence[Amounts],
        engine: EngineAccount,
    ) -> Reserved:
        amounts = {"limits": list(limits), "settled": list(settled), "needs": [list(need) for need in needs]}
        amounts["engine_limits"] = list(engine.limits)
        place = {"run": keys.run, "epoch": keys.epoch, "incarnation": incarnation, "engine": engine.digest}
        kind, *found = self._call("reserve", **place, token=token, ended=ended, **amounts)
        if kind != b"OK":
            raise Lost(f"run {keys.run}: epoch {keys.epoch} is over")
        granted, exhausted, used, of_engine = found
        return Reserved(granted, Amounts.read(used.decode()), bool(exhausted), Amounts.read(of_engine.decode()))

    # -- questions that rows share

    def share(
        self,
        keys: RunKeys,
        incarnation: str,
        wanted: Sequence[bytes],
        answers: Sequence[tuple[bytes, bytes]] = (),
        given_up: Sequence[bytes] = (),
    ) -> list[bytes | Asker]:
        sealed = [[question, self._seal(keys, Purpose.ANSWER, question.hex(), answer)] for question, answer in answers]
        kind, *found = self._call(
            "share_answers",
            run=keys.run,
            epoch=keys.epoch,
            incarnation=incarnation,
            wanted=list(wanted),
            answers=sealed,
            given_up=list(given_up),
            most=MOST_ANSWERS,
            most_bytes=MOST_ANSWER_BYTES,
            light=_LIGHT,
        )
        if kind != b"OK":
            raise Lost(f"run {keys.run}: epoch {keys.epoch} is over")
        return [self._shared(keys, *pair) for pair in zip(wanted, found, strict=True)]

    def _shared(self, keys: RunKeys, question: bytes, reply: bytes | int) -> bytes | Asker:
        if isinstance(reply, int):
            return _ASKERS[reply]
        try:
            answer = self._seals.open(keys.run, keys.epoch, Purpose.ANSWER, question.hex(), reply)
        except Unsealed:
            answer = None
        return answer or Asker.HERE  # nobody of the fleet wrote it, so it is asked here, too

    # -- results

    def read(self, keys: RunKeys, position: tuple[str, str], count: int = 256) -> list[Entry]:
        raw = cast("list[Any]", self._redis.xrange(keys.stream, min=position[0], count=count + 1))
        if not raw or entry_id(raw[0]) != position[0] or raw[0][1].get(b"t") != position[1].encode():
            raise Lost(f"run {keys.run}: the stream of epoch {keys.epoch} does not continue at {position[0]}")
        entries, strays, weight = list[Entry](), list[Aside](), 0
        for item in raw[1:]:
            token = lies_apart(item)
            body = item[1].get(b"e") if token is None else self._redis.get(keys.body(token))
            try:
                entries.append(stream_entry(item, body, partial(self._seals.open, keys.run, keys.epoch, Purpose.ENTRY)))
            except PutAside as error:
                if not self._seals.fingerprint:
                    raise
                strays += error.asides
            weight += len(body or b"")
            if weight > self._max_commit:
                break
        if strays:
            raise PutAside(strays, strays=True)
        return entries

    def ack(self, keys: RunKeys, owner: str, position: tuple[str, str], roots: Sequence[int]) -> None:
        self._expect("ack", run=keys.run, epoch=keys.epoch, owner=owner, id=position[0], token=position[1], roots=list(roots))

    # -- notes

    def note(self, run: str, event: Event) -> None:
        if not self._redis.sismember(RUNS, run):
            return  # the run is closed, and nothing of it stays
        self._call("note", run=run, line=self._sealed_notes.seal(run, encode_line(event)))

    def notes(self, run: str, after: str) -> tuple[str, list[Note]]:
        from redis import ResponseError

        key = RunKeys(run, 0).notes
        try:
            found = cast("list[Any]", self._redis.xrange(key, min=f"({after}", count=256))
        except ResponseError as error:
            if not is_damage(error):
                raise
            self._redis.delete(key)  # notes may be lost
            found = []
        events = [event for item in found if (event := self._sealed_notes.read(run, item)) is not None]
        return (entry_id(found[-1]) if found else after), events

    def put_aside(self, run: str, asides: Sequence[Aside], epoch: int | None = None) -> None:
        bodies = [msgspec.json.encode(aside) for aside in asides]
        entries = [aside.entry for aside in asides] if epoch is not None else []
        self._call("aside", run=run, why=asides[-1].why, asides=bodies, epoch=epoch or 0, entries=entries)

    # -- calling

    def _seal(self, keys: RunKeys, kind: Purpose, identity: str, body: bytes) -> bytes:
        return self._seals.seal(keys.run, keys.epoch, kind, identity, body)

    def _call(self, name: str, **arguments: Any) -> Any:
        return self._scripts.call(name, **arguments)

    def _expect(self, name: str, **arguments: Any) -> None:
        reply = self._call(name, **arguments)
        if reply != b"OK":
            raise Lost(f"{name} of run {arguments['run']}, epoch {arguments['epoch']}: {reply.decode()}")


def _this_process() -> dict[str, str | int]:
    """Fields that RQ shows of a worker."""
    return {
        "hostname": socket.gethostname(),
        "pid": os.getpid(),
        "ip_address": "",
        "version": metadata.version("chainette"),
        "python_version": platform.python_version(),
    }


def _holder(claim: Claim, incarnation: str) -> dict[str, str]:
    return _who(claim.job, claim.token, incarnation, claim.unit.scope)


def _who(job: str, token: str, incarnation: str, scope: str) -> dict[str, str]:
    """A claim as the scripts know it; its scope distinguishes a lost unit from a committed one."""
    return {"job": job, "token": token, "incarnation": incarnation, "scope": scope}
