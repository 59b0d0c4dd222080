"""The files for Prometheus and Grafana, without a fleet: they parse, fit, and name metrics that exist."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from chainette_workers.metrics.catalogue import CATALOGUE, MetricType, ProcessKind
from chainette_workers.metrics.process_metrics import Metrics

from chainette.core.compile import compile_chain
from deploy.grafana.make import DASHBOARDS, FOLDER, Dashboard, written
from tests.support.chains import everything
from tests.support.cli import REPOSITORY
from tests.support.prometheus import DEPLOY, promtool

RULES = DEPLOY / "alerts" / "chainette.yml"

ALERTS = [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]

#: A constant, a number every panel shows by its labels, and those of chains with `escalate`, candidates, routes or loops.
UNSEEN = (
    "chainette_build_info",
    "chainette_runs",
    "chainette_engine_rows_total",
    "chainette_candidates_invalid_total",
    "chainette_decisions_total",
    "chainette_rows_reused_total",
    "chainette_rows_shared_total",
)

each_dashboard = pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda dashboard: dashboard.uid)


def panels(dashboard: Dashboard) -> Iterator[dict[str, Any]]:
    for panel in json.loads(written(dashboard))["panels"]:
        yield panel
        yield from panel.get("panels", [])


# -- dashboards


@each_dashboard
def test_what_is_committed_is_what_is_made(dashboard: Dashboard) -> None:
    assert (FOLDER / f"{dashboard.uid}.json").read_text() == written(dashboard), "run: python deploy/grafana/make.py"


def test_no_other_dashboards_are_committed() -> None:
    assert {path.stem for path in FOLDER.iterdir()} == {dashboard.uid for dashboard in DASHBOARDS}


@each_dashboard
def test_a_dashboard_is_one_to_grafana(dashboard: Dashboard) -> None:
    schema = json.loads((REPOSITORY / "tests" / "support" / "schemas" / "grafana-dashboard.json").read_text())
    jsonschema.validate(json.loads(written(dashboard)), schema)


@each_dashboard
def test_ids_and_letters_are_unique_and_nothing_overlaps(dashboard: Dashboard) -> None:
    found = list(panels(dashboard))
    assert len({panel["id"] for panel in found}) == len(found)
    for panel in found:
        letters = [target["refId"] for target in panel.get("targets", [])]
        assert len(set(letters)) == len(letters)
    cells = [cell for panel in found for cell in covered(panel["gridPos"])]
    assert len(set(cells)) == len(cells) and max(x for x, _ in cells) < 24


def covered(place: dict[str, int]) -> Iterator[tuple[int, int]]:
    for x in range(place["x"], place["x"] + place["w"]):
        for y in range(place["y"], place["y"] + place["h"]):
            yield x, y


def test_dashboards_have_names_of_their_own() -> None:
    assert len({dashboard.uid for dashboard in DASHBOARDS}) == len(DASHBOARDS)


@each_dashboard
def test_every_panel_says_what_it_shows(dashboard: Dashboard) -> None:
    for panel in panels(dashboard):
        assert panel["title"] and (panel["type"] == "row" or panel["description"].endswith("."))


def test_grafana_finds_dashboards_and_prometheus() -> None:
    for path in (DEPLOY / "grafana" / "provisioning").rglob("*.yml"):
        assert yaml.safe_load(path.read_text())["apiVersion"] == 1
    sources = yaml.safe_load((DEPLOY / "grafana" / "provisioning" / "datasources" / "prometheus.yml").read_text())
    assert sources["datasources"][0]["type"] == "prometheus"


# -- names


def exposed() -> set[str]:
    """Every series name Chainette can have."""
    suffixes = {MetricType.HISTOGRAM: ("_bucket", "_sum", "_count")}
    return {metric.name + suffix for metric in CATALOGUE for suffix in suffixes.get(metric.kind, ("",))}


def named(text: str) -> set[str]:
    return set(re.findall(r"\bchainette_\w+", text))


@each_dashboard
def test_panels_and_variables_name_metrics_that_there_are(dashboard: Dashboard) -> None:
    found = named(written(dashboard))
    assert found and found <= exposed()


def test_alerts_name_metrics_that_there_are() -> None:
    for alert in ALERTS:
        found = named(alert["expr"])
        assert found and found <= exposed(), alert["alert"]


def test_every_metric_is_shown_or_watched_but_for_a_few() -> None:
    shown = "".join(map(written, DASHBOARDS)) + RULES.read_text()
    for metric in CATALOGUE:
        assert metric.name in shown or metric.name in UNSEEN, metric.name


# -- alerts


def test_every_alert_says_what_it_is_and_where_to_read_on() -> None:
    headings = re.findall(r"^#+ (\w+)$", Path(REPOSITORY, "docs", "operations.md").read_text(), re.MULTILINE)
    anchors = {f"docs/operations.md#{heading.lower()}" for heading in headings}
    for alert in ALERTS:
        said = alert["annotations"]
        assert said["summary"] and said["description"].endswith(".") and alert["labels"]["severity"] in ("page", "warning")
        assert said["runbook_url"] == f"docs/operations.md#{alert['alert'].lower()}" and said["runbook_url"] in anchors


def test_prometheus_takes_configuration_and_rules() -> None:
    for words in (("check", "config", DEPLOY / "prometheus.yml"), ("check", "rules", RULES)):
        done = promtool(*words)
        assert done.returncode == 0, done.stderr.decode()


def test_every_alert_fires_when_it_must_and_not_otherwise() -> None:
    tests = DEPLOY / "alerts" / "tests" / "chainette.yml"
    done = promtool("test", "rules", tests)
    assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()
    fired = {
        rule["alertname"]
        for test in yaml.safe_load(tests.read_text())["tests"]
        for rule in test["alert_rule_test"]
        if rule["exp_alerts"]
    }
    assert fired == {alert["alert"] for alert in ALERTS}


# -- exposition


def test_prometheus_has_nothing_to_say_against_the_metrics() -> None:
    metrics = Metrics(ProcessKind.WORKER, ProcessKind.SINK, ProcessKind.FLEET, engines=("first", "second", "python"))
    metrics.of_run("run-a", compile_chain(everything()))
    _, text = metrics.text("text/plain")
    done = promtool("check", "metrics", stdin=text)
    assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()
