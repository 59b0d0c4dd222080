"""The metrics of real runs: at the end they are the numbers of metadata.json, however often a process began again."""

from __future__ import annotations

import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from chainette_workers.metrics.address import MetricsEndpoint
from chainette_workers.metrics.catalogue import ProcessKind
from chainette_workers.metrics.process_metrics import Metrics
from chainette_workers.worker.configuration import WorkerConfig
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from chainette import Chain
from chainette.core.compile import compile_chain
from chainette.core.usercode.loading import load_chain
from chainette.errors import RunStopped
from chainette.fleet.redis.fleet_view import look
from chainette.hooks import Stage
from chainette.io.rundir.result import RunResult
from chainette.records import CHAIN_INPUT
from tests.integration.test_fleet_trouble import Driven
from tests.support.cli import Project, until
from tests.support.patience import LONG
from tests.support.serving import serving
from tests.support.valkey import Database

Numbers = Counter[tuple[str, ...]]


class Site:
    """A chain that rejects some rows, an input with bad lines, and a Redis."""

    def __init__(self, path: Path, url: str) -> None:
        self.path, self.url = path, url
        Project(path, rows=96, invalid=0.3)
        source = (path / "chain.py").read_text()
        (path / "chain.py").write_text(source.replace('"writer-model", "simulated"', '"w", "simulated", price={"out": 1e6}'))
        with (path / "in.jsonl").open("a") as file:
            file.write("{bad\nworse\n")
        self.chain: Chain = load_chain("chain.py", path).chain

    def run(self, metrics: Metrics, *, resume: bool = False, moves: int | None = None) -> RunResult:
        hook = metrics.of_run("run-a", compile_chain(self.chain))
        return self.chain.run(
            self.path / "in.jsonl",
            self.path / "out",
            chain_ref="chain.py",
            chain_root=str(self.path),
            drive=Driven(self.url, window=24, moves=moves),
            resume=resume,
            hooks=[hook],
        )

    @contextmanager
    def worker(self) -> Iterator[None]:
        config = WorkerConfig(self.url, ["writer", "judge"], str(self.path), 64, metrics=MetricsEndpoint())
        with serving(config):
            yield


@pytest.fixture
def site(tmp_path: Path, database: Database) -> Site:
    return Site(tmp_path, database.url)


def sink() -> Metrics:
    return Metrics(ProcessKind.SINK)


def numbers(metrics: Metrics) -> Numbers:
    """Counters by name and labels but the run."""
    return Counter(
        {
            (sample.name, *(value for label, value in sample.labels.items() if label != "run")): int(sample.value)
            for family in metrics.collect()
            for sample in family.samples
            if sample.name.startswith("chainette_") and sample.name.endswith("_total") and sample.value
        }
    )


def meant(metadata: dict[str, Any]) -> Numbers:
    """The same numbers as metadata.json has them."""
    found: Numbers = Counter({("chainette_rows_finished_total",): metadata["rows_finished"]})
    for step, counts in metadata["steps"].items():
        found["chainette_rows_done_total", step] += counts["out"]
        found["chainette_rows_dropped_total", step] += counts["dropped"]
        for reason, rows in counts.get("reasons", {}).items():
            found["chainette_rows_rejected_total", step, reason] += rows
        usage = counts.get("usage", {"prompt_tokens": 0, "completion_tokens": 0})
        found["chainette_rows_retried_total", step] += counts.get("asked_again", 0)
        found["chainette_prompt_tokens_total", step] += usage["prompt_tokens"]
        found["chainette_completion_tokens_total", step] += usage["completion_tokens"]
    return +found


def results(found: Numbers) -> Numbers:
    """Without what only metrics count, or count in fractions."""
    apart = ("chainette_sink_written_bytes_total", "chainette_cost_usd_total", "chainette_gpu_seconds_total")
    return Counter({key: value for key, value in found.items() if key[0] not in apart})


@pytest.mark.long
def test_at_the_end_the_numbers_are_those_of_the_metadata(site: Site) -> None:
    metrics = sink()
    with site.worker():
        result = site.run(metrics)
    found = numbers(metrics)
    assert results(found) == meant(result.metadata)
    assert found["chainette_rows_rejected_total", CHAIN_INPUT, "invalid_input"] == 2
    assert any(key[0] == "chainette_rows_rejected_total" and key[1] == "grade" for key in found)
    cost = sum(value for key, value in found.items() if key[0] == "chainette_cost_usd_total")
    assert cost == result.metadata["cost"]["usd"] > 0
    sizes = sum(path.stat().st_size for path in (site.path / "out").glob("*/*.jsonl"))
    assert found["chainette_sink_written_bytes_total",] == sizes


@pytest.mark.long
@pytest.mark.parametrize("moves", [3, 9])
def test_a_sink_that_begins_again_counts_nothing_twice(site: Site, moves: int) -> None:
    first, second = sink(), sink()
    with site.worker():
        with pytest.raises(RunStopped):
            site.run(first, moves=moves)
        result = site.run(second, resume=True)
    assert numbers(first).total() > 0 and numbers(second).total() > 0
    assert results(numbers(first) + numbers(second)) == meant(result.metadata)


@pytest.mark.long
def test_workers_that_come_and_go_change_no_number(site: Site) -> None:
    metrics = sink()
    with ThreadPoolExecutor(1) as side:
        with site.worker():
            run = side.submit(site.run, metrics)
            until(lambda: numbers(metrics))
        with site.worker():
            result = run.result(LONG)
    assert results(numbers(metrics)) == meant(result.metadata)


def scraped_at_rest(address: str) -> list[Sample]:
    """The numbers of a worker; none while it still hears of the commit that ended the run."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=LONG) as reply:
        text = reply.read().decode()
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    busy = any(sample.name == "chainette_rows_in_flight" and sample.value for sample in samples)
    return [] if busy else samples


@pytest.mark.long
def test_a_worker_says_where_its_units_spent_their_time(site: Site, database: Database) -> None:
    with site.worker():
        result = site.run(sink())
        [member] = look(database.client).members.values()
        samples = until(lambda: scraped_at_rest(member.metrics))
    counts = {
        (sample.labels["step"], sample.labels["stage"]): sample.value
        for sample in samples
        if sample.name == "chainette_unit_stage_seconds_count"
    }
    roots = (result.metadata["records"] - 2) // 8  # the bad lines have a root of their own
    assert {counts["extract", stage] for stage in Stage} == {roots}
    assert counts["split", "generate"] == counts["split", "commit"] == roots and counts["split", "render"] == 0
    found = {(sample.name, sample.labels.get("engine")): sample.value for sample in samples}
    assert found["chainette_engine_loads_total", "judge"] == found["chainette_engine_loaded", "judge"] == 1
    assert found["chainette_engine_busy_seconds_total", "judge"] > 0
    assert found["chainette_engine_requests_in_flight", "judge"] == 0 == found["chainette_rows_in_flight", None]
    assert found["chainette_rows_in_flight_max", None] == 128
    assert found["chainette_leases_lost_total", None] == 0 == found["chainette_workers_lost_total", None]
