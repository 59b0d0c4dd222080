"""The metrics of services: one address names them all, and a sink's counts are there after the run."""

from __future__ import annotations

import json
import threading
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from chainette_workers.metrics.address import MetricsEndpoint
from chainette_workers.service.coordinator_service import CoordinatorDuty
from chainette_workers.service.service import Places, serve
from chainette_workers.service.sink_service import SinkDuty
from chainette_workers.worker.configuration import WorkerConfig
from chainette_workers.worker.standalone import serve as work
from prometheus_client.parser import text_string_to_metric_families

from chainette.core.compile import compile_chain
from chainette.core.usercode.loading import load_chain
from chainette.fleet.redis.run_registry import Board, Order
from chainette.io.rundir.chain_marks import marks_of
from tests.support.cli import Project, until
from tests.support.patience import LONG
from tests.support.valkey import Database

Numbers = dict[tuple[str, ...], float]


@contextmanager
def fleet(url: str, folder: Path) -> Iterator[None]:
    """A coordinator, a sink and a worker, in threads."""
    stopping = threading.Event()
    places = Places(folder, folder, folder)
    config = WorkerConfig(url, ["writer", "judge"], str(folder), 64, metrics=MetricsEndpoint())
    calls = [
        partial(serve, url, CoordinatorDuty(places), stopping, metrics=MetricsEndpoint()),
        partial(serve, url, SinkDuty(places, url), stopping, metrics=MetricsEndpoint()),
        partial(work, config, stopping),
    ]
    with ThreadPoolExecutor(len(calls)) as side:
        running = [side.submit(call) for call in calls]
        try:
            yield
        finally:
            stopping.set()
            for each in running:
                each.result(LONG)


def get(address: str, path: str) -> bytes:
    with urllib.request.urlopen(f"http://{address}{path}", timeout=LONG) as reply:
        return bytes(reply.read())


def numbers(address: str, run: str) -> Numbers:
    """A process's series of a run, by name and other labels."""
    families = text_string_to_metric_families(get(address, "/metrics").decode())
    return {
        (sample.name, *(value for label, value in sorted(sample.labels.items()) if label != "run")): sample.value
        for family in families
        for sample in family.samples
        if sample.labels.get("run") == run
    }


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path, rows=96, invalid=0.3)


def handed_over(project: Project, database: Database, run: str) -> dict[str, Any]:
    """The end of a run of the project."""
    board = Board(database.client)
    loaded = load_chain("chain.py", project.path)
    marks = marks_of(compile_chain(loaded.chain))
    order = Order(
        chain_ref="chain.py", digest=loaded.digest, files=loaded.names, marks=marks, inputs=("in.jsonl",), directory=run
    )
    board.ask(run, order)
    until(lambda: board.run(run) is None)
    found = json.loads((project.path / run / "metadata.json").read_text())
    assert found["status"] == "finished"
    assert isinstance(found, dict)
    return found


@pytest.mark.long
def test_services_are_found_through_the_coordinator_and_keep_their_numbers(project: Project, database: Database) -> None:
    board = Board(database.client)
    with fleet(database.url, project.path):
        members = until(lambda: len(found := board.members()) == 3 and found)
        addresses = {member.kind: member.metrics for member in members.values()}
        assert set(addresses) == {"coordinator", "sink", "worker"}
        found = json.loads(get(addresses["coordinator"], "/sd"))
        assert {target["labels"]["role"]: target["targets"] for target in found} == {
            role: [address] for role, address in addresses.items()
        }
        runs = {run: handed_over(project, database, run) for run in ("run-a", "run-b")}
        for run, metadata in runs.items():
            counted = numbers(addresses["sink"], run)
            for step, counts in metadata["steps"].items():
                assert counted["chainette_rows_done_total", step] == counts["out"]
            for reason, rows in metadata["steps"]["grade"]["reasons"].items():
                assert counted["chainette_rows_rejected_total", reason, "grade"] == rows
            assert (
                counted["chainette_completion_tokens_total", "grade"]
                == metadata["steps"]["grade"]["usage"]["completion_tokens"]
            )
            assert counted["chainette_sink_fsync_seconds_count",] > 0
        assert not numbers(addresses["coordinator"], "run-a"), "the run is closed: Redis knows nothing of it"
