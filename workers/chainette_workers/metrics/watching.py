"""The metrics of a process during its life: counted, served, and announced by its heartbeat."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from chainette.fleet.protocol.member_fields import metrics_words
from chainette.fleet.protocol.seals import Seals, seals_of
from chainette.fleet.redis.cached_view import CachedView
from chainette.fleet.redis.connect import impatient
from chainette.hooks import Hook, Hooks
from chainette_workers.metrics.address import MetricsEndpoint
from chainette_workers.metrics.catalogue import ProcessKind

if TYPE_CHECKING:
    import redis

    from chainette.run.session import Session
    from chainette_workers.metrics.endpoint import Route
    from chainette_workers.metrics.process_metrics import Metrics

__all__ = ["Watch", "watching"]

#: The seconds for which a scrape waits for Redis; scrapers and health checks wait longer for the scrape.
_SCRAPE = 2.0


@dataclass(frozen=True)
class Watch:
    """Hooks that count the work of a process; they do nothing if it has no endpoint."""

    hook: Hook = field(default_factory=Hook)
    #: Fields for the heartbeat of the process.
    words: Mapping[str, str] = field(default_factory=dict)
    #: Makes the gauge of this name call a function at each scrape.
    read: Callable[[str, Callable[[], float]], None] = lambda _name, _value: None

    def over(self, session: Session) -> Session:
        """The session, with metrics for its run."""
        of_run = self.hook.of_run(session.writer.state.run.run_id, session.plan)
        return replace(session, hook=Hooks([session.hook, of_run]))


@contextmanager
def watching(
    endpoint: MetricsEndpoint | None, connection: redis.Redis, *parts: ProcessKind, engines: Iterable[str] = ()
) -> Iterator[Watch]:
    """Serves the metrics of a process of these kinds inside the `with` block.

    Raises:
        RunError: the address of the endpoint is not available.
    """
    if endpoint is None:
        yield Watch()
        return
    from chainette_workers.metrics.endpoint import serving
    from chainette_workers.metrics.process_metrics import Metrics

    with impatient(connection, _SCRAPE) as client:
        lookout = CachedView(client)
        metrics, seals = Metrics(*parts, engines=engines, look=lookout.look), seals_of()
        routes = _routes(metrics, lookout, seals, anywhere=endpoint.anywhere)
        with serving(endpoint, routes, _redis_at(connection)) as address:
            yield Watch(metrics, metrics_words(address, seals), metrics.read)


def _redis_at(connection: redis.Redis) -> tuple[str, int]:
    """The host and port of Redis; a port of this machine if Redis listens on a Unix socket."""
    said = connection.connection_pool.connection_kwargs
    return str(said.get("host", "127.0.0.1")), int(said.get("port", 6379))


def _routes(metrics: Metrics, lookout: CachedView, seals: Seals, *, anywhere: bool) -> dict[str, Route]:
    routes: dict[str, Route] = {"/metrics": metrics.text}
    if ProcessKind.FLEET in metrics.parts:
        routes["/sd"] = lambda _accept: ("application/json", _discovered(lookout, seals, anywhere=anywhere))
    return routes


def _discovered(lookout: CachedView, seals: Seals, *, anywhere: bool) -> bytes:
    """The processes with an endpoint, for Prometheus.

    Raises:
        Unavailable: Redis does not answer; Prometheus keeps the targets that it knows.
    """
    from chainette_workers.metrics.endpoint import Unavailable, targets

    seen = lookout.look()
    if seen is None:
        raise Unavailable("Redis does not answer")
    return targets(seen.members, seals, anywhere=anywhere)
