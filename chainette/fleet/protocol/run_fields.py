"""The record of a run in Redis, `chainette:run:{run}`: its progress, and the settings that workers and people need."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

from chainette.engine.budget import Amounts, Budget
from chainette.engine.config import EngineConfig
from chainette.engine.price import Cost
from chainette.fleet.protocol.hash_fields import Count, HashFields
from chainette.fleet.protocol.seals import VARIABLE, Purpose, Seals, Unsealed
from chainette.io.rundir.graph import Graph

__all__ = ["WITHDREW", "Counts", "RunInfo", "record_seal", "used_fields"]

#: An entry of `refusals`: an engine refuses the worker's key, the model, or the way in which a step asks.
WITHDREW = "withdrew from an engine that refuses it"

#: Fields that workers need, or a run that has begun.
_NEEDED = {"chain_ref", "digest", "batch_size", "simulate", "seed", "engines", "parameters", "marks", "reuse"} | {
    *("owner", "queues", "cursor", "live_rows", "live_bytes", "results")
}

#: Fields a seal covers.
_SEALED = (
    b"chain_ref",
    b"digest",
    b"files",
    b"batch_size",
    b"simulate",
    b"dedupe",
    b"seed",
    b"engines",
    b"parameters",
    b"marks",
    b"budget",
    b"reuse",
)

#: Fields the run can do without, or that are rewritten continually.
_SPARE = {"aside", "aside_why", "key", "seal", "reason", "still", "counts", "order", "sink", "coordinator"}


#: The most queues of one run that are read.
_MOST_QUEUES = 2000


class Counts(msgspec.Struct, frozen=True):
    """A run's progress, as its sink last reported it: durable rows only."""

    records: int = 0
    expected: int | None = None
    #: Node -> rows in, rows out, rejected, answer tokens.
    nodes: dict[str, tuple[int, int, int, int]] = {}
    cost: Cost = Cost()


class RunInfo(HashFields, frozen=True):
    """A run that is not closed."""

    run: str
    state: Literal["asked", "running", "paused", "cancelled", "damaged"] = "damaged"
    #: -1 if it was queued for services and no sink has begun it yet.
    epoch: int = -1
    #: Token of the sink that writes it.
    owner: str = ""
    #: The processes that hold these roles.
    sink: str = ""
    coordinator: str = ""
    #: The reasons why it was paused, and why its epoch cannot go on.
    reason: str = ""
    damaged: str = ""
    #: Roots admitted in this epoch so far, and in all.
    cursor: Count = 0
    total: Count | None = None
    #: Roots that left the epoch with rows for a later phase.
    suspended: Count = 0
    live_rows: Count = 0
    live_bytes: Count = 0
    #: The most rows, and bytes, that may be live.
    window: Count = 0
    window_bytes: Count = 0
    #: Rows of all results of this epoch.
    results: Count = 0
    #: Records that earlier epochs completed; records of the whole input, -1 if unknown.
    records_before: Count = 0
    expected: int = -1
    #: Seconds since a row was admitted or became durable, as its sink last reported.
    still: Count = 0
    counts: Counts = Counts()
    #: The nodes, their edges and engines: graph.json without models and prompts.
    outline: Graph = Graph()
    #: RQ's names of its queues, and of those whose units wait for a later phase.
    queue_names: str = msgspec.field(default="", name="queues")
    barred_names: str = msgspec.field(default="", name="barred")
    #: The values that workers need to make the same plan; `parameters` and `marks` are JSON.
    chain_ref: str = ""
    digest: str = ""
    files: tuple[str, ...] = ()
    batch_size: Count | None = None
    simulate: bool | None = None
    dedupe: bool = False
    seed: int | None = None
    #: Engine -> digest of its configuration.
    engines: dict[str, str] | None = None
    parameters: str = ""
    marks: str = ""
    #: Whether its sink has earlier runs to take answers from.
    reuse: bool = False
    #: The limits of the run (None if it has none), the part that is spent or reserved, and whether they are exhausted.
    budget: Budget | None = None
    used: str = ""
    exhausted: bool = False
    #: The order to services as JSON (`fleet.redis.run_registry.Order`), from a separate key; "" if there is none.
    order: str = ""
    #: Member -> why it does not serve the run.
    refusals: dict[str, str] = {}
    #: The fingerprint of the fleet's key; "" without one. Its seal over the record, and the fields it covers.
    key: str = ""
    seal: str = ""
    sealed_part: bytes = b""
    #: The number of messages put aside, and the fault of the last one.
    aside: Count = 0
    aside_why: str = ""
    #: Fields every run in progress needs and this one lacks.
    missing: tuple[str, ...] = ()

    @property
    def queues(self) -> list[str]:
        """RQ's names of its queues."""
        return self.queue_names.split()[:_MOST_QUEUES]

    @property
    def barred(self) -> list[str]:
        """RQ's names of the queues whose units wait for a later phase."""
        return self.barred_names.split()

    @property
    def damage(self) -> str:
        """Names the missing or garbage fields a new epoch would write; "" if there are none."""
        return ", ".join(sorted({*self.missing, *self.wrong} - _SPARE))

    @classmethod
    def of(cls, run: str, found: Mapping[bytes, bytes], order: bytes | None = None) -> RunInfo | None:
        """Decodes a run's hash, and its order; None if the run is closed. Never raises."""
        if b"state" not in found:
            return None
        found = {**found, b"order": order or b""}
        mark = b"refused:"
        refused = {name.removeprefix(mark): words for name, words in found.items() if name.startswith(mark) and words}
        missing = sorted(name for name in _NEEDED if name.encode() not in found) if b"epoch" in found else ()
        refusals = {_text(name): _text(words) for name, words in refused.items()}
        part = _sealed_part(found)
        return cls.read(found, run=run, refusals=refusals, missing=tuple(missing), sealed_part=part)

    def seal_fault(self, seals: Seals) -> str:
        """Why a process with these seals does not serve the run; "" if it does."""
        if self.key != seals.fingerprint:
            return (
                f"is sealed with the fleet key {self.key[:20] or '(none)'}, and this process has "
                f"{seals.fingerprint or 'none'}; all processes of a fleet need the same {VARIABLE}"
            )
        if not seals.fingerprint:
            return ""
        try:
            tag = bytes.fromhex(self.seal)
            seals.open(self.run, self.epoch, Purpose.RECORD, "", tag + self.sealed_part)
        except ValueError:
            return "has a record in Redis with a malformed seal"
        except Unsealed:
            return "has a record in Redis that somebody without the fleet's key has changed"
        return ""


def record_seal(seals: Seals, run: str, epoch: int, fields: Mapping[str, str | int | float]) -> dict[str, str]:
    """The fields of a run's record that name its fleet key, and prove that nobody has changed it."""
    body = _sealed_part({name.encode(): str(value).encode() for name, value in fields.items()})
    sealed = seals.seal(run, epoch, Purpose.RECORD, "", body)
    return {"key": seals.fingerprint, "seal": sealed[: len(sealed) - len(body)].hex()}


def used_fields(used: Mapping[str, Amounts], engines: Mapping[str, EngineConfig]) -> dict[str, str]:
    """The amounts a run has spent and reserved, as fields of its record: under "" of its own budget, else of an engine's."""
    return {f"used:{engines[name].digest}" if name else "used": amounts.words for name, amounts in used.items()}


def _sealed_part(found: Mapping[bytes, bytes]) -> bytes:
    """The record that workers and services act on."""
    return msgspec.msgpack.encode([found.get(name, b"") for name in _SEALED])


def _text(raw: bytes) -> str:
    return raw[:2000].decode("utf-8", "replace")
