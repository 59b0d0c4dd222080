"""Two engines on one device, or of one name with other settings: one worker, one of them open at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
import redis
from chainette_workers.sink.redis_fleet import RedisFleet
from chainette_workers.worker.configuration import WorkerConfig
from chainette_workers.worker.engine_pool import EnginePool
from chainette_workers.worker.engine_turns import EngineTurns

from chainette.core.run_settings import Format
from chainette.core.usercode.loading import load_chain
from chainette.engine.base import Engine
from chainette.engine.config import EngineConfig, make_config
from chainette.engine.lifecycle import create_engine
from chainette.errors import RunStopped
from chainette.fleet.redis.redis_queue import FleetQueue
from chainette.fleet.redis.run_registry import Board
from chainette.io.rundir.result import RunResult
from chainette.run.executor import resume
from tests.integration.test_fleet_trouble import Background, Driven, Failing, Site
from tests.support.chains import content
from tests.support.cli import FOLDERS, until
from tests.support.serving import serving
from tests.support.valkey import Database

BOTH = ('"writer-model", "simulated"', '"judge-model", "simulated"')


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return on_one_device(tmp_path)


def on_one_device(path: Path, keys: str = "") -> Site:
    """The project's chain with both of its engines on one device."""
    site = Site(path)
    text = (path / "chain.py").read_text()
    for engine in BOTH:
        text = text.replace(engine, f"{engine}, exclusive=True{keys}")
    (path / "chain.py").write_text(text)
    site.chain = load_chain("chain.py", path).chain
    return site


@contextmanager
def worker(site: Site, url: str, rows: int | None = None) -> Iterator[None]:
    with serving(WorkerConfig(url, ["writer", "judge"], str(site.path), rows)):
        yield


def opened(site: Site) -> list[str]:
    """Names of engines in the order in which they were opened; fails where two were open together."""
    order: list[str] = []
    open_now = ""
    lines = [event for kind in ("engine_loaded", "engine_released") for event in site.events(kind)]
    for event in sorted(lines, key=lambda event: event["seq"]):
        if event["type"] == "engine_loaded":
            assert not open_now, f"{event['engine']} was opened beside {open_now}"
            open_now = event["engine"]
            order.append(open_now)
        else:
            assert open_now == event["engine"]
            open_now = ""
    return order


@pytest.mark.long
def test_a_chain_with_two_models_finishes_on_one_device_and_swaps_a_few_times(site: Site, database: Database) -> None:
    run = Background(site, RedisFleet(database.url))
    until(lambda: len(database.client.keys("rq:job:*")) == 12)
    with worker(site, database.url):
        result = run.end()
    assert isinstance(result, RunResult), result
    assert content(result) == site.expected
    order = opened(site)
    assert order[:2] == ["writer", "judge"] and len(order) <= 5, order


def phases(site: Site) -> list[int]:
    return [event.get("phase", 0) for event in site.events("run_resumed")]


@pytest.mark.long
def test_a_run_whose_engines_would_be_swapped_too_often_goes_in_phases(tmp_path: Path, database: Database) -> None:
    site = on_one_device(tmp_path, ", load=0.4")
    run = Background(site, Driven(database.url, window=8))
    with worker(site, database.url):
        result = run.end()
    assert isinstance(result, RunResult), result
    site.require_whole(result)
    assert phases(site) == [1]
    assert len(opened(site)) <= 8, opened(site)  # one by one it would be two for each of twelve roots


