"""The record of a run in Redis, `chainette:run:{run}`: where it stands, and what workers and people must know of it."""

from __future__ import annotations

from typing import Literal

import msgspec

from chainette.fleet.protocol.hash_fields import Count, HashFields
from chainette.io.rundir.graph import Graph

__all__ = ["Counts", "RunInfo"]

#: Fields without which workers cannot tell what to compute, or a run that was begun cannot go on.
_NEEDED = {"chain_ref", "digest", "batch_size", "simulate", "seed", "engines", "parameters", "marks"} | {
    *("owner", "queues", "cursor", "live_rows", "live_bytes", "results")
}

#: Fields that the run does without, or that are written again and again.
_SPARE = {"reason", "still", "counts", "order", "sink", "coordinator"}


class Counts(msgspec.Struct, frozen=True):
    """How far a run is, as its sink last said: only what is durable."""

    records: int = 0
    expected: int | None = None
    #: Node -> rows in, rows out, rejected, answer tokens.
    nodes: dict[str, tuple[int, int, int, int]] = {}


class RunInfo(HashFields, frozen=True):
    """A run that is not closed."""

    run: str
    state: Literal["asked", "running", "paused", "cancelled", "damaged"] = "damaged"
    #: -1 if it was handed over and no sink has begun it yet.
    epoch: int = -1
    #: Token of the sink that writes it.
    owner: str = ""
    #: Who has which role.
    sink: str = ""
    coordinator: str = ""
    #: Why it was paused, and why its epoch cannot go on.
    reason: str = ""
    damaged: str = ""
    #: Roots that were admitted in this epoch, and all that will be.
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
    #: Records that earlier epochs have done; records of the whole input, -1 if unknown.
    records_before: Count = 0
    expected: int = -1
    #: Seconds since a row was admitted or became durable, as its sink last said.
    still: Count = 0
    counts: Counts = Counts()
    #: What feeds what, and which engine answers: graph.json without models and prompts.
    outline: Graph = Graph()
    #: RQ's names of its queues, and of those whose units wait for a later phase.
    queue_names: str = msgspec.field(default="", name="queues")
    barred_names: str = msgspec.field(default="", name="barred")
    #: What workers must know to make the same plan; `parameters` and `marks` are JSON.
    chain_ref: str = ""
    digest: str = ""
    batch_size: Count | None = None
    simulate: bool | None = None
    seed: int | None = None
    #: Engine -> digest of its configuration.
    engines: dict[str, str] | None = None
    parameters: str = ""
    marks: str = ""
    #: How it was handed over to services, as JSON (`fleet.redis.run_registry.Order`); "" if it was not.
    order: str = ""
    #: Member -> why it takes nothing of the run.
    refusals: dict[str, str] = {}
    #: Fields that every run has which was begun, and that are not there.
    missing: tuple[str, ...] = ()

    @property
    def queues(self) -> list[str]:
        """RQ's names of its queues."""
        return self.queue_names.split()

    @property
    def barred(self) -> list[str]:
        """RQ's names of the queues whose units wait for a later phase."""
        return self.barred_names.split()

    @property
    def damage(self) -> str:
        """Names the fields that are missing or garbage and that a new epoch writes anew; "" if there are none."""
        return ", ".join(sorted({*self.missing, *self.wrong} - _SPARE))

    @classmethod
    def of(cls, run: str, found: dict[bytes, bytes]) -> RunInfo | None:
        """What the hash of a run says; None if the run is closed. Never raises."""
        if b"state" not in found:
            return None
        mark = b"refused:"
        refused = {name.removeprefix(mark): words for name, words in found.items() if name.startswith(mark) and words}
        missing = sorted(name for name in _NEEDED if name.encode() not in found) if b"epoch" in found else ()
        refusals = {_text(name): _text(words) for name, words in refused.items()}
        return cls.read(found, run=run, refusals=refusals, missing=tuple(missing))


def _text(raw: bytes) -> str:
    return raw[:2000].decode("utf-8", "replace")
