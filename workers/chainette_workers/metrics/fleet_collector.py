"""FleetCollector: the metrics of the whole fleet, read from Redis at each scrape."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from chainette.fleet.redis.fleet_view import Fleet
from chainette.utils.terminal_text import visible_line
from chainette_workers.metrics.catalogue import CATALOGUE, ProcessKind
from chainette_workers.metrics.overview import Overview

__all__ = ["FleetCollector"]

#: The most series of the fleet, and the most characters of a label: their names come from Redis.
_MOST_OF_FLEET, _LABEL = 50_000, 200


class FleetCollector(Collector):
    """The state of the whole fleet, read from Redis at each scrape."""

    def __init__(self, look: Callable[[], Fleet | None], clock: Callable[[], float]) -> None:
        self._look = look
        self._overview = Overview(clock)

    def describe(self) -> list[Family]:
        """The metric families, without a call to Redis."""
        return list(_families().values())

    def collect(self) -> Iterator[Family]:
        families = _families()
        seen = self._look()
        families["chainette_redis_up"].add_metric([], seen is not None)
        if seen is not None:
            for name, labels, value in islice(self._overview.values(seen), _MOST_OF_FLEET):
                families[name].add_metric([visible_line(label)[:_LABEL] for label in labels], value)
        return iter(families.values())


def _families() -> dict[str, GaugeMetricFamily]:
    return {
        metric.name: GaugeMetricFamily(metric.name, metric.meaning, labels=metric.labels, unit=metric.unit)
        for metric in CATALOGUE
        if metric.part is ProcessKind.FLEET
    }