@pytest.fixture
def thrashing(site: Site, database: Database, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A worker that says that it swaps all the time, so that runs go in phases from their first root on."""
    monkeypatch.setattr(EnginePool, "swapping", 0.9)
    with worker(site, database.url):
        until(lambda: Board(database.client).members())
        yield site


class Deaf(Failing):
    """As `Failing`; nothing is admitted before Redis was told which engines wait."""

    def admit(self, *arguments: Any) -> Any:
        if self.made["bar"] < 2:
            raise redis.ConnectionError("admit did not arrive")
        return super().admit(*arguments)


class Halting(FleetQueue):
    """Of the acknowledgements every other does not arrive."""

    acks = 0

    def ack(self, *arguments: Any) -> None:
        self.acks += 1
        if self.acks % 2:
            raise redis.ConnectionError("ack did not arrive")
        super().ack(*arguments)


@pytest.mark.parametrize("kind", [FleetQueue, Deaf, Halting])
def test_a_phase_takes_every_row_as_far_as_one_engine_brings_it(
    thrashing: Site, database: Database, kind: type[FleetQueue]
) -> None:
    drive = Driven(database.url, kind, window=8)
    result = thrashing.run(drive)
    thrashing.require_whole(result)
    assert [phase for phase in phases(thrashing) if phase] == [1] and opened(thrashing) == ["writer", "judge"]
    if isinstance(drive.queue, Deaf):
        assert drive.queue.made["bar"] >= 2 and drive.queue.made["ack"] > 2
    ends = [event for event in thrashing.events("unit_committed") if "root_done" in event]
    assert {event["epoch"] for event in ends if event["root_done"]["finished"]} == {1}


@pytest.mark.long
@pytest.mark.parametrize("moves", [2, 9, 20])
def test_a_run_that_stops_in_any_phase_goes_on_in_it_and_asks_nothing_again(
    thrashing: Site, database: Database, moves: int
) -> None:
    local = json.loads((thrashing.path / "local/metadata.json").read_text())
    with pytest.raises(RunStopped, match="enough"):
        thrashing.run(Driven(database.url, window=8, moves=moves))
    before = phases(thrashing)
    result = thrashing.run(Driven(database.url, window=8), resume=True)
    thrashing.require_whole(result)
    assert phases(thrashing)[: len(before)] == before and sorted(phases(thrashing)) == phases(thrashing)
    assert phases(thrashing)[-1] == 1 and len(phases(thrashing)) == 2
    assert result.metadata["usage"]["requests"] == local["usage"]["requests"]


@pytest.mark.long
def test_steps_that_are_recomputed_begin_with_the_first_phase(thrashing: Site, database: Database) -> None:
    thrashing.run(Driven(database.url, window=8))
    drive = Driven(database.url, window=8)
    result = resume(thrashing.path / "out", thrashing.chain, from_step="extract", drive=drive)
    thrashing.require_whole(result)
    assert phases(thrashing) == [0, 0, 1]


@pytest.mark.long
@pytest.mark.parametrize("format", ["parquet", "csv"])
def test_shards_that_are_sealed_in_another_phase_than_they_were_begun_hold_every_row(
    thrashing: Site, database: Database, format: Format
) -> None:
    path = thrashing.path
    keys: dict[str, Any] = {"chain_ref": "chain.py", "chain_root": str(path), "format": format, "max_rows_per_file": 10}
    local = thrashing.chain.run(path / "in.jsonl", path / "whole", **keys)
    result = thrashing.chain.run(path / "in.jsonl", path / "out", drive=Driven(database.url, window=8), **keys)
    assert phases(thrashing) == [1]
    for folder in FOLDERS:
        assert by_id(result, folder) == by_id(local, folder) != {}


def by_id(result: RunResult, folder: str) -> dict[str, dict[str, Any]]:
    return {row["row_id"]: row for row in result.rows(folder)}


def test_an_engine_that_is_given_up_has_answered_what_it_was_asked_before() -> None:
    asked: list[str] = []
    a, b = (make_config(name, "model", "simulated", exclusive=True) for name in "ab")

    def create(config: EngineConfig) -> Engine:
        engine = create_engine(config)
        asked.append(config.name)
        return engine

    async def swap() -> EnginePool:
        models = EnginePool(create=create)
        await models.get(a)
        assert models.occupying(b) == [a] and models.occupying(a) == []
        await models.get(b)
        assert [config.name for config in models.loaded] == ["b"]
        await models.release()
        return models

    models = anyio.run(swap)
    assert asked == ["a", "b"] and models.swaps == 1 and models.swap_seconds > 0


@pytest.mark.long
def test_runs_whose_engine_has_other_settings_take_turns_on_one_worker(site: Site, tmp_path: Path, database: Database) -> None:
    text = (site.path / "chain.py").read_text().replace(", exclusive=True", "")
    (site.path / "chain.py").write_text(text)
    other_path = tmp_path / "other"
    other_path.mkdir()
    other = Site(other_path)
    for name, model in (("chain.py", "writer-model"), ("other/chain.py", "another-model")):
        (site.path / name).write_text(text.replace("writer-model", model))
    runs = []
    for one, reference in ((site, "chain.py"), (other, "other/chain.py")):
        runs.append(Elsewhere(one, reference, site.path, database.url))
    with worker(site, database.url):
        results = [run.end() for run in runs]
    for result, one in zip(results, (site, other), strict=True):
        assert isinstance(result, RunResult), result
        assert content(result) == one.expected


class Elsewhere(Background):
    """A run whose chain lies below another folder."""

    def __init__(self, site: Site, reference: str, root: Path, url: str) -> None:
        class There(Site):
            def __init__(self) -> None:
                self.path, self.expected = site.path, site.expected
                self.chain = load_chain(reference, root).chain

            def run(self, drive: Any, *, resume: bool = False) -> RunResult:
                return self.chain.run(
                    self.path / "in.jsonl",
                    self.path / "out",
                    chain_ref=reference,
                    chain_root=str(root),
                    drive=drive,
                    resume=resume,
                )

        super().__init__(There(), RedisFleet(url))


def test_a_device_starts_with_nothing_to_choose() -> None:
    assert not EngineTurns().contended and EngineTurns().may_serve("anything")
