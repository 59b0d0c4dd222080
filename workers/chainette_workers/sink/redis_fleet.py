"""The drive of a run whose units go through a Redis that others serve."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import ClassVar

import redis

from chainette.core.plan import Plan
from chainette.errors import RunError
from chainette.fleet.protocol.contract import LeasedQueue
from chainette.fleet.protocol.queue_values import Lost
from chainette.fleet.protocol.run_fields import RunInfo
from chainette.fleet.redis.connect import chosen_url, connect, shown
from chainette.fleet.redis.redis_queue import FleetQueue
from chainette.fleet.redis.run_registry import Board, Role
from chainette.run.session import Session
from chainette_workers.metrics.address import MetricsEndpoint
from chainette_workers.metrics.catalogue import ProcessKind
from chainette_workers.metrics.watching import watching
from chainette_workers.runtime import warn_of_eviction
from chainette_workers.sink.drive import DriveLoop
from chainette_workers.sink.service_lease import ServiceLease

__all__ = ["RedisFleet", "take_out"]


@dataclass(frozen=True)
class RedisFleet:
    """Moves a session's units through workers that serve a Redis; the `drive` of RunOptions.

    Raises (`check`, and when called):
        RedisUnavailable: Redis does not answer at the start. Later on, it is waited for.
        RunError: it denies access.
    """

    url: str | None = None
    #: Serves its metrics here; None: nowhere.
    metrics: MetricsEndpoint | None = None
    #: Units in flight survive this process, and the next one goes on with them.
    attaches: ClassVar[bool] = True

    @property
    def way(self) -> dict[str, str]:
        return {"redis": shown(chosen_url(self.url))}

    def check(self, _plan: Plan, /) -> None:
        connect(self.url).close()

    def __call__(self, session: Session) -> None:
        me = f"enqueue-{secrets.token_hex(6)}"
        roles = {Role.SINK.value: me, Role.COORDINATOR.value: me}
        with connect(self.url) as connection, watching(self.metrics, connection, ProcessKind.SINK, ProcessKind.FLEET) as watch:
            warn_of_eviction(connection)
            board, session = Board(connection), watch.over(session)
            with ServiceLease(board, me, "enqueue", watch.words) as lease:
                DriveLoop(session, FleetQueue(connection), board, roles, tend=lambda _moved: lease.renew()).run()

    def clean(self, run: str) -> None:
        """See `options.Drive`: its sink died after the log's last line."""
        try:
            with connect(self.url) as connection:
                info = Board(connection).run(run)
                if info is not None and info.epoch >= 0:
                    take_out(FleetQueue(connection), info)
        except (RunError, redis.RedisError, Lost) as error:
            raise RunError(f"whatever Redis still holds of run {run} stays there: {error}") from error


def take_out(queue: LeasedQueue, info: RunInfo) -> None:
    """Closes a run for its sink, which will not do so itself.

    Raises:
        Lost: another sink has taken it meanwhile.
    """
    queue.close(info.run, info.epoch, info.owner, info.queues)
