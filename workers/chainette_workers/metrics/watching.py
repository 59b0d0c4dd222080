"""A process's metrics from its first moment to its last: gathered, served, and known to others by its heartbeat."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from chainette.fleet.redis.connect import impatient
from chainette.fleet.redis.fleet_view import Lookout
from chainette.hooks import Hook, Hooks
from chainette.run.session import Session
from chainette_workers.metrics.catalogue import Part
from chainette_workers.metrics.endpoint import Endpoint, Route, Unavailable, serving, targets

if TYPE_CHECKING:
    import redis

    from chainette_workers.metrics.metrics import Metrics

__all__ = ["Watch", "watching"]

#: Seconds that a scrape waits for Redis: less than scrapers and health checks wait for the scrape.
_SCRAPE = 2.0


@dataclass(frozen=True)
class Watch:
    """What watches a process; nothing, where it has no endpoint."""

    hook: Hook = field(default_factory=Hook)
    #: What its heartbeat says of it.
    words: Mapping[str, str] = field(default_factory=dict)
    #: Has a gauge asked of its owner, by name.
    read: Callable[[str, Callable[[], float]], None] = lambda _name, _value: None

    def over(self, session: Session) -> Session:
        """The session with its run watched as well."""
        of_run = self.hook.of_run(session.writer.state.run.run_id, session.plan)
        return replace(session, hook=Hooks([session.hook, of_run]))


@contextmanager
def watching(endpoint: Endpoint | None, connection: redis.Redis, *parts: Part, engines: Iterable[str] = ()) -> Iterator[Watch]:
    """The metrics of a process that has these parts, served until the end.

    Raises:
        RunError: the endpoint's address cannot be had.
    """
    if endpoint is None:
        yield Watch()
        return
    from chainette_workers.metrics.metrics import Metrics

    with impatient(connection, _SCRAPE) as client:
        lookout = Lookout(client)
        metrics = Metrics(*parts, engines=engines, look=lookout.look)
        with serving(endpoint, _routes(metrics, lookout), _redis_at(connection)) as address:
            yield Watch(metrics, {"metrics": address}, metrics.read)


def _redis_at(connection: redis.Redis) -> tuple[str, int]:
    """Where Redis is; on this machine, where it is reached by a socket's path."""
    said = connection.connection_pool.connection_kwargs
    return str(said.get("host", "127.0.0.1")), int(said.get("port", 6379))


def _routes(metrics: Metrics, lookout: Lookout) -> dict[str, Route]:
    routes: dict[str, Route] = {"/metrics": metrics.text}
    if Part.FLEET in metrics.parts:
        routes["/sd"] = lambda _accept: ("application/json", _discovered(lookout))
    return routes


def _discovered(lookout: Lookout) -> bytes:
    """Who has an endpoint.

    Raises:
        Unavailable: Redis does not answer; a scraper goes on with those it knows.
    """
    seen = lookout.look()
    if seen is None:
        raise Unavailable("Redis does not answer")
    return targets(seen.members)
