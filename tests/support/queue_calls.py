"""Calls of the queue on a real Valkey: with the reply lost, refused, or without any effect."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import redis

from chainette.fleet.protocol.messages import Result
from chainette.fleet.protocol.queue_values import Lost
from chainette.fleet.redis.redis_queue import FleetQueue
from tests.support.fleet import QueueRun, snapshot
from tests.support.proxy import FaultProxy

__all__ = ["loses_its_reply", "refused", "rows_of", "unchanged", "unchanged_but_held"]


def loses_its_reply(proxy: FaultProxy, queue: FleetQueue, script: str, call: Callable[[], object]) -> None:
    """Calls with the script's reply lost: it happens, and the caller does not know."""
    queue._redis.script_load(queue._scripts.by_name[script].script)
    proxy.lose_reply_to(str(queue._scripts.by_name[script].sha).encode())
    with pytest.raises(redis.ConnectionError):
        call()
    proxy.heal()


def unchanged(run: QueueRun, call: Callable[[], object]) -> object:
    """The call's reply; it must write nothing."""
    before = snapshot(run.client)
    found = call()
    assert snapshot(run.client) == before
    return found


def refused(run: QueueRun, call: Callable[[], object]) -> None:
    """The call raises Lost and writes nothing."""
    before = snapshot(run.client)
    with pytest.raises(Lost):
        call()
    assert snapshot(run.client) == before


def rows_of(run: QueueRun, node: str) -> list[str]:
    """The row ids the stream says a node gave, in order."""
    results = [entry.message for entry in run.entries if isinstance(entry.message, Result)]
    return sorted(output.row_id for result in results if result.node == node for output in result.outputs)


def unchanged_but_held(run: QueueRun, call: Callable[[], object]) -> object:
    """As `unchanged`; the caller's hands may become empty."""
    before = snapshot(run.client)
    found = call()
    after = snapshot(run.client)
    for key in [key for key in before if key.startswith(b"chainette:held:")]:
        del before[key]
        after.pop(key, None)
    assert after == before
    return found
