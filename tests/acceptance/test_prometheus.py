"""A real Prometheus scrapes a real small fleet: every panel and every variable of the dashboards has something to show."""

from __future__ import annotations

import json
import re
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from chainette.fleet.protocol.member_fields import Member
from chainette.fleet.redis.fleet_view import look
from chainette.fleet.server.embedded import EmbeddedServer
from deploy.grafana.make import DASHBOARDS, FOLDER
from tests.support.cli import Project, until
from tests.support.patience import LONG
from tests.support.prometheus import Prometheus, scraping
from tests.support.valkey import connect


@dataclass(frozen=True)
class Fleet:
    """A worker, an `enqueue` at work for as long as the tests last, and who watches them."""

    prometheus: Prometheus
    client: Redis
    worker: subprocess.Popen[str]
    run: str

    def addresses(self) -> dict[str, str]:
        """Kind of process -> where its metrics are."""
        found = look(self.client).members.values()
        return {member.kind: member.metrics for member in found}


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("fleet")
    with ExitStack() as stack:
        server = stack.enter_context(EmbeddedServer.start(folder / "valkey"))
        client = stack.enter_context(closing(connect(server.url)))
        project = Project(folder, rows=100_000, latency=0.02, invalid=0.2)

        def start(*words: str) -> subprocess.Popen[str]:
            process = project.start(*words, "--redis", server.url, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            stack.enter_context(process)
            stack.callback(process.kill)
            return process

        worker = start("worker", "--engine", "writer", "--engine", "judge")
        start("enqueue", "chain.py", "in.jsonl", "-o", "out", "--window", "256")
        home = until(lambda: member_of(client, "enqueue")).metrics
        run = str(next(project.events("out"))["run_id"])
        prometheus = stack.enter_context(scraping(f"http://{home}/sd", folder))
        yield Fleet(prometheus, client, worker, run)


def member_of(client: Redis, kind: str) -> Member | None:
    found = [member for member in look(client).members.values() if member.kind == kind]
    return found[0] if found else None


def get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=LONG) as reply:
        return bytes(reply.read())


def test_every_process_is_found_through_one_address_and_up(fleet: Fleet) -> None:
    until(lambda: set(fleet.prometheus.targets().values()) == {"up"} and len(fleet.prometheus.targets()) == 2)
    assert set(fleet.prometheus.targets()) == set(fleet.addresses().values())
    roles = {series["metric"]["role"] for series in fleet.prometheus.series("up")}
    assert roles == {"worker", "enqueue"}


def test_endpoints_are_on_loopback(fleet: Fleet) -> None:
    for address in fleet.addresses().values():
        assert address.startswith("127.0.0.1:")
        port = int(address.rpartition(":")[2])
        assert f"{port:04X}" in listening("0100007F") and f"{port:04X}" not in listening("00000000")


def listening(host: str) -> set[str]:
    """Ports, in hex, on which something listens at an address."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {row[1].partition(":")[2] for row in rows if row[3] == "0A" and row[1].startswith(host)}


def queries() -> Iterator[tuple[str, str]]:
    """(what asks, expression) of every panel."""
    for dashboard in DASHBOARDS:
        for panel in json.loads((FOLDER / f"{dashboard.uid}.json").read_text())["panels"]:
            for target in panel.get("targets", []):
                yield f"{dashboard.uid}: {panel['title']} {target['refId']}", target["expr"]


def filled_in(expression: str, run: str) -> str:
    """The expression as Grafana would send it."""
    values = {"$__rate_interval": "10s", "$__range": "1m", "$run": run, "$step": ".*"}
    for name, value in values.items():
        expression = expression.replace(name, value)
    assert "$" not in expression, expression
    return expression


@pytest.mark.long
@pytest.mark.parametrize(("asks", "expression"), [*queries()], ids=lambda value: value if ": " in value else "")
def test_every_panel_shows_something(fleet: Fleet, asks: str, expression: str) -> None:
    wanted = filled_in(expression, fleet.run)
    assert until(lambda: numbers(fleet.prometheus.series(wanted))), asks


def numbers(found: list[dict[str, Any]]) -> list[str]:
    return [value for series in found for _, value in series["values"] if value != "NaN"]


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda dashboard: dashboard.uid)
def test_every_variable_has_values(fleet: Fleet, dashboard: Any) -> None:
    for variable in json.loads((FOLDER / f"{dashboard.uid}.json").read_text())["templating"]["list"]:
        if variable["type"] == "query":
            match = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"])
            assert match is not None
            matcher, label = filled_in(match[1], fleet.run), match[2]
            assert until(lambda: fleet.prometheus.get(f"/api/v1/label/{label}/values", **{"match[]": matcher}))  # noqa: B023


def test_labels_of_ours_and_of_targets_do_not_clash(fleet: Fleet) -> None:
    until(lambda: fleet.prometheus.series("chainette_rows_done_total"))
    assert not fleet.prometheus.series('{__name__=~"chainette_.+", exported_job=~".+"}')
    for label in ("run", "step", "engine", "worker", "role"):
        assert not fleet.prometheus.series(f'{{__name__=~"chainette_.+", exported_{label}=~".+"}}')


@pytest.mark.long
def test_rules_are_evaluated(fleet: Fleet) -> None:
    def health() -> set[str]:
        groups = fleet.prometheus.get("/api/v1/rules")["groups"]
        return {rule["health"] for group in groups for rule in group["rules"]}

    until(lambda: health() == {"ok"})


@pytest.mark.long
def test_the_numbers_are_those_of_the_fleet(fleet: Fleet) -> None:
    progress = until(lambda: fleet.prometheus.series("max(chainette_run_records_done) > 0"))
    assert progress
    assert fleet.prometheus.value("max(chainette_run_records)") == 100_000
    assert fleet.prometheus.value("max(chainette_window_rows)") == 256
    assert fleet.prometheus.value('max(chainette_workers{engine="judge"})') == 1
    assert 0 < fleet.prometheus.value("max(chainette_run_progress_ratio)") < 1
