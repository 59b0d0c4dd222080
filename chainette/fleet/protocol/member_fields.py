"""The description of a process of the fleet (worker, service or `enqueue`) in Redis."""

from __future__ import annotations

import hmac
from collections.abc import Iterable
from typing import ClassVar
from urllib.parse import unquote

import msgspec

from chainette.fleet.protocol.hash_fields import Count, HashFields, Seconds
from chainette.fleet.protocol.keys import word
from chainette.fleet.protocol.seals import Purpose, Seals

__all__ = ["WORKER", "Member", "listed", "metrics_words"]

#: The kind of a process that answers units.
WORKER = "worker"


class Member(HashFields, frozen=True):
    """One process whose lease holds."""

    longest: ClassVar[int] = 1 << 16
    kind: str = WORKER
    #: The engines it serves, as `listed` writes them.
    names: str = msgspec.field(default="", name="engines")
    #: Rows and units it holds, and the rows that its engines have room for.
    rows_in_flight: Count = 0
    rows_budget: Count = 0
    units_in_flight: Count = 0
    #: Times it swapped one engine for another, and seconds that the last swap took.
    swaps: Count = 0
    swap_seconds: Seconds = 0.0
    #: Share of its time spent on swaps.
    swapping: Seconds = 0.0
    #: The address of its metrics, `host:port`, and the seal of it in hexadecimal digits; "" without a fleet key.
    metrics: str = ""
    metrics_seal: str = ""
    host: str = ""
    pid: Count = 0
    started: str = ""

    @property
    def is_worker(self) -> bool:
        return self.kind == WORKER

    def has_sealed_metrics(self, seals: Seals) -> bool:
        """Whether a process with this fleet's key announced the address of its metrics; False without a key."""
        return bool(seals.fingerprint) and hmac.compare_digest(
            self.metrics_seal.encode(), _seal_of(self.metrics, seals).encode()
        )

    @property
    def engines(self) -> list[str]:
        """The engines it serves."""
        return [unquote(name) for name in self.names.split(",") if name]


def metrics_words(address: str, seals: Seals) -> dict[str, str]:
    """The fields that announce an address under which a process serves its metrics."""
    return {"metrics": address} | ({"metrics_seal": _seal_of(address, seals)} if seals.fingerprint else {})


def _seal_of(address: str, seals: Seals) -> str:
    return seals.seal("", 0, Purpose.METRICS, address, b"").hex()


def listed(engines: Iterable[str]) -> str:
    """Encodes the engines a worker serves: words separated by commas."""
    return ",".join(map(word, sorted(engines)))
