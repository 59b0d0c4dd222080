"""A worker's heartbeat goes on whatever happens."""

from __future__ import annotations

import logging
import threading

import pytest
from chainette_workers.worker import heartbeat
from chainette_workers.worker.engine_pool import EnginePool
from chainette_workers.worker.engine_worker import EngineWorker
from chainette_workers.worker.heartbeat import Heartbeat
from chainette_workers.worker.served_runs import ServedRuns

from chainette.fleet.memory.memory_queue import MemoryQueue
from chainette.run.in_flight import Lane
from tests.support.patience import LONG


def test_an_unexpected_error_is_logged_once_and_the_beats_go_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(heartbeat, "BEAT", 0.01)
    beats, again = 0, threading.Event()

    def words() -> dict[str, str | int | float]:
        nonlocal beats
        beats += 1
        if beats in (2, 3):
            raise RuntimeError("of our own code")
        if beats == 4:
            again.set()
        return {}

    queue = MemoryQueue()
    beating = Heartbeat(queue, "w1", words, deadline=LONG, queues=list)
    beating.beat()
    beating.start()
    try:
        assert again.wait(LONG)
    finally:
        beating.stop()
    assert [*queue.workers()] == ["w1"]
    [logged] = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert "worker w1: a heartbeat failed" in logged.message and logged.exc_info is not None


def test_a_worker_may_open_an_engine_while_its_rows_are_counted() -> None:
    queue = MemoryQueue()
    worker = EngineWorker(queue, ServedRuns(queue, ("sim",), lambda _info: None), EnginePool())

    class Opens(Lane):
        """A second engine is opened while this one's budget is read, as the event loop does beside the heartbeat."""

        def __getattribute__(self, name: str) -> object:
            if name == "budget":
                worker._lanes.setdefault("other", Lane(5))
            return super().__getattribute__(name)

    worker._lanes["first"] = Opens(3)
    assert worker.rows_budget == 3
    assert worker.rows_budget == 8
