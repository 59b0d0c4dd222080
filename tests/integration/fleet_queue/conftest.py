"""Fixtures of the tests of the queue on a real Valkey."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from chainette.fleet.protocol.queue_values import AdmissionResult
from chainette.fleet.redis.redis_queue import FleetQueue
from tests.support.fleet import QueueRun, opened, straight
from tests.support.proxy import FaultProxy
from tests.support.valkey import Database, connect


@pytest.fixture
def run(database: Database) -> Iterator[QueueRun]:
    """A run of two Apply nodes whose first root waits."""
    with opened(database.client, straight()) as run:
        assert run.admit() is AdmissionResult.OK
        yield run


@pytest.fixture
def lossy(proxy: FaultProxy) -> Iterator[FleetQueue]:
    """Another connection to the same Redis, through `proxy`."""
    with connect(proxy.url) as client:
        yield FleetQueue(client)
