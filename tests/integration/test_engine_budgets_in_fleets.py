"""An engine's budget lives in Redis, and comes back out of the logs of live runs if Redis loses it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

import pytest
from chainette_workers.worker.configuration import WorkerConfig

from chainette import open_run
from chainette.core.usercode.loading import load_chain
from chainette.engine.base import Completion, Done, Request
from chainette.engine.budget import Reserved
from chainette.engine.simulated.simulator import SimulatedEngine
from chainette.errors import BudgetSpent, EngineRefused, RunStopped
from chainette.fleet.protocol.keys import RunKeys
from chainette.fleet.protocol.queue_values import Claim, Entry
from chainette.fleet.redis.redis_queue import FleetQueue
from chainette.io.rundir.result import RunResult
from tests.integration.test_fleet_trouble import Driven
from tests.support.cli import CHAIN, Project
from tests.support.patience import LONG
from tests.support.serving import serving
from tests.support.valkey import Database


class Behind(FleetQueue):
    """A sink that is behind: it reads nothing before the budget is spent."""

    has_read_all: ClassVar[threading.Event]

    def read(self, keys: RunKeys, position: tuple[str, str], count: int = 256) -> list[Entry]:
        if not self.progress(keys).exhausted:
            return []
        found = super().read(keys, position, count)
        if not found:
            self.has_read_all.set()
        return found


def test_a_run_stops_at_its_budget_once_all_that_was_answered_is_durable(tmp_path: Path, database: Database) -> None:
    database.may_leave("*")  # the run may go on
    Project(tmp_path, rows=64)
    chain = load_chain("chain.py", tmp_path).chain
    Behind.has_read_all, late, commit = threading.Event(), threading.Lock(), FleetQueue.commit

    def commit_late(*arguments: Any) -> bool:
        """The first unit is committed after all others, when the sink has read those."""
        if late.acquire(blocking=False):
            assert Behind.has_read_all.wait(LONG)
        return commit(*arguments)

    place: dict[str, Any] = {"chain_ref": "chain.py", "chain_root": str(tmp_path), "drive": Driven(database.url, Behind)}
    with (
        mock.patch.object(FleetQueue, "commit", commit_late),
        serving(WorkerConfig(database.url, ["writer", "judge"], str(tmp_path), 64)),
        pytest.raises(BudgetSpent),
    ):
        chain.run(tmp_path / "in.jsonl", tmp_path / "out", budget="40req", **place)
    assert open_run(tmp_path / "out").metadata["usage"]["requests"] == 40


@pytest.mark.parametrize("trouble", ["refused", "lost", "broken", "stopped"])
def test_a_run_ends_at_its_budget_though_requests_got_no_answer(tmp_path: Path, database: Database, trouble: str) -> None:
    """Those of a unit whose engine refused once, whose claim was lost, or which met a bug, and of a worker that was stopped."""
    database.may_leave("*")  # the run may go on
    Project(tmp_path, rows=64)
    (tmp_path / "latency").write_text("0.01")
    chain = load_chain("chain.py", tmp_path).chain
    troubles, begun = [trouble], threading.Event()
    generate, commit = SimulatedEngine.generate, FleetQueue.commit

    async def generated(self: SimulatedEngine, requests: Sequence[Request], done: Done | None = None) -> list[Completion]:
        begun.set()
        if troubles and trouble in ("refused", "broken"):
            troubles.clear()
            raise EngineRefused("401, once") if trouble == "refused" else LookupError("a bug")
        return await generate(self, requests, done)

    def committed(self: FleetQueue, claim: Claim, *arguments: Any) -> bool:
        if troubles and trouble == "lost":
            troubles.clear()
            self.release(claim, arguments[0])
        return commit(self, claim, *arguments)

    def serve() -> None:
        config = WorkerConfig(database.url, ["writer", "judge"], str(tmp_path), 64)
        with serving(config):
            assert begun.wait(LONG)
            if trouble != "stopped":
                assert over.wait(LONG)
        with serving(config):
            assert over.wait(LONG)

    place: dict[str, Any] = {"chain_ref": "chain.py", "chain_root": str(tmp_path), "drive": Driven(database.url)}
    over, workers = threading.Event(), threading.Thread(target=serve)
    with mock.patch.multiple(SimulatedEngine, generate=generated), mock.patch.multiple(FleetQueue, commit=committed):
        workers.start()
        try:
            with pytest.raises(BudgetSpent, match="40 of 40 req used"):
                chain.run(tmp_path / "in.jsonl", tmp_path / "out", budget="40req", **place)
        finally:
            over.set()
            workers.join(LONG)


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
        if arguments[-1].name == "writer":
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
