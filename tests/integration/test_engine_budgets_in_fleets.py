"""An engine's budget lives in Redis, and comes back out of the logs of live runs if Redis loses it."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from chainette_workers.worker.configuration import WorkerConfig

from chainette.core.usercode.loading import load_chain
from chainette.engine.budget import Reserved
from chainette.errors import RunStopped
from chainette.fleet.redis.redis_queue import FleetQueue
from chainette.io.rundir.result import RunResult
from tests.integration.test_fleet_trouble import Driven
from tests.support.cli import CHAIN, Project
from tests.support.serving import serving
from tests.support.valkey import Database


def test_a_redis_that_was_emptied_learns_from_the_log_what_an_engine_was_asked(tmp_path: Path, database: Database) -> None:
    database.may_leave("*")  # the run may go on
    Project(tmp_path, rows=24)
    (tmp_path / "chain.py").write_text(
        CHAIN.replace('"writer-model", "simulated"', '"writer-model", "simulated", budget="20req"')
    )
    chain = load_chain("chain.py", tmp_path).chain

    def run(**more: Any) -> RunResult:
        with serving(WorkerConfig(database.url, ["writer", "judge"], str(tmp_path), 64)):
            place: dict[str, Any] = {"chain_ref": "chain.py", "chain_root": str(tmp_path), "drive": Driven(database.url)}
            return chain.run(tmp_path / "in.jsonl", tmp_path / "out", **place, **more)

    granted, reserve = list[int](), FleetQueue.reserve

    def counted(*arguments: Any) -> Reserved:
        reply = reserve(*arguments)
        granted.append(reply.granted)
        return reply

    with mock.patch.object(FleetQueue, "reserve", counted):
        with pytest.raises(RunStopped, match=r"engine 'writer' is spent: 20 of 20 req used"):
            run()
        assert sum(granted) == 20
        database.client.flushdb()
        with pytest.raises(RunStopped, match=r"engine 'writer' is spent: 30 of 30 req used"):
            run(resume=True, budget="writer=30req")
    assert sum(granted) == 30
