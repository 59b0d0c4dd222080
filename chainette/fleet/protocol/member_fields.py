"""What a process of the fleet says about itself in Redis: workers, services and `enqueue`."""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import unquote

import msgspec

from chainette.fleet.protocol.hash_fields import Count, HashFields, Seconds
from chainette.fleet.protocol.keys import word

__all__ = ["WORKER", "Member", "listed"]

#: The kind of a process that answers units.
WORKER = "worker"


class Member(HashFields, frozen=True):
    """One process whose lease holds."""

    kind: str = WORKER
    #: The engines that it serves, as `listed` writes them.
    names: str = msgspec.field(default="", name="engines")
    #: Rows and units in its hands, and the rows that its engines have room for.
    rows_in_flight: Count = 0
    rows_budget: Count = 0
    units_in_flight: Count = 0
    #: Times that it gave one engine up for another, and seconds that the last time took.
    swaps: Count = 0
    swap_seconds: Seconds = 0.0
    #: Share of its time that went into swaps.
    swapping: Seconds = 0.0
    #: Where its metrics are served, `host:port`.
    metrics: str = ""
    host: str = ""
    pid: Count = 0
    started: str = ""
    #: Not empty once somebody asked it to end.
    stop: str = ""

    @property
    def is_worker(self) -> bool:
        return self.kind == WORKER

    @property
    def engines(self) -> list[str]:
        """The engines that it serves."""
        return [unquote(name) for name in self.names.split(",") if name]


def listed(engines: Iterable[str]) -> str:
    """The engines that a worker serves, as it says them: words with commas between."""
    return ",".join(map(word, sorted(engines)))
