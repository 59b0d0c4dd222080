"""A process's endpoint beside a real Redis: found by its heartbeat, there while Redis is not."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from contextlib import closing

import pytest
from chainette_workers.metrics.address import MetricsEndpoint
from chainette_workers.metrics.catalogue import ProcessKind
from chainette_workers.metrics.watching import watching

from chainette.fleet.protocol.member_fields import metrics_words
from chainette.fleet.protocol.seals import VARIABLE, seals_of
from chainette.fleet.redis.redis_queue import FleetQueue
from tests.support.patience import LONG
from tests.support.proxy import FaultProxy
from tests.support.valkey import Database, connect


def get(address: str, path: str) -> bytes:
    with urllib.request.urlopen(f"http://{address}{path}", timeout=LONG) as reply:
        return bytes(reply.read())


def test_a_process_is_found_by_what_its_heartbeat_says(database: Database) -> None:
    queue = FleetQueue(database.client)
    with watching(MetricsEndpoint(), database.client, ProcessKind.FLEET) as watch:
        queue.beat("c1", {"kind": "coordinator", **watch.words}, 3600)
        found = json.loads(get(watch.words["metrics"], "/sd"))
        assert found == [{"targets": [watch.words["metrics"]], "labels": {"worker": "c1", "role": "coordinator"}}]
    queue.leave("c1")


def test_with_a_fleet_key_members_on_other_machines_are_found_by_their_seal(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "0123456789abcdef")
    queue = FleetQueue(database.client)
    with watching(MetricsEndpoint(), database.client, ProcessKind.FLEET) as watch:
        assert watch.words["metrics_seal"]
        queue.beat("w1", metrics_words("10.0.0.1:9100", seals_of()), 3600)
        queue.beat("w2", {"metrics": "10.0.0.2:9100", "metrics_seal": watch.words["metrics_seal"]}, 3600)
        found = json.loads(get(watch.words["metrics"], "/sd"))
    assert [target["targets"] for target in found] == [["10.0.0.1:9100"]]
    for name in ("w1", "w2"):
        queue.leave(name)


def test_a_worker_has_no_list_of_processes(database: Database) -> None:
    with (
        watching(MetricsEndpoint(), database.client, ProcessKind.WORKER) as watch,
        pytest.raises(urllib.error.HTTPError) as error,
    ):
        get(watch.words["metrics"], "/sd")
    assert error.value.code == 404
    error.value.close()


def test_while_redis_hangs_metrics_are_there_and_the_list_is_not(database: Database, proxy: FaultProxy) -> None:
    with closing(connect(proxy.url)) as client, watching(MetricsEndpoint(), client, ProcessKind.FLEET) as watch:
        address = watch.words["metrics"]
        proxy.blackhole()
        assert b"\nchainette_redis_up 0.0\n" in get(address, "/metrics")
        with pytest.raises(urllib.error.HTTPError) as error:
            get(address, "/sd")
        assert error.value.code == 503
        error.value.close()
        proxy.heal()


def test_a_process_without_an_endpoint_is_watched_by_nothing(database: Database) -> None:
    with watching(None, database.client, ProcessKind.WORKER) as watch:
        watch.read("chainette_rows_in_flight", lambda: 1)
        assert not watch.words
