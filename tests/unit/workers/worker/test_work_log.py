"""The lines a worker logs about its work."""

from __future__ import annotations

import pytest
from chainette_workers.worker.work_log import WorkLog

from chainette.engine.base import Completion, Finish
from chainette.engine.config import make_config
from chainette.engine.lifecycle import create_engine
from chainette.hooks import Stage
from chainette.io.rundir.event_types import EngineLoaded, EngineReleased
from chainette.records import Usage
from tests.support.fleet import straight


@pytest.fixture
def said() -> list[str]:
    return []


def test_an_engine_is_named_before_it_loads_when_it_is_ready_and_when_it_is_gone(said: list[str]) -> None:
    log, config = WorkLog(said.append), make_config("sim", "none", "simulated")
    engine = log.opening(create_engine)(config)
    log.on_event(EngineLoaded.of(config, engine, 2.04))
    log.on_event(EngineReleased(engine="sim"))
    assert said == ["engine sim: loading none (simulated)", "engine sim: ready after 2.0 s", "engine sim: released"]


def test_a_run_is_named_once_and_its_end_has_the_share_of_this_worker(said: list[str]) -> None:
    log = WorkLog(said.append)
    for epoch in range(2):
        hook = log.of_run("r1", straight())
        for stage in (Stage.WAIT, Stage.COMMIT):
            hook.on_stage("first", stage, 0.1)
        hook.on_stage("second", Stage.COMMIT, 0.1 + epoch)
    hook.on_answers("second", [], [Completion(text="x", finish=Finish.STOP, usage=Usage())] * 3)
    log.of_run("r2", straight())
    log.forget_run("r1")
    log.forget_run("r1")
    log.end()
    assert said == [
        "run r1: serving it (chain straight)",
        "run r2: serving it (chain straight)",
        "run r1: over; from this worker: first 2 units, second 2 units with 3 answers",
        "run r2: left to others; from this worker: nothing",
    ]
